"""Every reader of data files, on files that were changed at random: a valid object or our own error."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from helpers.images import save_image
from helpers.mutations import change_values
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from truthgate_eval.data import halueval, phd
from truthgate_eval.data.annotations import read_annotations
from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.minimal_pairs import AnswerPair, prepare_minimal_pairs, rewrite_pairs
from truthgate_eval.data.poll import prepare_poll
from truthgate_eval.data.pope import prepare_pope
from truthgate_eval.data.rlhf_v import prepare_rlhf_v
from truthgate_eval.data.store import read_rows
from truthgate_eval.errors import TruthGateError
from truthgate_eval.metrics.pope import SPLITS

IMAGES = ("000000000001.jpg", "000000000002.jpg")
COCO = {
    "images": [{"id": n, "file_name": name} for n, name in enumerate(IMAGES)],
    "annotations": [{"image_id": n % 2, "category_id": n} for n in range(3)],
    "categories": [{"id": n, "name": name} for n, name in enumerate(("dog", "cat", "bus"))],
}
OBJECTS = [{"image": IMAGES[0], "objects": ["dog", "bus"]}, {"image": IMAGES[1], "objects": ["cat"]}]
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


# By name: valid content, the suffix of its file, and the reader.
READERS: dict[str, tuple[Any, str, Callable[[Path, Path], object]]] = {
    "coco": (COCO, ".json", lambda file, _: read_annotations(file)),
    "objects": (OBJECTS, ".jsonl", lambda file, _: read_annotations(file)),
    "poll": (
        OBJECTS,
        ".jsonl",
        lambda file, folder: prepare_poll(
            file, [folder / "images"], folder, per_image=1, min_objects=1, allow_missing=True
        ),
    ),
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

_BYTES = st.sampled_from(
    [
        b"",
        b"\xff",
        b"\0",
        b"\r",
        b"\n",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
        b"]",
        b"}",
        b",",
        b'"',
        b"[" * 200_000,
    ]
)


@st.composite
def mutated(draw: st.DrawFn, content: Any, suffix: str) -> bytes:
    """A file of that content, with values replaced or removed, and with bytes inserted, removed or cut off."""
    content = copy.deepcopy(content)
    change_values(draw, content, changes=3)
    data = _serialize(content, suffix, one_value=draw(st.booleans()))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.one_of(st.integers(start, min(start + 8, len(data))), st.just(len(data))))
        data = data[:start] + draw(_BYTES) + data[end:]
    return data


def _serialize(content: Any, suffix: str, *, one_value: bool) -> bytes:
    if suffix == ".parquet":
        sink = pyarrow.BufferOutputStream()
        try:
            rows = [row if isinstance(row, dict) else {"row": row} for row in content]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError, TypeError):
            assume(False)  # values that no Parquet file holds together
        return bytes(sink.getvalue())
    if suffix == ".json" or one_value or not isinstance(content, list):
        return json.dumps(content).encode()
    return "\n".join(json.dumps(record) for record in content).encode()


def _write(folder: Path, name: str, data: bytes) -> tuple[Path, Path]:
    for image in IMAGES:
        (folder / "images" / image).parent.mkdir(exist_ok=True)
        save_image(folder / "images" / image)
    file = folder / f"mutated{READERS[name][1]}"
    file.write_bytes(data)
    return file, folder


@pytest.mark.parametrize("name", READERS)
def test_the_unchanged_file_is_read(name: str, tmp_path: Path) -> None:
    content, suffix, reader = READERS[name]
    assert reader(*_write(tmp_path, name, _serialize(content, suffix, one_value=False)))


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)
def test_a_mutated_file_ends_in_a_valid_object_or_in_our_error(name: str, data: st.DataObject) -> None:
    content, suffix, reader = READERS[name]
    file = data.draw(mutated(content, suffix))
    with tempfile.TemporaryDirectory() as folder:
        try:
            reader(*_write(Path(folder), name, file))
        except TruthGateError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
