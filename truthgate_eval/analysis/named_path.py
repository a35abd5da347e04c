"""`NAME=PATH`, as `compare`, `correlate` and `report` take runs and artifacts."""

from __future__ import annotations

import os.path

from truthgate_eval.errors import TruthGateError


def split_named_path(argument: str, expected: str = "PATH or NAME=PATH") -> tuple[str | None, str]:
    """The name and the path of an argument; the name is None where the argument is a path alone.

    A path that exists is a path, even with `=` in it, and so is `hf://REPOSITORY`.

    Args:
        argument: What the user typed.
        expected: What the error message asks for.

    Raises:
        TruthGateError: The name or the path is empty.

    Example:
        >>> split_named_path("mine=runs/gated"), split_named_path("runs/gated")
        (('mine', 'runs/gated'), (None, 'runs/gated'))
    """
    name, equals, path = argument.partition("=")
    # Path.exists raises an error for a name that is too long for the file system.
    if not equals or argument.startswith("hf://") or os.path.exists(argument):
        return None, argument
    if not name or not path:
        raise TruthGateError(f"{argument!r}: expected {expected}")
    return name, path
