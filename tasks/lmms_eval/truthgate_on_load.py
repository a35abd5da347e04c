"""Values for the task files in this folder, which name them by `!function truthgate_on_load.NAME`.

lmms-eval hides the message of an error from a module of a package behind an ImportError, but passes on an
error from a module in the folder of the task file.
"""

from truthgate_eval.harness.lmms_eval.tasks import on_load as __getattr__  # noqa: F401
