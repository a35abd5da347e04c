"""The figures of docs/engines_vllm.json as a table, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.vllm_check.settings import LIMIT

PARTS = ("texts", "choices", "tensor_parallel", "pipeline_parallel")
# What runs, the gate's site, the largest difference from the live gate, and what the gate changes.
Cells = tuple[str, str, float, float]


def rows(found: Mapping[str, Any]) -> list[Cells]:
    """The rows of the parts that were measured."""
    cells: list[Cells] = []
    if "texts" in found:
        part = found["texts"]
        cells.append((f"`gated_vllm`, {part['prompts']} texts", "post", part["difference"], part["gate"]))
    if "choices" in found:
        part, choices = found["choices"], f"{found['choices']['count']} choices"
        cells.append((f"`gated_vllm`, {choices}", "pre", part["gated_vllm"], part["gate"]))
        cells.append((f"`vllm`, exported checkpoint, {choices}", "pre", part["vllm"], part["gate"]))
    if "tensor_parallel" in found:
        part, what = found["tensor_parallel"], "tiny Llama, two tensor parallel ranks"
        cells.append((what, "pre", part["pre"], part["gate"]))
        cells.append((what, "pre, then post", part["post"], part["gate"]))
    return cells


def table(found: Mapping[str, Any]) -> str:
    """The rows in Markdown."""
    header = ("what runs", "site", "largest difference", "gate")
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines += [
        f"| {what} | {site} | {difference:.1e} | {gate:.1e} |" for what, site, difference, gate in rows(found)
    ]
    return "".join(f"{line}\n" for line in lines)


def failures(found: Mapping[str, Any]) -> list[str]:
    """What should be otherwise in the parts that were measured, a line each."""
    wrong = []
    for what, site, difference, gate in rows(found):
        if not difference < LIMIT:
            wrong.append(f"{what}, {site}: differs by {difference:.1e}")
        if not gate > 0.1:
            wrong.append(f"{what}, {site}: the gate changes only {gate:.1e}")
    stages = found.get("pipeline_parallel", {"layers": [[0, 1], [2, 3]], "differ": 0})
    if stages["differ"] or stages["layers"] != [[0, 1], [2, 3]]:
        wrong.append(f"pipeline stages have folded {stages['layers']}, {stages['differ']} layers otherwise")
    texts = found.get("texts", {"differ": 0, "prefix_caching": True})
    if texts["differ"]:
        wrong.append(f"{texts['differ']} of {texts['prompts']} texts differ")
    if not texts["prefix_caching"]:
        wrong.append("prefix caching is off")
    return wrong
