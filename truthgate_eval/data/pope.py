"""POPE's nine question files, prepared as one data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from truthgate_eval.data.images import ImageFolders
from truthgate_eval.data.records import read_records, unify_identifiers
from truthgate_eval.data.store import PreparedDataset, Row, add_image_paths, require_images, write_dataset
from truthgate_eval.errors import DataError
from truthgate_eval.files import sha256
from truthgate_eval.metrics.pope import SOURCES, SPLITS
from truthgate_eval.metrics.yes_no import YES_NO


def prepare_pope(
    questions: Path,
    images: Sequence[Path],
    out: Path,
    *,
    sources: Sequence[str] = SOURCES,
    allow_missing: bool = False,
) -> PreparedDataset:
    """Write `out/pope/{source}_{split}.parquet` from POPE's question files, as they are released.

    Args:
        questions: A folder with `coco_pope_random.json` and the others, in it or in subfolders.
        images: Folders of images: COCO val2014 for `coco` and `aokvqa`, GQA for `gqa`.
        out: The data folder.
        sources: The sources of images to prepare.
        allow_missing: Leave questions about missing images out.

    Raises:
        DataError: A question file is missing or is not POPE's, or images are missing.
    """
    unknown = [source for source in sources if source not in SOURCES]
    if unknown:
        raise DataError(f"unknown source {unknown[0]!r}: expected some of {', '.join(SOURCES)}")
    paths = {
        f"{source}_{split}": _question_file(questions, source, split)
        for source in sources
        for split in SPLITS
    }
    rows = {name: _read_questions(path) for name, path in paths.items()}
    folders = ImageFolders(images)
    found, missing = folders.find_all(row["image"] for file_rows in rows.values() for row in file_rows)
    require_images(found, missing, folders.folders, allow_missing=allow_missing, report_to=out / "pope")
    files = {name: add_image_paths(file_rows, found) for name, file_rows in rows.items()}
    notes = [
        f"{name}: {len(rows[name]) - len(kept)} of {len(rows[name])} questions left out"
        for name, kept in files.items()
        if len(kept) < len(rows[name])
    ]
    source = {
        "questions": {name: {"file": str(path), "sha256": sha256(path)} for name, path in paths.items()},
        "images": [str(folder) for folder in folders.folders],
    }
    return write_dataset(out / "pope", files, source=source, missing=missing, notes=notes)


def _question_file(folder: Path, source: str, split: str) -> Path:
    name = f"{source}_pope_{split}.json"
    paths = sorted(folder.rglob(name))
    if not paths:
        raise DataError(f"no {name} in {folder}: it should have POPE's question files")
    if len(paths) > 1:
        raise DataError(f"{name} is in {folder} twice: {paths[0]} and {paths[1]}")
    return paths[0]


def _read_questions(path: Path) -> list[Row]:
    """The questions of one file, with the answer in small letters; ids are all numbers or all texts."""
    records = list(read_records(path))
    for record in records:
        record.require("question_id", "image", "text", "label")
    ids = unify_identifiers(record.identifier("question_id") for record in records)
    return [
        {
            "question_id": question_id,
            "image": record.text("image"),
            "question": record.text("text"),
            "answer": record.choice("label", YES_NO),
        }
        for record, question_id in zip(records, ids, strict=True)
    ]
