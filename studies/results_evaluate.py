"""Evaluate gates on documents that none of them was chosen on, with one loaded model.

    python studies/results_evaluate.py CHECKPOINT MODEL SELECTION TEST BATCH NAME ...

runs in the study's folder. A gate that has been evaluated is skipped. Every run is what `lmms_eval --model
gated_vlm --tasks scenes --log_samples` writes, on the first TEST documents of each task's test split (random gates:
on the first SELECTION documents of its selection split).
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from results_plan import READINGS

from truthgate_eval.data.splits import SELECTION, TEST, Split
from truthgate_eval.files import read_json_lines, write_atomic
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.sweep import Candidate, EvalResult, best_candidate, candidate_gate
from truthgate_eval.gating.sweep_store import SweepStore

if TYPE_CHECKING:
    from truthgate_eval.harness.evaluator import Evaluator

_FIELDS = ("lam", "norm", "site", "value", "stderr", "documents")


def main(checkpoint: str, model: str, selection: int, test: int, batch: int, names: Sequence[str]) -> None:
    """Evaluate every gate that has not been evaluated yet."""
    from truthgate_eval.harness.evaluator import EvaluatorConfig
    from truthgate_eval.harness.lmms_eval.evaluator import LmmsEvalEvaluator

    gates = {name: gate(checkpoint, name) for name in names}
    limits: dict[Split, float | None] = {SELECTION: selection, TEST: test}
    folder = SweepStore(Path(f"judged-{checkpoint}"), {"model": model, "limits": limits, "batch": batch})
    config = EvaluatorConfig(
        ["scenes"], "acc", {"pretrained": model, "dtype": "bfloat16"}, limits, batch_size=batch, device="cpu"
    )
    artifact = TruthScores.load(Path(f"sweep-{checkpoint}-scenes-post.npz"))
    evaluator = LmmsEvalEvaluator(artifact, "gated_vlm", config)
    for name, own in gates.items():
        split = SELECTION if name.startswith("random-") else TEST
        evaluate = functools.partial(_evaluate, evaluator, own, split)
        found = folder.test_result(name, own, evaluate)[1]
        sys.stderr.write(f"{name}: {found.value:.4f}, n = {found.documents}\n")


def _evaluate(evaluator: Evaluator, gate: GateConfig, split: Split, output: Path) -> EvalResult:
    """Evaluate, and add the group to the results file, which lmms-eval writes only for tasks that it loads itself."""
    found = evaluator.evaluate(gate, split, output)
    for file in output.rglob("*_results.json"):
        results = json.loads(file.read_bytes())
        results["group_subtasks"] = {"scenes": list(evaluator.indices)}
        write_atomic(file, json.dumps(results, indent=1).encode())
    return found


def gate(checkpoint: str, name: str) -> GateConfig:
    """The gate of a run: none, random, or the one that a sweep chose for its reading."""
    if name == "vanilla":
        return GateConfig.parse("none", modality="image")
    kind, *details = name.split("-")
    if kind == "random":
        return GateConfig.parse(f"random:{details[0]}", site=details[1], modality="image")
    if kind == "shuffled":
        return _shuffled(checkpoint, int(details[0]))
    if name.endswith("-best"):
        name = best_reading(checkpoint, name.removesuffix("-best"))
    source, probed, gated = name.rsplit("-", 2)
    file = Path(f"sweep-{checkpoint}-{source}-{probed}.npz")
    return candidate_gate(
        TruthScores.load(file), str(file), choose(candidates(checkpoint, source, probed), gated)
    )


def _shuffled(checkpoint: str, seed: int) -> GateConfig:
    """The child's own scores, shuffled among the heads of each layer: as strong a gate as the paper's reading.

    The random gate of the ablation draws from [-1, 1], which is much stronger than any gate of scores.
    """
    file = Path(f"sweep-{checkpoint}-scenes-post.npz")
    scores = np.random.default_rng(seed).permuted(TruthScores.load(file).scores, axis=1)
    shuffled = TruthScores(scores, metadata={"site": "post"})
    return candidate_gate(
        shuffled, f"{file}, shuffled:{seed}", choose(candidates(checkpoint, "scenes", "post"), "post")
    )


def best_reading(checkpoint: str, source: str, folder: Path = Path()) -> str:
    """The reading whose choice is best on the selection split, as `SOURCE-PROBED-GATED`; the first of equals."""
    values = {}
    for reading in READINGS:
        probed, gated = reading.split("-")
        values[f"{source}-{reading}"] = choose(candidates(checkpoint, source, probed, folder), gated).value
    return max(values, key=lambda name: values[name])


def candidates(checkpoint: str, source: str, probed: str, folder: Path = Path()) -> list[Candidate]:
    """All candidates of a sweep."""
    file = folder / f"sweep-{checkpoint}-{source}-{probed}.sweep" / "points.jsonl"
    return [
        Candidate(**{name: record[name] for name in _FIELDS}) for _, record in read_json_lines(file, _FIELDS)
    ]


def choose(tried: Sequence[Candidate], gated: str) -> Candidate:
    """The best candidate at a site with a lam above 0, as the method has.

    A sweep by itself can choose the vanilla model, or a negative lam, which strengthens the other heads.
    """
    return best_candidate([one for one in tried if one.site == gated and one.lam > 0])


if __name__ == "__main__":
    from loguru import logger

    logger.remove()  # lmms-eval's own log of every evaluation
    logger.add(sys.stderr, level="WARNING", format="{level}: {message}")
    logging.basicConfig(level=logging.WARNING)
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), names=sys.argv[6:])
