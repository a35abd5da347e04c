"""Judges gates on what took no part in choosing them, with one loaded model.

    python studies/results_judge.py PART MODEL SELECTION REST BATCH NAME ...

in the study's folder. A gate that has been judged is not judged again. Every run is what `lmms_eval --model
gated_vlm --tasks scenes --log_samples` writes, restricted to the first REST documents of each split's evaluation
subset (random gates: to the first SELECTION documents of its selection subset).
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

_POINT = ("lam", "norm", "site", "value", "stderr", "documents")


def main(part: str, model: str, selection: int, rest: int, batch: int, names: Sequence[str]) -> None:
    """Judge every gate that is not judged yet."""
    from truthgate_eval.harness.evaluator import EvaluatorConfig
    from truthgate_eval.harness.lmms_eval.evaluator import LmmsEvalEvaluator

    gates = {name: gate(part, name) for name in names}
    limits: dict[Split, float | None] = {SELECTION: selection, TEST: rest}
    folder = SweepStore(Path(f"judged-{part}"), {"model": model, "limits": limits, "batch": batch})
    config = EvaluatorConfig(
        ["scenes"], "acc", {"pretrained": model, "dtype": "bfloat16"}, limits, batch_size=batch, device="cpu"
    )
    artifact = TruthScores.load(Path(f"sweep-{part}-scenes-post.npz"))
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


def gate(part: str, name: str) -> GateConfig:
    """A run's gate: none, random, or what a sweep chose for its reading."""
    if name == "vanilla":
        return GateConfig.parse("none", modality="image")
    kind, *rest = name.split("-")
    if kind == "random":
        return GateConfig.parse(f"random:{rest[0]}", site=rest[1], modality="image")
    if kind == "shuffled":
        return _shuffled(part, int(rest[0]))
    if name.endswith("-best"):
        name = best_reading(part, name.removesuffix("-best"))
    source, probed, gated = name.rsplit("-", 2)
    file = Path(f"sweep-{part}-{source}-{probed}.npz")
    return candidate_gate(TruthScores.load(file), str(file), choice(points(part, source, probed), gated))


def _shuffled(part: str, seed: int) -> GateConfig:
    """The child's own scores dealt out anew among the heads of each layer, as strong a gate as the paper's reading.

    The random gate of the ablation draws from [-1, 1], which is much stronger than any gate of scores.
    """
    file = Path(f"sweep-{part}-scenes-post.npz")
    scores = np.random.default_rng(seed).permuted(TruthScores.load(file).scores, axis=1)
    dealt = TruthScores(scores, metadata={"site": "post"})
    return candidate_gate(dealt, f"{file}, shuffled:{seed}", choice(points(part, "scenes", "post"), "post"))


def best_reading(part: str, source: str, folder: Path = Path()) -> str:
    """The reading whose choice did best where gates are chosen, as `SOURCE-PROBED-GATED`; the first of equals."""
    values = {}
    for reading in READINGS:
        probed, gated = reading.split("-")
        values[f"{source}-{reading}"] = choice(points(part, source, probed, folder), gated).value
    return max(values, key=lambda name: values[name])


def points(part: str, source: str, probed: str, folder: Path = Path()) -> list[Candidate]:
    """Every setting that a sweep tried."""
    file = folder / f"sweep-{part}-{source}-{probed}.sweep" / "points.jsonl"
    records: list[dict[str, Any]] = [record for _, record in read_json_lines(file, _POINT)]
    return [Candidate(**{name: record[name] for name in _POINT}) for record in records]


def choice(tried: Sequence[Candidate], gated: str) -> Candidate:
    """The best setting at a site that strengthens truthful heads.

    A sweep by itself may choose the vanilla model, or a negative lam, which strengthens the other heads. Neither
    is the method, whose gates have a lam above 0.
    """
    return best_candidate([point for point in tried if point.site == gated and point.lam > 0])


if __name__ == "__main__":
    from loguru import logger

    logger.remove()  # lmms-eval's own log of every evaluation
    logger.add(sys.stderr, level="WARNING", format="{level}: {message}")
    logging.basicConfig(level=logging.WARNING)
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), names=sys.argv[6:])
