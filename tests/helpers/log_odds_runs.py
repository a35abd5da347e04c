"""Runs on disk of tasks that read log-odds, as both harnesses write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers import result_files
from truthgate_eval.harness.lm_eval.tasks import score_log_odds as score_in_lm_eval


def log_odds_values(number: int = 400, *, strength: float = 1.5, seed: int = 0) -> NDArray[np.float64]:
    """Log-odds of questions whose answers are yes and no in turn; a larger strength tells them apart better."""
    is_yes = np.array([gold == "yes" for gold in result_files.golds(number)])
    noise = np.random.default_rng(seed).normal(size=number)
    return np.round(np.where(is_yes, strength / 2, -strength / 2) + noise, 3)


def lmms_eval_run(folder: Path, log_odds: Mapping[str, NDArray[np.float64]], **options: Any) -> Path:
    """Write a run of lmms-eval with four questions about each image; `options` as in `result_files`."""
    parsed = {task: ["yes" if value >= 0 else "no" for value in own] for task, own in log_odds.items()}
    result_files.lmms_eval_run(folder, parsed, **options)
    for task, own in log_odds.items():
        file = result_files.only_file(folder, f"*_samples_{task}.jsonl")
        lines = []
        for line, value in zip(result_files.read_lines(file), own, strict=True):
            del line["unparsed"]
            answer = {"log_odds": float(value), "gold": line["acc"]["gold"], "cluster": line["acc"]["image"]}
            entries = dict.fromkeys(("auroc", "acc_at_threshold", "log_loss_offset"), answer)
            resps = {"filtered_resps": [[0.5, True], [1.5, False]]}
            lines.append({**line, **resps, **entries, "yes_ratio": float(value >= 0)})
        result_files.write_lines(file, lines)
    return folder


def lm_eval_run(folder: Path, log_odds: Mapping[str, NDArray[np.float64]], **options: Any) -> Path:
    """Write a run of lm-eval, scored by the task's own function; `options` as in `result_files`."""
    parsed = {task: ["yes" if value >= 0 else "no" for value in own] for task, own in log_odds.items()}
    result_files.lm_eval_run(folder, parsed, **options)
    for task, own in log_odds.items():
        file = result_files.only_file(folder, f"samples_{task}_*.jsonl")
        lines = []
        for line, value in zip(result_files.read_lines(file), own, strict=True):
            del line["unparsed"]
            pairs = [[float(value), value >= 0], [0.0, value < 0]]
            scored = score_in_lm_eval(line["doc"], [(pairs[0][0], True), (0.0, False)])
            lines.append({**line, "resps": [[pairs[0]], [pairs[1]]], "filtered_resps": pairs, **scored})
        result_files.write_lines(file, [_plain(line) for line in lines])
    return folder


def _plain(value: Any) -> Any:
    """JSON without numpy's booleans."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return bool(value) if isinstance(value, np.bool_) else value
