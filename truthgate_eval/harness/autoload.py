"""Which of our patches are applied when a module of a harness has been imported.

`startup/_truthgate_autoload.py` calls `on_import`. The patches themselves, and when each can go, are in
`harness/lm_eval/patches.py` and `harness/lmms_eval/patches.py`.
"""

from __future__ import annotations


def on_import(module: str) -> None:
    """Apply the patches of a harness's module that has just been loaded.

    Args:
        module: One of `WATCHED` in the startup file; other names change nothing.
    """
    if module == "lm_eval.models":
        from truthgate_eval.harness.lm_eval import patches as lm_eval_patches

        lm_eval_patches.register_models()
        lm_eval_patches.install_one_line_errors()
    elif module == "lm_eval.tasks.manager":
        from truthgate_eval.harness.lm_eval import patches as lm_eval_patches

        lm_eval_patches.include_tasks()
    elif module == "lmms_eval.tasks":
        from truthgate_eval.harness.lmms_eval import patches as lmms_eval_patches

        lmms_eval_patches.include_tasks()
