"""Paths of this machine, taken out of what is passed on: they name users and projects."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

# A path from the root, from a home folder, from a drive or out of this folder, inside any text. A slash
# within a word, and those of an address such as https://host/path, begin none.
_INSIDE_TEXT = re.compile(
    r"(?<![\w./\\-])(?:file:/+|~[\w.-]*[/\\]|/(?!/)|[A-Za-z]:[/\\]|\.\.[/\\])[^\s,;:=\"'()<>|]+"
)
_IS_LONGER = re.compile(r"[,;:]\s|\n")  # more than one path


def without_folders(name: str) -> str:
    """The name of a model or file without its folders, if it is one of this machine; else as it is.

    Example:
        >>> without_folders("shuffled:/home/me/base.npz:3"), without_folders("hf://owner/repo/base.npz")
        ('shuffled:base.npz:3', 'hf://owner/repo/base.npz')
    """
    if name.startswith(("hf://", "shuffled:hf://")):
        return name
    # `shuffled:FILE:SEED` has a path in it.
    return ":".join(
        Path(part).name if Path(part).is_absolute() or os.path.exists(part) else part
        for part in name.split(":")
    )


def without_local_paths(value: Any) -> Any:
    """A value of JSON in which every path of a machine, also inside a longer text, is its last part alone.

    Keys are cut too. Not cut are relative paths that do not begin with `..`, and, inside a longer text, what
    follows the first space in a path.

    Example:
        >>> without_local_paths({"note": "from /home/me/a.json", "page": "https://host/a/b", "n": 3})
        {'note': 'from a.json', 'page': 'https://host/a/b', 'n': 3}
    """
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, item in value.items():
            name = without_local_paths(key)
            while name in found:  # two paths end in one name
                name += "+"
            found[name] = without_local_paths(item)
        return found
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if (Path(value).is_absolute() or value.startswith("../")) and not _IS_LONGER.search(value):
        return Path(value).name  # its folders may have spaces in their names
    return _INSIDE_TEXT.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], value)
