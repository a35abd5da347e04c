"""Values that the task files beside this one ask for: `!function truthgate_on_load.NAME`.

lmms-eval wraps an error from a module of a package in an ImportError that hides its message; from a
module beside the task file the message arrives as it is.
"""

from truthgate_eval.harness.lmms_eval.tasks import on_load as __getattr__  # noqa: F401
