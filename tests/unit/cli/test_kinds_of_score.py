"""Every kind of score works with every command that takes an artifact."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from helpers.command_line import truthgate

from truthgate_eval.attribution.config import ATTRIBUTION_KINDS
from truthgate_eval.export.adapter import export_adapter
from truthgate_eval.export.output import provenance
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.probing.config import ScoreName

LEARNED = {"recommended": {"lam": 1.0, "norm": "none", "site": "post", "task": "t"}}


def save(folder: Path, kind: str) -> Path:
    """An artifact of a kind, with the arrays and the size of numbers that `truthgate probe` gives it."""
    values = np.random.default_rng(0).uniform(0.4, 0.9, (3, 4))
    metadata: dict[str, Any] = {
        "model": "some/model",
        "task": "t",
        "site": "post",
        "kind": kind,
        "score": kind,
    }
    if kind in get_args(ScoreName):
        more = {} if kind == "accuracy" else {"accuracy": values}
        return TruthScores(values, stderr=0.1 * values, auroc=values, metadata=metadata, **more).save(
            folder / f"{kind}.npz"
        )
    values = 0.01 * (values - (0 if kind in ("copy", "divergence") else 0.65))
    if kind == "learned":
        metadata |= {**LEARNED, "learned": {"chosen_epoch": [3, 4]}}
        scores = TruthScores(values, seed_scores=np.stack([values, 1.1 * values]), metadata=metadata)
    else:
        scores = TruthScores(
            values,
            stderr=0.1 * abs(values),
            metadata={**metadata, "reliability": {"all": 0.9, "within": 0.8}},
        )
    return scores.save(folder / f"{kind}.npz")


def save_allpath(folder: Path, kind: str) -> Path:
    lines = [json.dumps([[layer, head], 0.01 * (layer + head)]) for layer in range(3) for head in range(4)]
    (folder / f"{kind}.jsonl").write_text("\n".join(lines))
    return folder / f"{kind}.jsonl"


def save_retrieval(folder: Path, kind: str) -> Path:
    content = {f"{layer}-{head}": [0.01 * (layer + head)] for layer in range(3) for head in range(4)}
    (folder / f"{kind}.json").write_text(json.dumps(content))
    return folder / f"{kind}.json"


def save_adapter(folder: Path, kind: str) -> Path:
    from helpers import tiny_models

    model = tiny_models.tiny_model("llama")
    config = GateConfig.parse("random:1")
    record = provenance("some/model", None, config.describe(), "t")
    gate = config.gate(find_attention_layout(model), "m")
    return export_adapter(model, gate, folder / kind, record=record, base_model="some/model")


KINDS: dict[str, Callable[[Path, str], Path]] = {
    **dict.fromkeys((*get_args(ScoreName), *ATTRIBUTION_KINDS), save),
    "allpath": save_allpath,
    "retrieval": save_retrieval,
    "adapter": save_adapter,
}


def commands(source: Path, other: str, checkpoint: str) -> dict[str, list[str]]:
    """The arguments of every command that reads an artifact and runs no model."""
    strength = "" if source.stem in ("learned", "adapter") else ",lam=0.1,norm=centered"
    gate = ["--model_args", f"pretrained={checkpoint},scores={source}{strength}"]
    return {
        "show": ["show", str(source), "--plot", "map.png"],
        "correlate": [
            "correlate", str(source), other, "--permutations", "9", "--plot", "m.png", "--scatter", "s.png",
            "--heat-maps", "h.png", "--csv", "c.csv", "--json", "c.json",
        ],
        "report": ["report", str(source), other, "--output", "r.html", "--permutations", "9"],
        "import": ["import", str(source), "--output", "x.npz", "--model", "some/model", "--task", "t"],
        "export": ["export", *gate, "--output", "out"],
        "export checkpoint": ["export", *gate, "--output", "folded", "--format", "checkpoint"],
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_works_with_every_command(kind: str, checkpoint: str, tmp_path: Path) -> None:
    source = KINDS[kind](tmp_path, kind)
    values = np.random.default_rng(1).normal(size=(3, 4))
    other = TruthScores(values, metadata={"site": "post"}).save(tmp_path / "other.npz")
    printed = {}
    for name, arguments in commands(source, str(other), checkpoint).items():
        done = truthgate(*arguments, cwd=tmp_path)
        assert done.returncode == 0, (name, done.stderr)
        printed[name] = done.stdout
    scores, imported = TruthScores.load(source), TruthScores.load(tmp_path / "x.npz")
    assert imported.fingerprint == scores.fingerprint
    assert imported.metadata.get("kind") == scores.metadata.get("kind")
    assert imported.metadata.get("recommended") == scores.metadata.get("recommended")
    for array in ("stderr", "auroc", "accuracy", "seed_scores"):
        kept = getattr(imported, array)
        assert (kept is None) == (getattr(scores, array) is None), array
    best = float(scores.scores.max())  # printed with three digits, however small
    assert any(abs(float(x) - best) < 0.005 * best for x in re.findall(r"\d+\.\d+", printed["show"]))
    written = json.loads((tmp_path / "c.json").read_text())["members"]
    assert {member["kind"] for member in written} == {scores.metadata.get("kind"), None}
    expected = GateConfig.parse(
        str(source), **({} if kind in ("learned", "adapter") else {"lam": 0.1, "norm": "centered"})
    )
    layout = find_attention_layout(_model(checkpoint))
    again = GateConfig.parse(str(tmp_path / "out")).gate(layout, "m")
    np.testing.assert_allclose(again.values, expected.gate(layout, "m").values, atol=1e-6)
    assert not np.array_equal(again.values, np.ones((3, 4)))


def _model(checkpoint: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint)


def test_a_list_of_heads_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[[0, 1], [2, 3, -1]]")
    done = truthgate("report", "list.json", "--output", "r.html", cwd=tmp_path)
    assert done.returncode == 1 and "is a list of heads" in done.stderr and "truthgate import" in done.stderr
