"""Keeps lines of other libraries that tell a user nothing out of our commands and of our models' runs.

What is left out is named here, message by message and progress bar by progress bar, with the versions that
print it. All other lines stay: warnings and errors of the harnesses above all. Nothing heavy is imported.
"""

from __future__ import annotations

import atexit
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from truthgate_eval.harness.command_line import Harness, chose_verbosity, is_command_line

if TYPE_CHECKING:
    from loguru import Record

# Messages without meaning for the user of our models, by the logger that prints them: lm-eval 0.4.13,
# transformers 5 and what it imports (logging), lmms-eval 0.7.3 (loguru).
_NOISE = {
    # A hint for authors of tasks whose data a function makes, at every load; and one line per task.
    "lm_eval.api.task": r"\S*: Custom kwargs can be passed to `--metadata`|Building contexts for ",
    # What the task file says. The bar says which requests run.
    "lm_eval.evaluator": r"\S*: Using gen_kwargs: |Running \w+ requests$",
    # Repeats "Selected Tasks: [...]" with paths. `Task: NAME; document` is --write_out's and stays.
    "lm_eval.evaluator_utils": r"Selected tasks:|\s*(Task|Group): \S+( \(.*\))?$",
    "lm_eval.models.huggingface": (
        r"Device not specified$|Cuda Available\? |Using device '|Model parallel was set to False"
    ),
    # The checkpoint has both matrices and both are loaded, as its author saved them.
    "transformers.modeling_utils": r"The tied weights mapping and config for this model specifies to tie ",
    # bitsandbytes 0.50, which has a kernel of its own, too, on processors with AVX-512 for bfloat16.
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward from kernels-community",
    # torch 2.15 says it of torchao 0.18 when transformers is imported.
    "torch.utils._pytree": r"<enum '\w+'> is an Enum subclass and is now natively supported by torch",
    # transformers 5.24 says it of peft 0.21, where a packaged child is assembled.
    "py.warnings": r"(?s).*`is_gradient_checkpointing` is deprecated",
    "lmms_eval.api.task": r"Building contexts for ",
    "lmms_eval.evaluator": r"Running (on rank \d+ \(local rank \d+\)|\w+ requests)$|Postprocessed \d+ docs ",
}

# Bars of steps that mostly end at once: drawn only where one takes longer. The bar of lm-eval's and
# lmms-eval's "Building contexts" has no description.
_SHORT_STEPS = (None, "", "Loading weights", "Writing model shards", "Postprocessing")
_DELAY_SECONDS = 3.0

_PROCESS = ExitStack()  # what `quiet_harness_run` changes, until the process ends
# Left to the interpreter's last collection, the generators in it would find this module's names gone.
atexit.register(_PROCESS.close)


def is_noise(logger: str, message: str) -> bool:
    """Whether a library's message tells a user of our models nothing.

    Args:
        logger: The logger's name, which is the library's module.
        message: The message, formatted.

    Example:
        >>> is_noise("lm_eval.models.huggingface", "Cuda Available? False")
        True
        >>> is_noise("lm_eval.evaluator", "Overwriting default num_fewshot of halueval_qa from None to 5")
        False
    """
    return logger in _NOISE and re.match(_NOISE[logger], message) is not None


@contextmanager
def quiet() -> Iterator[None]:
    """Leave the named messages and short progress bars out while this context is open.

    lmms-eval's log goes to stderr, as `log_to_stderr` says.
    """
    with ExitStack() as stack:
        stack.enter_context(_without_noise())
        stack.enter_context(_without_short_bars())
        log_to_stderr()
        yield


def log_to_stderr() -> None:
    """Send lmms-eval's log to stderr, at the level of Python's root logger and without the named messages.

    lmms-eval logs through loguru, which prints everything to stderr at first. Importing `lmms_eval.models`
    replaces that by warnings on stdout: call this after such an import.
    """
    from loguru import logger

    level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
    noise_too = logging.getLogger().isEnabledFor(logging.INFO)
    logger.remove()
    logger.add(
        sys.stderr,
        level=level,
        format="{level}: {message}",
        filter=None if noise_too else _is_worth_printing,
    )


def quiet_harness_run(harness: Harness) -> None:
    """Leave the named messages and short bars out of a harness's run of one of our models.

    Does nothing where the program is not the harness's command line, or where its user chose a verbosity
    (`--verbosity`, `LMEVAL_LOG_LEVEL`, `LOGLEVEL`). Our models call it when they are made, so that runs of
    other models print what they always did.
    """
    if not is_command_line(harness) or chose_verbosity(harness):
        return
    _PROCESS.close()
    _PROCESS.enter_context(_without_noise())
    _PROCESS.enter_context(_without_short_bars())
    if harness == "lmms_eval":
        _filter_lmms_eval_log()


def _filter_lmms_eval_log() -> None:
    """Replace the one handler that lmms-eval's command line made by the same with a filter."""
    from loguru import logger

    logger.remove()
    # The level and format of lmms_eval.__main__.cli_evaluate, 0.7.3; colours only on a terminal.
    logger.add(
        sys.stdout,
        level="INFO",
        format="<green>{time:YYYY-MM-DD HH:mm:ss}</green> | <level>{level: <8}</level> | "
        "<cyan>{name}</cyan>:<cyan>{function}</cyan>:<cyan>{line}</cyan> - <level>{message}</level>",
        filter=_is_worth_printing,
    )


def _is_worth_printing(record: Record) -> bool:
    return not is_noise(record["name"] or "", record["message"])


@contextmanager
def _without_noise() -> Iterator[None]:
    """Filter the named loggers of the logging module."""

    def keep(record: logging.LogRecord) -> bool:
        return not is_noise(record.name, record.getMessage())

    for name in _NOISE:
        logging.getLogger(name).addFilter(keep)
    try:
        yield
    finally:
        for name in _NOISE:
            logging.getLogger(name).removeFilter(keep)


@contextmanager
def _without_short_bars() -> Iterator[None]:
    """Draw tqdm's bars of `_SHORT_STEPS` only after `_DELAY_SECONDS`; all other bars at once."""
    from tqdm.std import tqdm

    original = tqdm.__init__

    def init(self: Any, iterable: Any = None, desc: str | None = None, *args: Any, **options: Any) -> None:
        if desc in _SHORT_STEPS:
            options.setdefault("delay", _DELAY_SECONDS)
        original(self, iterable, desc, *args, **options)

    tqdm.__init__ = init
    try:
        yield
    finally:
        tqdm.__init__ = original
