"""Runs on disk in both harnesses' formats, as lm-eval 0.4.13 and lmms-eval 0.7.3 write them.

Each function writes a folder that `truthgate_eval.analysis.runs.run.read_run` reads, and returns the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STAMP, LMMS_STAMP = "2026-01-02T03-04-05.678901", "20260102_030405"
PROBED = {"model": "vicuna-7b-v1.5", "task": "probe_halueval_qa", "site": "post"}
GATE = {"scores": "s.npz", "truthgate_eval": "0.1.0", "site": "post", "mode": "live", "layers": None}
LLM = {**GATE, "lam": 4.5, "norm": "centered", "sha256": "0", "probed": PROBED}
VANILLA = {"scores": "none", "truthgate_eval": "0.1.0"}
PROMPT = "\nAnswer the question using a single word or phrase."

Parsed = Sequence[str | None]  # parsed answers of one task, one per document


def random(seed: int) -> dict[str, Any]:
    """A random gate, as results files record it."""
    return {**GATE, "scores": f"random:{seed}"}


def golds(number: int) -> list[str]:
    """The right answers of all tasks: yes and no in turn."""
    return ["no" if n % 2 else "yes" for n in range(number)]


def answers(golds: Sequence[str], wrong: Sequence[int]) -> list[str | None]:
    """Right answers except for the documents in `wrong`."""
    other = {"yes": "no", "no": "yes"}
    return [other[gold] if n in set(wrong) else gold for n, gold in enumerate(golds)]


def lm_eval_run(
    folder: Path,
    parsed: Mapping[str, Parsed | Mapping[str, Parsed]],
    *,
    gate: dict[str, Any] | None = VANILLA,
    groups: dict[str, list[str]] | None = None,
    stamp: str = STAMP,
    first: int = 0,
    prompt: str = "Is it so?",
    **config: Any,
) -> Path:
    """Write a run of lm-eval, in which document n asks "how much is n + `first`?".

    Args:
        folder: Where to write.
        parsed: The parsed answers by task, or by task and filter.
        gate: The recorded gate.
        groups: The recorded groups of tasks.
        stamp: The time in the files' names.
        first: Added to the number in each question.
        prompt: The prompt of all documents.
        config: Other entries of `config` in the results file.
    """
    output = folder / "2cwrw4i0"
    output.mkdir(parents=True, exist_ok=True)
    by_filter = {
        task: given if isinstance(given, Mapping) else {"none": given} for task, given in parsed.items()
    }
    for task, filters in by_filter.items():
        lines = [
            _lm_eval_sample(task, n, n + first, said, gold, prompt, name)
            for name, given in filters.items()
            for n, (said, gold) in enumerate(zip(given, golds(len(given)), strict=True))
        ]
        write_lines(output / f"samples_{task}_{stamp}.jsonl", lines)
    documents = {task: len(next(iter(filters.values()))) for task, filters in by_filter.items()}
    results = {
        **_results(documents, groups),
        "config": {
            "model": "gated_hf", "model_args": {}, "model_dtype": "torch.float32", "model_sha": "",
            "model_name": "lmsys/vicuna-7b-v1.5", "batch_size": 1, "gen_kwargs": {}, "gate": gate, **config,
        },
        "pretty_env_info": "PyTorch version: 2.15.0+cu132\nIs debug build: False",
        "transformers_version": "5.23.0", "lm_eval_version": "0.4.13", "chat_template_sha": None,
    }  # fmt: skip
    (output / f"results_{stamp}.json").write_text(json.dumps(results))
    return folder


def _lm_eval_sample(
    task: str, doc_id: int, number: int, said: str | None, gold: str, prompt: str, filter_name: str
) -> dict[str, Any]:
    pair = [gold, said]
    document = {
        "question": f"{task}: how much is {number}?", "answer": "3", "hallucinated": gold, "prompt": prompt,
    }  # fmt: skip
    return {
        "doc_id": doc_id, "doc": document, "target": gold.capitalize(), "arguments": {"gen_args_0": {"arg_0": prompt}},
        "resps": [[f" {(said or 'hm').capitalize()}"]], "filtered_resps": [said], "filter": filter_name,
        "metrics": ["acc", "f1"], "doc_hash": str(doc_id), "prompt_hash": f"{prompt}{doc_id}", "target_hash": gold,
        "acc": float(said == gold), "f1": pair, "unparsed": pair,
    }  # fmt: skip


def lmms_eval_run(
    folder: Path,
    parsed: Mapping[str, Parsed],
    *,
    gate: dict[str, Any] | None = VANILLA,
    groups: dict[str, list[str]] | None = None,
    model: str = "llava-hf/llava-1.5-7b-hf",
    per_image: int = 4,
    stamp: str = LMMS_STAMP,
    post_prompt: str = PROMPT,
    **info: Any,
) -> Path:
    """Write a run of lmms-eval, in which yes questions are the same in all tasks, like those of POPE.

    Args:
        folder: Where to write.
        parsed: The parsed answers by task.
        gate: The recorded gate.
        groups: The recorded groups of tasks.
        model: The evaluated model.
        per_image: Number of questions about each image.
        stamp: The time in the files' names.
        post_prompt: The task's text after each question.
        info: Other entries of `model_info` in the results file.
    """
    output = folder / "llava"
    output.mkdir(parents=True, exist_ok=True)
    for task, given in parsed.items():
        lines = []
        for n, (said, gold) in enumerate(zip(given, golds(len(given)), strict=True)):
            image = f"{n // per_image:03}.jpg"
            thing = f"thing {n}" if gold == "yes" else f"{task} {n}"
            pair = [gold, said or "yes"]
            acc = {
                "score": float(pair[0] == pair[1]), "parsed": pair[1], "gold": gold, "image": image, "question_id": n,
            }  # fmt: skip
            lines.append({
                "doc_id": n, "target": gold, "filtered_resps": said or "hm", "doc_hash": "null's",
                "input_media": [image, f"/pictures/{image}"], "acc": acc, "f1": pair, "unparsed": float(said is None),
                "input": f"Is there a {thing} in the image?{post_prompt}",
            })  # fmt: skip
        write_lines(output / f"{stamp}_samples_{task}.jsonl", lines)
    kwargs = {"pre_prompt": "", "post_prompt": post_prompt}
    documents = {task: len(given) for task, given in parsed.items()}
    results = {
        **_results(documents, groups, lmms_eval_specific_kwargs={"default": kwargs, **kwargs}),
        "config": {"model": "gated_llava", "model_args": f"pretrained={model},device=cpu", "batch_size": 4},
        "lmms_eval_version": "0.7.3", "chat_template": None, "gate": gate,
        "model_info": {"pretrained": model, "dtype": "torch.float16", "sha": None, "batch_size": 4, **info},
    }  # fmt: skip
    (output / f"{stamp}_results.json").write_text(json.dumps(results))
    return folder


def only_file(folder: Path, pattern: str) -> Path:
    """The only file of a run whose name fits the pattern."""
    [file] = folder.rglob(pattern)
    return file


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The samples in a file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_lines(file: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Replace the samples in a file."""
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _results(
    documents: Mapping[str, int], groups: dict[str, list[str]] | None, **config: Any
) -> dict[str, Any]:
    """The entries that both harnesses' results files have, for numbers of documents by task."""
    return {
        "results": {task: {} for task in documents},
        "group_subtasks": {task: [] for task in documents} if groups is None else groups,
        "configs": {task: {"task": task, "metadata": {"parser": "official"}, **config} for task in documents},
        "versions": dict.fromkeys(documents, 1.0),
        "n-shot": dict.fromkeys(documents, 0),
        "n-samples": {task: {"original": 100, "effective": number} for task, number in documents.items()},
    }
