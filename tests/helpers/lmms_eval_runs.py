"""Requests as lmms-eval makes them, and three small tasks on disk: generation, rounds and multiple choice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance

from helpers import tiny_vision_models as factories_vlm

TASK, SPLIT = "tiny_pictures", "test"
SETTINGS = {"max_new_tokens": 8, "temperature": 0, "do_sample": False, "until": ["\n\n"]}

UTILS = """
from PIL import Image

def doc_to_visual(doc):
    return [Image.open(path).convert("RGB") for path in doc["pictures"]]

def doc_to_text(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    ended = round_idx == 2
    return doc_to_visual(doc), f"and round {round_idx}?", ended, previous_output, {"round": round_idx}

def letters(doc, results):
    return {"letters": len(results[0])}

def rounds(doc, results):
    return {"letters": len(results[0])}

def mean(parts):
    return sum(parts) / len(parts)
"""
_COMMON = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_visual: !function tiny_pictures_utils.doc_to_visual
doc_to_text: !function tiny_pictures_utils.doc_to_text
"""
_GENERATE = """
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 6
process_results: !function tiny_pictures_utils.letters
metric_list:
  - metric: letters
    aggregation: !function tiny_pictures_utils.mean
    higher_is_better: true
"""
_CHOOSE = """
output_type: multiple_choice
doc_to_choice: ["yes", "no"]
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
TASKS = {
    TASK: "output_type: generate_until" + _GENERATE,
    "tiny_rounds": "output_type: generate_until_multi_round" + _GENERATE,
    "tiny_choice": _CHOOSE,
}


def documents(folder: Path, number: int = 8) -> list[dict[str, Any]]:
    """Questions of different lengths about no, one or two images, which are saved in the folder."""
    rows = []
    for n in range(number):
        paths = [str(folder / f"{n}_{k}.png") for k in range((1, 0, 2, 1)[n % 4])]
        for k, path in enumerate(paths):
            factories_vlm.random_image(10 * n + k, (30 + 10 * n, 60)).save(path)
        rows.append(
            {"question": f"Is there a {'very ' * (3 * n % 5)}big cat?", "pictures": paths, "answer": n % 2}
        )
    return rows


def save_tasks(folder: Path, number: int = 8) -> Path:
    """A folder for --include_path with `TASKS`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in documents(folder, number)))
    (folder / "tiny_pictures_utils.py").write_text(UTILS)
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}" + _COMMON.format(data=data) + text)
    return folder


def open_images(doc: dict[str, Any]) -> list[Any]:
    from PIL import Image

    return [Image.open(path) for path in doc["pictures"]]


def instance(kind: str, doc_id: int, *arguments: Any) -> Instance:
    metadata = {"task": TASK, "doc_id": doc_id, "repeats": 1}
    return Instance(kind, (*arguments, doc_id, TASK, SPLIT), 0, metadata)


def generate(model: Any, docs: Sequence[dict[str, Any]], settings: Any = None) -> list[str]:
    """The model's answers to these documents, in requests as lmms-eval makes them."""
    model.task_dict[TASK] = {SPLIT: list(docs)}
    requests = [
        instance(
            "generate_until", n, doc["question"], dict(settings or SETTINGS), doc.get("visual", open_images)
        )
        for n, doc in enumerate(docs)
    ]
    return model.generate_until(requests)
