"""How runs with a strength of a given divergence are named, and that random ones share a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import result_files
from helpers.leaderboards import GOOD

from truthgate_eval.analysis.runs.methods import describe_gate, make_entries
from truthgate_eval.analysis.runs.run import Run, read_run
from truthgate_eval.errors import DataError

RANDOM = {
    "kind": "random",
    "site": "post",
    "mode": "live",
    "layers": None,
    "action": "soft",
    "positions": "all",
}


def found(argument: str, target: Any = 0.05) -> dict[str, Any]:
    return {
        "strength": {
            "argument": argument,
            "target": target,
            "reached": 0.0499,
            "stderr": 0.004,
            "prompts": 64,
        }
    }


def run(folder: Path, gate: dict[str, Any]) -> Run:
    result_files.lm_eval_run(folder, {"halueval_qa": GOOD}, gate=gate)
    return read_run(folder)


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({**result_files.LLM, **found("lam")}, "lam=4.5 (kl:0.05), centered, post"),
        (
            {**RANDOM, "scores": "random:1", "lam": 0.25, "action": "select", "top": 2, **found("lam")},
            "lam=0.25 (kl:0.05), select, top=2, post",
        ),
        (
            {**RANDOM, "kind": "scores", "scores": "a", "site": "pre", "action": "shift", "alpha": 3.25, **found("alpha")},
            "shift, alpha=3.25 (kl:0.05), pre",
        ),
        (
            {"kind": "vanilla", "scores": "none", "yes_offset": 1.23456789, **found("yes_offset")},
            "yes_offset=1.23457 (kl:0.05)",
        ),
    ],
)  # fmt: skip
def test_the_divergence_stands_beside_the_number(gate: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert describe_gate(run(tmp_path / "run", gate)) == words


def test_random_gates_of_one_divergence_share_a_row(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / str(seed), {**RANDOM, "scores": f"random:{seed}", "lam": lam, **found("lam", target)})
        for seed, lam, target in ((1, 0.2, 0.05), (2, 0.3, 0.05), (3, 0.1, 0.01))
    ]
    labels = [entry.label for entry in make_entries([(None, one) for one in runs])]
    assert labels == ["random (lam=kl:0.05, post)"] * 2 + ["random (lam=kl:0.01, post)"]


def test_a_damaged_strength_is_named(tmp_path: Path) -> None:
    for n, target in enumerate(("much", None)):
        with pytest.raises(DataError, match="strength of the recorded gate is"):
            run(tmp_path / str(n), {**result_files.LLM, **found("lam", target)})
