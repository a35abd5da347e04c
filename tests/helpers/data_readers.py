"""Every reader of data files, with valid content: tests change that content at random.

Each reader ends in a valid object or in our own error, whatever the file holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.images import save_image
from truthgate_eval.data import halueval, phd
from truthgate_eval.data.annotations import read_annotations
from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.chair import prepare_chair, prepare_chair_poll, read_captions, read_synonyms
from truthgate_eval.data.minimal_pairs import AnswerPair, prepare_minimal_pairs, rewrite_pairs
from truthgate_eval.data.poll import prepare_poll
from truthgate_eval.data.pope import prepare_pope
from truthgate_eval.data.rlhf_v import prepare_rlhf_v
from truthgate_eval.data.store import read_rows
from truthgate_eval.metrics.pope import SPLITS

IMAGES = ("000000000001.jpg", "000000000002.jpg")
COCO = {
    "images": [{"id": n, "file_name": name} for n, name in enumerate(IMAGES)],
    "annotations": [{"image_id": n % 2, "category_id": n} for n in range(3)],
    "categories": [{"id": n, "name": name} for n, name in enumerate(("dog", "cat", "bus"))],
}
OBJECTS = [{"image": IMAGES[0], "objects": ["dog", "bus"]}, {"image": IMAGES[1], "objects": ["cat"]}]
CAPTIONS = {
    "images": COCO["images"],
    "annotations": [{"image_id": n % 2, "id": n, "caption": f"A dog and {n} cats."} for n in range(3)],
}
SEQUENCES = [
    {"question_id": n, "question": "?", "answer": "yes", "label": label, "image_path": name, "image_id": "1"}
    for n, (label, name) in enumerate(zip(("gold", "hallucinated"), IMAGES, strict=True))
]
HALUEVAL = [
    {"knowledge": "k", "question": f"q{n}", "right_answer": "r", "hallucinated_answer": "h"} for n in range(3)
]
PHD = [
    {"image_id": name.removesuffix(".jpg"), "task": "object", "yes_question": "a", "no_question": "b",
     "context": {"icc": "c"}}
    for name in IMAGES
]  # fmt: skip
POPE = [{"question_id": n, "image": name, "text": "Is it?", "label": "yes"} for n, name in enumerate(IMAGES)]
PAIRS = [{"row": n, "question": "?", "chosen": "A cat.", "rejected": "A dog."} for n in range(2)]
JOURNAL = [{**pair, "rewritten": "A bus."} for pair in PAIRS]
PREPARED = [{"row": n, "question": "?", "choices": ["A cat.", "A dog."], "target": 0} for n in range(2)]
RLHF_V = [
    {"image": {"bytes": b"content", "path": "a.jpg"}, "idx": n, "image_path": "a.jpg",
     "text": json.dumps({"question": "?", "chosen": "A cat.", "rejected": "A dog."}),
     "origin_split": json.dumps({"type": "question_answering"})}
    for n in range(2)
]  # fmt: skip


def _pope(file: Path, folder: Path) -> object:
    (folder / "questions").mkdir()
    for split in SPLITS:
        (folder / "questions" / f"coco_pope_{split}.json").write_bytes(file.read_bytes())
    options: dict[str, Any] = {"sources": ["coco"], "allow_missing": True}
    return prepare_pope(folder / "questions", [folder / "images"], folder, **options)


def _journal(file: Path, folder: Path) -> object:
    del folder
    pairs = [AnswerPair(n, "?", "A cat.", "A dog.") for n in range(2)]
    return rewrite_pairs(pairs, lambda _: "A bus.", journal=file)


def _chair(file: Path, folder: Path) -> object:
    (folder / "coco.json").write_text(json.dumps(COCO))
    (folder / "synonyms.txt").write_text("dog, puppy\ncat\nbus\n")
    options: dict[str, Any] = {"synonyms": folder / "synonyms.txt", "captions": file, "allow_missing": True}
    return prepare_chair(folder / "coco.json", [folder / "images"], folder, **options)


# By name: valid content, the suffix of its file, and the reader.
DATA_READERS: dict[str, tuple[Any, str, Callable[[Path, Path], object]]] = {
    "coco": (COCO, ".json", lambda file, _: read_annotations(file)),
    "objects": (OBJECTS, ".jsonl", lambda file, _: read_annotations(file)),
    "poll": (
        OBJECTS,
        ".jsonl",
        lambda file, folder: prepare_poll(
            file, [folder / "images"], folder, per_image=1, min_objects=1, allow_missing=True
        ),
    ),
    "chair": (CAPTIONS, ".json", _chair),
    "chair poll": (
        OBJECTS,
        ".jsonl",
        lambda file, folder: prepare_chair_poll(file, [folder / "images"], folder, allow_missing=True),
    ),
    "captions": (CAPTIONS, ".json", lambda file, _: read_captions(file)),
    "synonyms": ([["dog", "puppy"]], ".json", lambda file, _: read_synonyms(file)),
    "pope": (POPE, ".jsonl", _pope),
    "sequences": (SEQUENCES, ".jsonl", lambda file, _: read_sequences(file)),
    "halueval": (HALUEVAL, ".jsonl", lambda file, _: halueval.documents("qa", halueval_path=str(file))),
    "phd": (PHD, ".json", lambda file, _: phd.documents(str(file))),
    "phd images": (
        PHD,
        ".json",
        lambda file, folder: phd.prepare_phd(file, [folder / "images"], folder, allow_missing=True),
    ),
    "phd sequences": (
        SEQUENCES,
        ".jsonl",
        lambda file, folder: phd.prepare_phd(file, [folder / "images"], folder, allow_missing=True),
    ),
    "pairs": (PAIRS, ".jsonl", prepare_minimal_pairs),
    "journal": (JOURNAL, ".jsonl", _journal),
    "prepared pairs": (PREPARED, ".parquet", prepare_minimal_pairs),
    "prepared rows": (PREPARED, ".parquet", lambda file, _: read_rows(file)),
    "rlhf-v": (RLHF_V, ".parquet", lambda file, folder: prepare_rlhf_v(folder, parquet=file)),
    "rlhf-v sequences": (
        SEQUENCES,
        ".jsonl",
        lambda file, folder: prepare_rlhf_v(
            folder, parquet=file, images=[folder / "images"], allow_missing=True
        ),
    ),
}


def write_images(folder: Path) -> None:
    """Write the images that the valid content names."""
    for image in IMAGES:
        save_image(folder / "images" / image)
