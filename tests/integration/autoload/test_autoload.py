"""Our models and tasks are found by both harnesses, in every order in which their modules are imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def python(code: str, *flags: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=300)


@pytest.mark.slow
def test_gated_hf_resolves_and_so_do_lm_evals_own_models(tmp_path: Path) -> None:
    done = python(
        """
        from lm_eval.api.registry import get_model, model_registry
        from lm_eval.models import MODEL_MAPPING
        assert "gated_hf" in model_registry
        assert set(MODEL_MAPPING) <= set(model_registry.keys())
        import sys
        assert "truthgate_eval.harness.lm_eval.model" not in sys.modules  # a lazy name until get_model
        print(get_model("gated_hf").__name__, get_model("hf").__name__, get_model("dummy").__name__)
        """,
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["GatedHF", "HFLM", "DummyLM"], done.stderr


@pytest.mark.slow
def test_lm_eval_finds_our_tasks_and_keeps_its_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "a.yaml").write_text("task: halueval_qa\noutput_type: multiple_choice\n")
    done = python(
        f"""
        from lm_eval.tasks import TaskManager
        ours, bare = TaskManager(), TaskManager(include_defaults=False)
        users = TaskManager(include_path={str(mine)!r})
        assert not bare.all_tasks
        assert "hellaswag" in ours.all_tasks and "halueval" in ours.all_groups
        print([t for t in ours.all_tasks if "halueval" in t or "phd" in t])
        print(users.task_index["halueval_qa"].yaml_path)
        """,
        cwd=tmp_path,
    )
    tasks, users = done.stdout.strip().splitlines()
    for name in ("halueval_qa_select", "halueval_qa_official", "probe_halueval_qa", "probe_phd_text"):
        assert name in tasks
    assert users == str(mine / "a.yaml"), "a user's own task must win over ours"


def test_arming_after_a_harness_was_imported_registers_at_once() -> None:
    done = python(
        """
        import sys, _truthgate_autoload
        sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != "_truthgate_autoload"]
        import lm_eval.models
        from lm_eval.api.registry import model_registry
        assert "gated_hf" not in model_registry
        _truthgate_autoload.arm()
        print("gated_hf" in model_registry)
        """
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.slow
def test_the_finder_is_installed_once_and_removed_after_the_last_watched_module() -> None:
    done = python(
        """
        import sys, _truthgate_autoload
        count = lambda: sum(type(f).__module__ == "_truthgate_autoload" for f in sys.meta_path)
        _truthgate_autoload.arm()
        before = count()
        import lm_eval.tasks, lmms_eval.tasks, lm_eval.models
        print(before, count())
        """
    )
    assert done.stdout.split()[-2:] == ["1", "0"], done.stderr


def test_a_broken_hook_is_a_warning_and_the_harness_imports() -> None:
    done = python(
        """
        import truthgate_eval.harness.autoload as autoload
        def broken(name):
            raise ValueError("boom")
        autoload.on_import = broken
        import lm_eval.models
        print(len(lm_eval.models.MODEL_MAPPING) > 10)
        """
    )
    assert done.stdout.strip() == "True"
    assert "RuntimeWarning: truthgate_eval could not register itself with lm_eval.models" in done.stderr


def test_finding_a_module_without_importing_it_keeps_its_hook() -> None:
    done = python(
        """
        import importlib.util, sys
        assert importlib.util.find_spec("lm_eval.models") and "lm_eval.models" not in sys.modules
        import lm_eval.models
        from lm_eval.api.registry import model_registry
        print("gated_hf" in model_registry)
        """
    )
    assert done.stdout.strip() == "True", done.stderr


def test_the_hook_runs_after_an_import_that_failed_the_first_time() -> None:
    done = python(
        """
        import sys
        sys.modules["lm_eval.api.registry"] = None  # makes the import fail
        try:
            import lm_eval.models
        except ImportError:
            del sys.modules["lm_eval.api.registry"]
        import lm_eval.models
        from lm_eval.api.registry import model_registry
        print("gated_hf" in model_registry)
        """
    )
    assert done.stdout.strip() == "True", done.stderr


def test_a_name_that_lm_eval_has_registered_already_is_left_alone() -> None:
    """As lm-eval's next release does with our entry point (pull request #4013)."""
    done = python(
        """
        from lm_eval.api.registry import model_registry
        model_registry.register("gated_hf", target="lm_eval.itself:GatedHF")
        import lm_eval.models
        print(model_registry._objs["gated_hf"])
        """
    )
    assert "lm_eval.itself:GatedHF" in done.stdout, done.stderr


def test_the_startup_file_costs_next_to_nothing() -> None:
    """It imports no other module, and takes about half a millisecond (20 allows for a busy machine)."""
    done = python("import sys; print([m for m in sys.modules if 'truthgate' in m])", "-X", "importtime")
    assert done.stdout.strip() == "['_truthgate_autoload']"
    (line,) = [line for line in done.stderr.splitlines() if line.endswith("_truthgate_autoload")]
    assert int(line.split("|")[1]) < 20_000, "microseconds"


def test_the_hooks_import_no_heavy_module_of_ours() -> None:
    done = python(
        """
        import sys
        from truthgate_eval.harness import autoload
        import truthgate_eval.harness.lm_eval.patches, truthgate_eval.harness.lmms_eval.patches
        print({"torch", "transformers", "numpy", "tqdm", "loguru", "lm_eval", "lmms_eval"} & set(sys.modules))
        """
    )
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(
    ("program", "in_one_line"),
    [
        ("lm_eval", True),
        ("/env/site-packages/lm_eval/__main__.py", True),
        ("other.py", False),
        ("/code/lm_eval_experiments/run.py", False),
        ("/code/lm_eval/run.py", False),
    ],
)
def test_our_errors_are_one_line_on_lm_evals_command_line_only(program: str, in_one_line: bool) -> None:
    done = python(
        f"""
        import sys
        sys.argv[0] = {program!r}
        def own(kind, error, trace):
            print("own excepthook", file=sys.stderr)
            sys.__excepthook__(kind, error, trace)
        sys.excepthook = own
        import lm_eval.models
        from truthgate_eval.errors import ScoresError
        raise ScoresError("the one line")
        """
    )
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == ("own excepthook" in done.stderr) == (not in_one_line)
    assert "the one line" in done.stderr.splitlines()[-1]


def test_errors_of_others_keep_the_programs_excepthook() -> None:
    done = python(
        """
        import sys
        sys.argv[0] = "lm_eval"
        import lm_eval.models
        raise ValueError("not ours")
        """
    )
    assert done.returncode == 1 and "Traceback" in done.stderr
