"""PhD's questions of mode icc: with a text context for language models, with an image for multimodal ones.

The context contradicts the image that the questions are about. Where the context is the knowledge, the data
set's yes and no are therefore exchanged; see `docs/method.md#probing-data`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.images import ImageFolders
from truthgate_eval.data.store import (
    PreparedDataset,
    Row,
    add_image_paths,
    copy_into_dataset,
    require_images,
    write_dataset,
)
from truthgate_eval.errors import DataError
from truthgate_eval.files import sha256
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
    for number, record in enumerate(_records(path)):
        # The file has mode ccs too: questions about generated images, without a context.
        if isinstance(record, dict) and "ccs_description" in record:
            continue
        context = _context(record, f"{path}, record {number}")
        for offset, (name, truthful) in enumerate(_QUESTIONS.items()):
            result.append(
                {
                    "row": 2 * number + offset,
                    "image_id": str(record["image_id"]),
                    "kind": str(record.get("task", "")),
                    "context": context,
                    "question": record[name],
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
    try:
        records = json.loads(path.read_bytes())
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(records, list) or not records:
        found = "an empty one" if records == [] else type(records).__name__
        raise DataError(f"{path}: expected a list of records, found {found}")
    return records


def _context(record: Any, where: str) -> str:
    fields = record if isinstance(record, dict) else {}
    missing = [name for name in ("image_id", "context", *_QUESTIONS) if fields.get(name) is None]
    if not missing and not (isinstance(record["context"], dict) and record["context"].get("icc")):
        missing = ["context.icc"]
    if missing:
        raise DataError(f"{where}: no {', '.join(missing)}, so this is not PhD's data.json")
    return str(record["context"]["icc"])


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
    from_authors = data.suffix == ".jsonl"
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
