"""The table of faults in docs/reliability.md, from the figures in docs/faults.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.faults.processes import ROOT
from scripts.faults.signals import Tally

PAGE, FIGURES = ROOT / "docs" / "reliability.md", ROOT / "docs" / "faults.json"
_BEGIN, _END = "<!-- scripts/faults writes from here -->\n", "<!-- to here -->\n"


def make_record(tally: Tally, minutes: float) -> dict[str, Any]:
    """What docs/faults.json says of one fault."""
    return {
        **{name: getattr(tally, name) for name in ("fault", "model", "tried", "survived", "observed")},
        "minutes": round(minutes, 1),
    }


def write_figures(settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Write records into docs/faults.json and the page.

    Args:
        settings: Versions, processor and seed. Records of earlier runs with the same ones stay, each until
            its fault is tried again; a tiny model's never take the place of a real one's.
        records: Those of this run.
    """
    known = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    same = all(known.get(name) == value for name, value in settings.items())
    kept = {one["fault"]: one for one in known["faults"]} if same else {}
    for one in records:
        if one["model"] != "tiny" or kept.get(one["fault"], one)["model"] == "tiny":
            kept[one["fault"]] = dict(one)
    figures = {**settings, "faults": list(kept.values())}
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    write_page()


def make_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The faults as a table of Markdown."""
    lines = ["| fault | model | tried | survived | seen |", "| --- | --- | --- | --- | --- |"]
    for one in records:
        counts = one["observed"].items()
        seen = "; ".join(what if count == one["tried"] else f"{what}: {count}" for what, count in counts)
        cells = (one["fault"], one["model"], one["tried"], one["survived"], seen)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "".join(f"{line}\n" for line in lines)


def make_section(found: Mapping[str, Any]) -> str:
    """What stands between the marks in the page."""
    records = found["faults"]
    tried, survived = (sum(one[name] for one in records) for name in ("tried", "survived"))
    where = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    minutes = sum(one["minutes"] for one in records)
    return (
        f"\n{tried} faults were injected, {survived} survived, in {minutes:.0f} minutes of one core of an\n"
        f"{found['processor']}, with {where}, seed {found['seed']}.\n\n{make_table(records)}\n"
    )


def read_section(text: str) -> str:
    """What the page has between the marks."""
    return text.partition(_BEGIN)[2].partition(_END)[0]


def replace_section(text: str, section: str) -> str:
    """The page with another section between its marks."""
    before, mark, rest = text.partition(_BEGIN)
    assert mark, f"{PAGE} has no mark {_BEGIN!r}"
    return before + mark + section + _END + rest.partition(_END)[2]


def write_page() -> None:
    """Write the section of the committed figures into the page."""
    found = json.loads(FIGURES.read_text(encoding="utf-8"))
    PAGE.write_text(replace_section(PAGE.read_text(encoding="utf-8"), make_section(found)), encoding="utf-8")
