"""PhD's questions of mode icc: with a text context for language models, with an image for multimodal ones.

The context contradicts the image that the questions are about. Where the context is the knowledge, the data
set's yes and no are therefore exchanged; see `docs/method.md#probing-data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.images import ImageFolders
from truthgate_eval.data.records import Record, as_text
from truthgate_eval.data.store import (
    PreparedDataset,
    Row,
    add_image_paths,
    copy_into_dataset,
    require_images,
    write_dataset,
)
from truthgate_eval.errors import DataError
from truthgate_eval.files import MAX_DATASET_BYTES, read_json, sha256
from truthgate_eval.metrics.yes_no import YES_NO, Answer
from truthgate_eval.paths import data_dir

# The truthful answer to each of a record's two questions, under the context.
_QUESTIONS: dict[str, Answer] = {"yes_question": "no", "no_question": "yes"}


def documents(phd_path: str | None = None) -> list[dict[str, Any]]:
    """Two documents for each record: its two questions, with the answers yes and no.

    `choices` is [yes, no], `target` the index of the answer that the context supports, `row` the number of
    the question in the file, from 0. Records of mode ccs have no context and are skipped.

    Args:
        phd_path: PhD's `data.json`; by default `$TRUTHGATE_DATA/phd/data.json`.

    Raises:
        DataError: The file is missing, or is not PhD's.
    """
    path = Path(str(phd_path)).expanduser() if phd_path else data_dir() / "phd" / "data.json"
    result = []
    for number, value in enumerate(_records(path)):
        # The file has mode ccs too: questions about generated images, without a context.
        if isinstance(value, dict) and "ccs_description" in value:
            continue
        record = Record(value if isinstance(value, dict) else {}, f"{path}, record {number}")
        context = _context(record)
        for offset, (name, truthful) in enumerate(_QUESTIONS.items()):
            result.append(
                {
                    "row": 2 * number + offset,
                    "image_id": str(record.identifier("image_id")),
                    "kind": record.optional_text("task") or "",
                    "context": context,
                    "question": record.text(name),
                    "choices": list(YES_NO),
                    "target": YES_NO.index(truthful),
                }
            )
    if not result:
        raise DataError(f"{path}: no record has a context, so there are no questions of mode icc")
    return result


def _records(path: Path) -> list[Any]:
    if not path.is_file():
        raise DataError(
            f"PhD's data.json is not at {path}: download it from the PhD release and give "
            '--metadata \'{"phd_path": "FILE"}\', or put it there'
        )
    records = read_json(path, most=MAX_DATASET_BYTES)
    if not isinstance(records, list) or not records:
        found = "an empty one" if records == [] else type(records).__name__
        raise DataError(f"{path}: expected a list of records, found {found}")
    return records


def _context(record: Record) -> str:
    otherwise = ", so this is not PhD's data.json"
    record.require("image_id", "context", *_QUESTIONS, otherwise=otherwise)
    context = record.fields["context"]
    if not isinstance(context, dict) or not context.get("icc"):
        raise DataError(f"{record.where}: no context.icc{otherwise}")
    return as_text(context["icc"], f"{record.where}: context.icc")


def prepare_phd(
    data: Path, images: Sequence[Path], out: Path, *, allow_missing: bool = False
) -> PreparedDataset:
    """Write `out/phd/image.parquet`, PhD's questions about images, and copy `data.json` into the same folder.

    The text task `probe_phd_text` reads the copy.

    Args:
        data: PhD's `data.json`, or the TruthProbe authors' JSON lines with PhD's questions.
        images: Folders of COCO's images of 2014 or 2017.
        out: The data folder.
        allow_missing: Leave questions about missing images out.

    Raises:
        DataError: The file is not PhD's, or images are missing.
    """
    folders = ImageFolders(images)
    from_authors = data.suffix.lower() == ".jsonl"
    rows = read_sequences(data, folders) if from_authors else list(_image_questions(data))
    found, missing = folders.find_all(row["image"] for row in rows)
    folder = out / "phd"
    require_images(found, missing, folders.folders, allow_missing=allow_missing, report_to=folder)
    kept = add_image_paths(rows, found)
    notes = [f"{len(rows) - len(kept)} of {len(rows)} questions left out"] if len(kept) < len(rows) else []
    if not from_authors:
        copy_into_dataset(data, folder / "data.json")
    source = {"file": str(data), "sha256": sha256(data), "images": [str(path) for path in folders.folders]}
    return write_dataset(folder, {"image": kept}, source=source, missing=missing, notes=notes)


def _image_questions(data: Path) -> Iterator[Row]:
    """Each record's two questions about its image."""
    for document in documents(str(data)):
        # `documents` has the answer that the context supports; the image supports the other one.
        yield {
            "row": document["row"],
            "image": document["image_id"],
            "kind": document["kind"],
            "question": document["question"],
            "choices": document["choices"],
            "target": 1 - document["target"],
        }
