"""What the released harnesses do not do yet, so that we patch them. A test that fails here names what can go.

docs/compatibility.md lists the patches with these tests; each test runs without the patch that it is about.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# The interpreter as it is without our startup file.
WITHOUT_SHIM = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != "_truthgate_autoload"]
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_SHIM + textwrap.dedent(code), *arguments],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture
def own_task(tmp_path: Path) -> str:
    """A file beside a task, in place of the harness's own thousands, which take long to read."""
    (tmp_path / "own.yaml").write_text("task: own\noutput_type: generate_until\ntest_split: test\n")
    return str(tmp_path / "beside.py")


@pytest.mark.slow
def test_lm_eval_finds_neither_our_models_nor_our_tasks_by_itself(own_task: str) -> None:
    """The first line is another one with lm-eval's #4013: `register_models` can go, and the startup file's
    `lm_eval.models`. The second is another one when lm-eval reads task folders from entry points (#4015):
    `include_tasks` can go. With both gone, so can the startup file's part for lm-eval.
    """
    done = python(
        """
        from lm_eval.api.registry import get_model
        from lm_eval.tasks import TaskManager, manager
        try:
            print(get_model("gated_hf").__name__)
        except (KeyError, ValueError):
            print("no gated_hf, but", get_model("hf").__name__)
        manager.__file__ = sys.argv[1]
        print(TaskManager().all_tasks, TaskManager().all_groups)
        """,
        own_task,
    )
    assert done.stdout.strip().splitlines()[-2:] == ["no gated_hf, but HFLM", "['own'] []"], done.stderr


@pytest.mark.slow
def test_lmms_eval_does_not_find_our_tasks_by_itself(own_task: str) -> None:
    """Where this fails, lmms-eval reads task folders of packages: its `include_tasks` can go."""
    done = python(
        """
        from lmms_eval import tasks
        tasks.__file__ = sys.argv[1]
        print(tasks.TaskManager().all_tasks)
        """,
        own_task,
    )
    assert done.stdout.strip().splitlines()[-1] == "['own']", done.stderr


@pytest.mark.slow
def test_lm_evals_command_line_shows_a_users_mistake_as_a_traceback() -> None:
    """Where this fails, lm-eval prints users' errors itself: `install_one_line_errors` can go."""
    done = python(
        """
        from truthgate_eval.harness.lm_eval import patches
        import lm_eval.models
        patches.register_models()
        sys.argv = ["lm_eval", "run", "--model", "gated_hf", "--model_args", "lam=much", "--tasks", "wikitext"]
        from lm_eval.__main__ import cli_evaluate
        cli_evaluate()
        """
    )
    assert done.returncode == 1 and "Traceback (most recent call last)" in done.stderr, done.stderr
    assert "lam" in done.stderr.splitlines()[-1]


def test_lmms_eval_makes_texts_of_losses() -> None:
    """Where this fails, lmms-eval keeps (loss, greedy) pairs: `keep_loss_pairs` can go."""
    from lmms_eval.evaluator import unwrap_generation_output

    assert unwrap_generation_output((0.5, True)) == ("(0.5, True)", None)


def test_lmms_evals_evaluator_asks_a_model_neither_what_it_is_nor_for_a_fingerprint() -> None:
    """Where this fails, look whether `install_evaluate_patch` and `KeyedResponseCache` are needed still.

    A source's text is read, since what is missing has no behaviour: its one mention of `get_model_info` is a
    comment that says it is to come.
    """
    from lmms_eval import evaluator
    from lmms_eval.caching import response_cache

    lines = inspect.getsource(evaluator).splitlines()
    assert not [line for line in lines if "get_model_info" in line and not line.lstrip().startswith("#")]
    assert ".fingerprint(" not in inspect.getsource(evaluator) + inspect.getsource(response_cache)


def test_lmms_eval_puts_a_system_instruction_into_the_users_text() -> None:
    """Where this fails, lmms-eval hands a system instruction over: `system_instruction_of_run` can go."""
    from lmms_eval.api.instance import Instance

    assert "system" not in " ".join(inspect.signature(Instance).parameters)


def test_lm_evals_requests_do_not_say_which_text_is_the_context_nor_that_a_run_begins() -> None:
    """Where this fails, look whether `install_evaluate_patch` is needed for contrasts and found strengths."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

    assert set(inspect.signature(Instance).parameters) == {
        "request_type", "doc", "arguments", "idx", "metadata", "resps", "filtered_resps", "task_name", "doc_id",
        "repeats",
    }  # fmt: skip
    assert not [name for name in vars(LM) if "run" in name or "begin" in name or "setup" in name]
