"""Is this process a harness's own command line, and how does a user's mistake end it?

lm-eval's hook imports this module at every start of lm-eval, so it imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Literal, NoReturn

from truthgate_eval.errors import TruthGateError, one_line

Harness = Literal["lm_eval", "lmms_eval"]

_PROGRAMS: dict[str, Harness] = {
    "lm_eval": "lm_eval",
    "lm-eval": "lm_eval",
    "lmms_eval": "lmms_eval",
    "lmms-eval": "lmms_eval",
}


def running_harness() -> Harness | None:
    """The harness whose command line this process is, or None.

    A harness's command line is one of its console scripts (`lm_eval`, `lm-eval`, `lmms_eval` or `lmms-eval`,
    on Windows with `.exe`) or `python -m lm_eval` or `python -m lmms_eval`, also where `accelerate launch`
    or torchrun starts it. A program that only has such a name somewhere in its path is the user's own.
    """
    program = PurePath(sys.argv[0] if sys.argv else "")
    # `python -m PACKAGE` sets sys.argv[0] to PACKAGE/__main__.py.
    name = program.parent.name if program.name == "__main__.py" else program.name
    return _PROGRAMS.get(name.removesuffix(".exe"))


def is_command_line(harness: Harness | None = None) -> bool:
    """Whether this process is the command line of a harness.

    Args:
        harness: The harness; None accepts either.
    """
    running = running_harness()
    return running is not None and harness in (None, running)


def chose_verbosity(harness: Harness) -> bool:
    """Whether the user of a harness's command line chose its verbosity, by option or environment."""
    options = ("--verbosity", "-v") if harness == "lm_eval" else ("--verbosity",)
    if any(argument.split("=")[0] in options for argument in sys.argv[1:]):
        return True
    # lmms-eval sets VERBOSITY itself, to the level of its command line or of its --config file.
    level = os.environ.get("VERBOSITY", "INFO") if harness == "lmms_eval" else "INFO"
    return level != "INFO" or any(os.environ.get(name) for name in ("LMEVAL_LOG_LEVEL", "LOGLEVEL"))


def exit_with_error(error: TruthGateError) -> NoReturn:
    """Raise the error; on lmms-eval's command line, end the program with its message and exit status 1.

    lmms-eval's command line prints a traceback for every exception and then exits with status 0, but lets
    SystemExit through. With `--verbosity DEBUG` it lets every exception through, and a traceback is wanted.

    Raises:
        SystemExit: On lmms-eval's command line.
        TruthGateError: The error itself, everywhere else.
    """
    if is_command_line("lmms_eval") and os.environ.get("VERBOSITY") != "DEBUG":
        raise SystemExit(f"error: {one_line(error)}") from error
    raise error


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Pass our errors in this block to `exit_with_error`."""
    try:
        yield
    except TruthGateError as error:
        exit_with_error(error)
