"""The mistakes a user can make, each an exception whose message is one clear line.

Every message says what was given, what was expected and what to do. The command
line prints the message without a traceback and exits with status 1.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import TypeVar

from truthgate_eval.escaping import visible

Choice = TypeVar("Choice", bound=str)

_MAX_LINE = 2000
_MAX_SHOWN = 200  # characters of a value in a message
# `repr` of a deeply nested value raises RecursionError.
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = _MAX_SHOWN


class TruthGateError(Exception):
    """Base of every error that a user's input can cause."""


class ScoresError(TruthGateError):
    """A score artifact is missing, damaged, or does not fit the model."""


class HubError(TruthGateError):
    """Something on a model hub is not there, cannot be fetched, or cannot be uploaded."""


class GateError(TruthGateError):
    """A gate setting (lam, norm, site, layers, mode) is not one that exists."""


class AttentionLayoutError(TruthGateError):
    """The model has no text decoder whose attention heads can be gated."""


class DataError(TruthGateError):
    """A data set is not where it was looked for, or not in its known format."""


class TaskError(TruthGateError):
    """A task is unknown, or of a kind that cannot be used here."""


class ModelError(TruthGateError):
    """A model or adapter cannot be loaded."""


class ProbeError(TruthGateError):
    """Probes cannot be fitted to the data, or a setting of theirs does not exist."""


class ProcessError(TruthGateError):
    """One of several processes has failed: all of them raise this, with its message."""


def check_choice(
    what: str, value: object, choices: Sequence[Choice], error: type[TruthGateError] = TruthGateError
) -> Choice:
    """The one of some named choices that `value` is.

    Args:
        what: What the message calls it, such as `norm`.
        value: As a user gave it.
        choices: All that exist, usually the members of a `Literal`.
        error: The class that is raised.

    Raises:
        TruthGateError: There is no such choice.

    Example:
        >>> check_choice("site", "post", ("post", "pre"))
        'post'
    """
    for known in choices:
        if value == known:
            return known
    raise error(f"unknown {what} {shorten(value)}: expected one of {', '.join(choices)}")


def first_line(error: BaseException) -> str:
    r"""First line of an exception's message, or the name of its class where the message is empty.

    Args:
        error: Any exception, ours or another library's.

    Example:
        >>> first_line(ValueError("no such file\nsee the log"))
        'no such file'
        >>> first_line(KeyboardInterrupt())
        'KeyboardInterrupt'
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def reason_of(error: BaseException) -> str:
    """An exception's class and the first line of its message.

    Example:
        >>> reason_of(ValueError("too long")), reason_of(ValueError())
        ('ValueError: too long', 'ValueError')
    """
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def one_line(error: BaseException) -> str:
    r"""An exception's message on one line, or the name of its class where the message is empty.

    The middle of one that is longer than 2,000 characters is left out: files of strangers can have names of
    any length in them.

    Args:
        error: Any exception; command lines print ours with it. Messages quote names out of files: control
            characters in them are written out, so that no terminal obeys them.

    Example:
        >>> one_line(TruthGateError("no such file:\n  a.npz"))
        'no such file: a.npz'
    """
    line = visible(" ".join(str(error).split()))
    if len(line) > _MAX_LINE:
        line = f"{line[: _MAX_LINE * 3 // 4]} ... {line[-_MAX_LINE // 4 :]}"
    return line or type(error).__name__


def shorten(value: object) -> str:
    """A value from a file for a message, shortened where it is long or deeply nested.

    Example:
        >>> shorten([[[[[[[[1]]]]]]]])
        '[[[[[[[...]]]]]]]'
    """
    shown = _repr.repr(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
