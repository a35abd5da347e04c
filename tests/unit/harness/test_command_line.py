"""Which programs count as a harness's command line, and how a user's mistake ends them."""

from __future__ import annotations

import sys

import pytest

from truthgate_eval.errors import DataError, TruthGateError
from truthgate_eval.harness.command_line import (
    chose_verbosity,
    exit_on_error,
    exit_with_error,
    is_command_line,
    running_harness,
)


@pytest.mark.parametrize(
    ("program", "harness"),
    [
        ("/env/bin/lm_eval", "lm_eval"),
        ("lm-eval", "lm_eval"),
        ("/env/Scripts/lm_eval.exe", "lm_eval"),
        ("/env/site-packages/lm_eval/__main__.py", "lm_eval"),
        ("/env/bin/lmms_eval", "lmms_eval"),
        ("/env/bin/lmms-eval", "lmms_eval"),
        ("/env/Scripts/lmms-eval.exe", "lmms_eval"),
        ("/env/site-packages/lmms_eval/__main__.py", "lmms_eval"),
    ],
)
def test_console_scripts_and_python_m_are_a_harness(
    program: str, harness: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    assert running_harness() == harness
    assert is_command_line()
    assert is_command_line("lm_eval") is (harness == "lm_eval")
    assert is_command_line("lmms_eval") is (harness == "lmms_eval")


@pytest.mark.parametrize(
    "program",
    [
        "/code/lm_eval_experiments/run.py",
        "/code/lm_eval/run.py",
        "/code/lmms_eval/__init__.py",
        "/code/lm_eval.py",
        "/code/my_lm_eval",
        "/code/experiments/__main__.py",
        "/env/bin/pytest",
        "-c",
        "",
    ],
)
def test_a_users_own_program_is_none(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    assert running_harness() is None and not is_command_line()
    with pytest.raises(DataError):
        exit_with_error(DataError("missing"))
    monkeypatch.setattr(sys, "argv", [])
    assert running_harness() is None


def test_only_lmms_evals_command_line_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval lets an exception through, and its excepthook prints the line."""
    monkeypatch.setattr(sys, "argv", ["/env/bin/lm_eval"])
    with pytest.raises(DataError), exit_on_error():
        raise DataError("missing")
    monkeypatch.setattr(sys, "argv", ["/env/bin/lmms_eval"])
    with pytest.raises(SystemExit, match=r"^error: missing two$"), exit_on_error():
        raise DataError("missing\n  two")
    with pytest.raises(SystemExit, match=r"^error: TruthGateError$"), exit_on_error():
        raise TruthGateError
    with pytest.raises(ValueError, match="another"), exit_on_error():
        raise ValueError("another library's")
    monkeypatch.setenv("VERBOSITY", "DEBUG")
    with pytest.raises(DataError), exit_on_error():
        raise DataError("missing")


@pytest.mark.parametrize(
    ("harness", "arguments", "environment", "expected"),
    [
        ("lm_eval", ["--tasks", "halueval"], {}, False),
        ("lm_eval", ["--verbosity", "DEBUG"], {}, True),
        ("lm_eval", ["--verbosity=INFO"], {}, True),
        ("lm_eval", ["-v", "DEBUG"], {}, True),
        ("lm_eval", [], {"LMEVAL_LOG_LEVEL": "debug"}, True),
        ("lm_eval", [], {"LOGLEVEL": "DEBUG"}, True),
        ("lmms_eval", [], {}, False),
        ("lmms_eval", [], {"VERBOSITY": "INFO"}, False),
        ("lmms_eval", ["--verbosity", "DEBUG"], {}, True),
        # A --config file's verbosity, which lmms-eval writes into the environment.
        ("lmms_eval", ["--config", "run.yaml"], {"VERBOSITY": "DEBUG"}, True),
    ],
)
def test_a_chosen_verbosity_is_found(
    harness: str, arguments: list[str], environment: dict[str, str], expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("VERBOSITY", "LMEVAL_LOG_LEVEL", "LOGLEVEL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [harness, *arguments])
    assert chose_verbosity(harness) is expected  # type: ignore[arg-type]
