"""Which messages and progress bars of other libraries are left out, and that all others stay."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from loguru import logger as loguru_logger
from tqdm.auto import tqdm

from truthgate_eval.harness import quiet as module
from truthgate_eval.harness.quiet import is_noise, log_to_stderr, quiet, quiet_harness_run

NOISE = [
    ("lm_eval.api.task", "probe_halueval_qa: Custom kwargs can be passed to `--metadata` in console"),
    ("lm_eval.api.task", "Building contexts for halueval_qa on rank 0..."),
    ("lm_eval.evaluator", "halueval_qa: Using gen_kwargs: {'until': ['\\n']}"),
    ("lm_eval.evaluator", "Running generate_until requests"),
    ("lm_eval.evaluator_utils", "Selected tasks:"),
    ("lm_eval.evaluator_utils", "  Task: halueval_qa (/tasks/lm_eval/halueval_qa.yaml)"),
    ("lm_eval.evaluator_utils", "Group: halueval"),
    ("lm_eval.models.huggingface", "Device not specified"),
    ("lm_eval.models.huggingface", "Cuda Available? False"),
    ("lm_eval.models.huggingface", "Model parallel was set to False, max memory was not set, ..."),
    (
        "transformers.modeling_utils",
        "The tied weights mapping and config for this model specifies to tie a to b",
    ),
    (
        "bitsandbytes.backends.cpu.ops",
        "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'. Please",
    ),
    (
        "torch.utils._pytree",
        "<enum 'KernelPreference'> is an Enum subclass and is now natively supported by torch.compile as",
    ),
    (
        "py.warnings",
        "modeling_utils.py:3312: FutureWarning: `is_gradient_checkpointing` is deprecated and will be removed",
    ),
    ("lmms_eval.api.task", "Building contexts for scenes_random on rank 0..."),
    ("lmms_eval.evaluator", "Running on rank 0 (local rank 0)"),
    ("lmms_eval.evaluator", "Running generate_until requests"),
    ("lmms_eval.evaluator", "Postprocessed 2 docs for scenes_random/none with 4 worker(s) in 0.00s"),
]
SUBSTANCE = [
    ("lm_eval.config.evaluate_config", "--limit SHOULD ONLY BE USED FOR TESTING."),
    ("lm_eval.evaluator", "Overwriting default num_fewshot of halueval_qa from None to 5"),
    ("lm_eval.evaluator", "Running halueval_qa in output-only mode requests"),
    # --write_out
    ("lm_eval.evaluator_utils", "Task: halueval_qa; document 0; context prompt (starting on next line):"),
    ("lm_eval.models.huggingface", "Failed to place model onto specified device."),
    ("lm_eval.api.task", "Task 'x' has no filter defined"),
    (
        "transformers.modeling_utils",
        "This checkpoint seem corrupted. The tied weights mapping for this model",
    ),
    (
        "lmms_eval.evaluator",
        "Running generate_until requests but could not find a pad source request on rank 1",
    ),
    ("my.own", "Cuda Available? False"),
    ("py.warnings", "own.py:1: FutureWarning: `something_else` is deprecated and will be removed"),
]


@pytest.fixture(autouse=True)
def restored_process() -> Iterator[None]:
    yield
    module._PROCESS.close()
    loguru_logger.remove()


def is_printed(name: str, message: str) -> bool:
    """Whether the logger of this name passes the message to handlers."""
    logger = logging.getLogger(name)
    return bool(logger.filter(logger.makeRecord(name, logging.WARNING, "", 0, message, (), None)))


@pytest.mark.parametrize(("name", "message"), NOISE)
def test_named_messages_are_left_out_while_quiet(name: str, message: str) -> None:
    assert is_noise(name, message)
    assert is_printed(name, message)
    with quiet():
        assert not is_printed(name, message)
    assert is_printed(name, message)


@pytest.mark.parametrize(("name", "message"), SUBSTANCE)
def test_all_other_messages_stay(name: str, message: str) -> None:
    assert not is_noise(name, message)
    with quiet():
        assert is_printed(name, message)


def bar(**options: str) -> str:
    text = io.StringIO()
    for _ in tqdm([1, 2], file=text, **options):
        pass
    return text.getvalue()


def test_bars_of_short_steps_are_not_drawn_and_others_are() -> None:
    assert bar() and bar(desc="Loading weights")
    with quiet():
        assert bar() == bar(desc="Loading weights") == bar(desc="Postprocessing") == ""
        assert "Model Responding" in bar(desc="Model Responding")
    assert bar()


def test_a_bar_of_a_step_that_takes_longer_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DELAY_SECONDS", 0.0)
    with quiet():
        assert "Loading weights" in bar(desc="Loading weights")


def test_lmms_evals_log_goes_to_stderr_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    loguru_logger.remove()
    loguru_logger.add(sys.stdout, level="DEBUG")  # as lmms_eval.models does when it is imported
    log_to_stderr()
    loguru_logger.debug("File x.yaml could not be loaded as a task or group")
    loguru_logger.warning("of substance")
    out, err = capsys.readouterr()
    assert out == "" and err == "WARNING: of substance\n"


def in_lmms_eval(message: str, level: str = "INFO") -> None:
    loguru_logger.patch(lambda record: record.update(name="lmms_eval.evaluator")).log(level, message)


def test_a_run_of_our_models_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/env/bin/lmms_eval", "--model", "gated_vlm"])
    for name in ("VERBOSITY", "LMEVAL_LOG_LEVEL", "LOGLEVEL"):
        monkeypatch.delenv(name, raising=False)
    quiet_harness_run("lmms_eval")
    quiet_harness_run("lmms_eval")  # a second model in the process changes nothing more
    in_lmms_eval("Running on rank 0 (local rank 0)")
    in_lmms_eval("Token budget reached", "WARNING")
    in_lmms_eval("Using the response cache")
    out = capsys.readouterr().out
    assert "Running on rank" not in out
    assert out.count("Token budget reached") == out.count("Using the response cache") == 1
    assert bar() == ""


@pytest.mark.parametrize(
    ("argv", "environment"),
    [
        (["/env/bin/pytest"], {}),
        (["/code/lm_eval_experiments/run.py"], {}),
        (["/env/bin/lmms_eval", "--model", "gated_vlm"], {}),
        (["/env/bin/lm_eval", "--verbosity", "DEBUG"], {}),
        (["/env/bin/lm_eval"], {"LMEVAL_LOG_LEVEL": "DEBUG"}),
    ],
)
def test_other_programs_and_users_who_want_more_get_everything(
    argv: list[str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    quiet_harness_run("lm_eval")
    for name, message in NOISE:
        assert is_printed(name, message)
    assert bar()


@pytest.mark.parametrize("harness", ["lm_eval", "lmms_eval"])
def test_a_quiet_run_ends_without_a_word(harness: str) -> None:
    # A module that `sys` refers to is emptied name by name at the end, in the order of its names.
    program = (
        f"import sys; sys.argv = ['/bin/{harness}']; from truthgate_eval.harness import quiet; "
        f"quiet.quiet_harness_run('{harness}'); sys.kept = quiet"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
