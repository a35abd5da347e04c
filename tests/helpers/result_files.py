"""Runs on disk in both hosts' formats, as lm-eval 0.4.13 and lmms-eval 0.7.3 write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STAMP, LMMS_STAMP = "2026-01-02T03-04-05.678901", "20260102_030405"
PROBED = {"model": "vicuna-7b-v1.5", "task": "probe_halueval_qa", "site": "post"}
GATE = {"scores": "s.npz", "truthgate_eval": "0.1.0", "site": "post", "mode": "live", "layers": None}
LLM = {**GATE, "lam": 4.5, "norm": "centered", "sha256": "0", "probed": PROBED}
VANILLA = {"scores": "none", "truthgate_eval": "0.1.0"}
PROMPT = "\nAnswer the question using a single word or phrase."


def random(seed: int) -> dict[str, Any]:
    return {**GATE, "scores": f"random:{seed}"}


def golds(number: int) -> list[str]:
    return ["no" if n % 2 else "yes" for n in range(number)]


def answers(golds: Sequence[str], wrong: Sequence[int]) -> list[str | None]:
    """Right answers but for those at `wrong`."""
    other = {"yes": "no", "no": "yes"}
    return [other[gold] if n in set(wrong) else gold for n, gold in enumerate(golds)]


def lm_eval_run(
    folder: Path,
    given: dict[str, Sequence[str | None]],
    *,
    gate: dict[str, Any] | None = VANILLA,
    groups: dict[str, list[str]] | None = None,
    stamp: str = STAMP,
    first: int = 0,
    prompt: str = "Is it so?",
    **config: Any,
) -> Path:
    """Parsed answers by task; document n is about sum n + `first`, and its right answer is yes if n is even."""
    place = folder / "2cwrw4i0"
    place.mkdir(parents=True, exist_ok=True)
    for task, parsed in given.items():
        lines = []
        for n, (said, gold) in enumerate(zip(parsed, golds(len(parsed)), strict=True)):
            pair = [gold, said]
            doc = {
                "question": f"{task}: how much is {n + first}?",
                "answer": "3",
                "hallucinated": gold,
                "prompt": prompt,
            }
            lines.append({
                "doc_id": n, "doc": doc, "target": gold.capitalize(), "arguments": {"gen_args_0": {"arg_0": prompt}},
                "resps": [[f" {(said or 'hm').capitalize()}"]], "filtered_resps": [said], "filter": "none",
                "metrics": ["acc", "f1"], "doc_hash": str(n), "prompt_hash": f"{prompt}{n}", "target_hash": gold,
                "acc": float(said == gold), "f1": pair, "unparsed": pair,
            })  # fmt: skip
        _write_lines(place / f"samples_{task}_{stamp}.jsonl", lines)
    results = {
        **_results(given, groups),
        "config": {
            "model": "gated_hf", "model_args": {}, "model_dtype": "torch.float32", "model_sha": "",
            "model_name": "lmsys/vicuna-7b-v1.5", "batch_size": 1, "gen_kwargs": {}, "gate": gate, **config,
        },
        "pretty_env_info": "PyTorch version: 2.15.0+cu132\nIs debug build: False",
        "transformers_version": "5.23.0", "lm_eval_version": "0.4.13", "chat_template_sha": None,
    }  # fmt: skip
    (place / f"results_{stamp}.json").write_text(json.dumps(results))
    return folder


def lmms_eval_run(
    folder: Path,
    given: dict[str, Sequence[str | None]],
    *,
    gate: dict[str, Any] | None = VANILLA,
    groups: dict[str, list[str]] | None = None,
    model: str = "llava-hf/llava-1.5-7b-hf",
    per_picture: int = 4,
    stamp: str = LMMS_STAMP,
    post_prompt: str = PROMPT,
    **info: Any,
) -> Path:
    """The same for pictures: yes questions are the same in all tasks, as POPE's are."""
    place = folder / "llava"
    place.mkdir(parents=True, exist_ok=True)
    for task, parsed in given.items():
        lines = []
        for n, (said, gold) in enumerate(zip(parsed, golds(len(parsed)), strict=True)):
            image = f"{n // per_picture:03}.jpg"
            thing = f"thing {n}" if gold == "yes" else f"{task} {n}"
            pair = [gold, said or "yes"]
            acc = {
                "score": float(pair[0] == pair[1]),
                "parsed": pair[1],
                "gold": gold,
                "image": image,
                "question_id": n,
            }
            lines.append({
                "doc_id": n, "target": gold, "filtered_resps": said or "hm", "doc_hash": "null's",
                "input_media": [image, f"/pictures/{image}"], "acc": acc, "f1": pair, "unparsed": float(said is None),
                "input": f"Is there a {thing} in the image?{post_prompt}",
            })  # fmt: skip
        _write_lines(place / f"{stamp}_samples_{task}.jsonl", lines)
    kwargs = {"pre_prompt": "", "post_prompt": post_prompt}
    results = {
        **_results(given, groups, lmms_eval_specific_kwargs={"default": kwargs, **kwargs}),
        "config": {"model": "gated_llava", "model_args": f"pretrained={model},device=cpu", "batch_size": 4},
        "lmms_eval_version": "0.7.3", "chat_template": None, "gate": gate,
        "model_info": {"pretrained": model, "dtype": "torch.float16", "sha": None, "batch_size": 4, **info},
    }  # fmt: skip
    (place / f"{stamp}_results.json").write_text(json.dumps(results))
    return folder


def only(folder: Path, pattern: str) -> Path:
    """The one file of a run whose name fits."""
    [file] = folder.rglob(pattern)
    return file


def _results(given: dict[str, Any], groups: dict[str, list[str]] | None, **config: Any) -> dict[str, Any]:
    return {
        "results": {task: {} for task in given},
        "group_subtasks": {task: [] for task in given} if groups is None else groups,
        "configs": {task: {"task": task, "metadata": {"parser": "official"}, **config} for task in given},
        "versions": dict.fromkeys(given, 1.0),
        "n-shot": dict.fromkeys(given, 0),
        "n-samples": {task: {"original": 100, "effective": len(rows)} for task, rows in given.items()},
    }


def _write_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
