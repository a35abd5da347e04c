"""Sections of docs/engines.md that modules of their own write: each stands between two marks."""

from __future__ import annotations

import re

_END = "<!-- to here -->"
_ANY = re.compile(rf"<!-- scripts/engines/\w+\.py writes from here -->\n.*?{re.escape(_END)}\n", re.DOTALL)


def _begin(module: str) -> str:
    return f"<!-- scripts/engines/{module}.py writes from here -->"


def all_sections(text: str) -> str:
    """Every module's section of a page, to be kept when the rest is written again."""
    return "".join(f"\n{found}" for found in _ANY.findall(text))


def read_section(text: str, module: str) -> str:
    """What a module wrote into a page."""
    return text.partition(f"{_begin(module)}\n")[2].partition(_END)[0]


def replace_section(text: str, module: str, content: str) -> str:
    """A page with another section of a module; a new one comes last.

    Args:
        text: The page.
        module: The module's name.
        content: Markdown that ends in a line break.
    """
    section = f"{_begin(module)}\n{content}{_END}\n"
    before, found, rest = text.partition(f"{_begin(module)}\n")
    if not found:
        return f"{text.rstrip()}\n\n{section}"
    return before + section + rest.partition(f"{_END}\n")[2]
