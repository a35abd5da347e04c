"""The words that docs/glossary.md replaced do not come back."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("old_vocabulary", ROOT / "scripts" / "old_vocabulary.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_public_name_or_heading_uses_a_replaced_word_without_a_reason() -> None:
    left = [f"{name}: {word}" for name, word, why in load_script().leftovers() if why is None]
    assert left == []


def test_a_replaced_word_in_a_public_name_is_found(tmp_path: Path) -> None:
    script = load_script()
    file = ROOT / "scripts" / "old_vocabulary.py"
    assert script.words("KeepTrunk_laneCount") == ["keep", "trunk", "lane", "count"]
    names = dict((name, line) for line, name in script.names_of(file))
    assert "scripts.old_vocabulary.names_of(path)" in names and "scripts.old_vocabulary.REPLACED" in names
