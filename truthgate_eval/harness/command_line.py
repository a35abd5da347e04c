"""A user's mistake under lmms-eval: one line and exit status 1, where the host would hide both."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from truthgate_eval.errors import TruthGateError


def exit_with_error(error: TruthGateError) -> NoReturn:
    """Raise the error; on lmms-eval's command line, end the program with its message.

    That command line prints a traceback for every exception and then exits with status 0. It lets
    SystemExit through. With --verbosity DEBUG it lets everything through, and a traceback is wanted.
    """
    if is_command_line() and os.environ.get("VERBOSITY") != "DEBUG":
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
    raise error


def is_command_line() -> bool:
    """Whether this process is `lmms_eval`, `lmms-eval` or `python -m lmms_eval`."""
    program = Path(sys.argv[0] if sys.argv else "")
    names = {"lmms_eval", "lmms-eval"}
    return program.stem in names or (program.name == "__main__.py" and program.parent.name in names)
