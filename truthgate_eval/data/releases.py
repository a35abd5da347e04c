"""Original releases made into prepared data sets: POPE, PhD and HaluEval (RLHF-V: `rlhf_v`)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from truthgate_eval.data import halueval, phd
from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.images import PictureFolders
from truthgate_eval.data.store import (
    Prepared,
    Row,
    read_json_lines,
    replacing,
    require_pictures,
    sha256,
    with_paths,
    write_set,
)
from truthgate_eval.errors import DataError
from truthgate_eval.metrics.pope import SOURCES, SPLITS


def prepare_pope(
    questions: Path,
    images: Sequence[Path],
    out: Path,
    *,
    sources: Sequence[str] = SOURCES,
    allow_missing: bool = False,
) -> Prepared:
    """Write `out/pope/{source}_{split}.parquet` from POPE's question files, as they were released.

    Args:
        questions: The folder with `coco_pope_random.json` and its like, at any depth.
        images: Folders of pictures: COCO val2014 for `coco` and `aokvqa`, GQA's for `gqa`.
        out: The data folder.
        sources: Those of the three to prepare.
        allow_missing: Leave the questions about missing pictures out instead of refusing.

    Raises:
        DataError: A question file is missing or is not POPE's, or pictures are missing.
    """
    unknown = [source for source in sources if source not in SOURCES]
    if unknown:
        raise DataError(f"unknown source {unknown[0]!r}: expected some of {', '.join(SOURCES)}")
    paths = {
        f"{source}_{split}": _question_file(questions, source, split)
        for source in sources
        for split in SPLITS
    }
    asked = {name: _read_questions(path) for name, path in paths.items()}
    folders = PictureFolders(images)
    found, missing = folders.find_all(row["image"] for rows in asked.values() for row in rows)
    require_pictures(found, missing, folders.folders, allow_missing=allow_missing, report_to=out / "pope")
    files = {name: with_paths(rows, found) for name, rows in asked.items()}
    notes = [
        f"{name}: {len(asked[name]) - len(rows)} of {len(asked[name])} questions left out"
        for name, rows in files.items()
        if len(rows) < len(asked[name])
    ]
    source = {
        "questions": {name: {"file": str(path), "sha256": sha256(path)} for name, path in paths.items()},
        "images": [str(folder) for folder in folders.folders],
    }
    return write_set(out / "pope", files, source=source, missing=missing, notes=notes)


def prepare_phd(data: Path, images: Sequence[Path], out: Path, *, allow_missing: bool = False) -> Prepared:
    """Write `out/phd/image.parquet`, PhD's questions about pictures, and copy `data.json` beside it.

    The copy is what the text task `probe_phd_text` reads.

    Args:
        data: PhD's `data.json`, or the TruthProbe authors' JSON lines with PhD's questions.
        images: Folders of COCO's pictures of 2014 or 2017.
        out: The data folder.
        allow_missing: Leave the questions about missing pictures out instead of refusing.

    Raises:
        DataError: The file is not PhD's, or pictures are missing.
    """
    folders = PictureFolders(images)
    authors = data.suffix == ".jsonl"
    rows = read_sequences(data, folders) if authors else list(_phd_questions(data))
    found, missing = folders.find_all(row["image"] for row in rows)
    folder = out / "phd"
    require_pictures(found, missing, folders.folders, allow_missing=allow_missing, report_to=folder)
    kept = with_paths(rows, found)
    notes = [f"{len(rows) - len(kept)} of {len(rows)} questions left out"] if len(kept) < len(rows) else []
    if not authors:
        _copy(data, folder / "data.json")
    source = {"file": str(data), "sha256": sha256(data), "images": [str(path) for path in folders.folders]}
    return write_set(folder, {"image": kept}, source=source, missing=missing, notes=notes)


def prepare_halueval(folder: Path, out: Path) -> Prepared:
    """Copy HaluEval's files into `out/halueval` under their original names, checked line by line.

    Raises:
        DataError: The folder has none of them, or one is not HaluEval's.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: give the one with HaluEval's qa_data.json")
    counts: dict[str, int] = {}
    notes = []
    for task in halueval.ANSWERS:
        try:
            file = halueval.locate(task, str(folder))
        except DataError:  # a folder may have one task only; that it has none is an error below
            notes.append(f"no {task}_data.json there: {task} is not prepared")
            continue
        if file is not None:
            counts[f"{task}_data"] = sum(1 for _ in halueval.read(task, str(file)))
            _copy(file, out / "halueval" / f"{task}_data.jsonl")
    if not counts:
        raise DataError(f"{folder} has no qa_data.json, dialogue_data.json or summarization_data.json")
    return Prepared(out / "halueval", counts, notes=notes)


def _question_file(folder: Path, source: str, split: str) -> Path:
    name = f"{source}_pope_{split}.json"
    paths = sorted(folder.rglob(name))
    if not paths:
        raise DataError(f"no {name} in {folder}: it should have POPE's question files")
    if len(paths) > 1:
        raise DataError(f"{name} is in {folder} twice: {paths[0]} and {paths[1]}")
    return paths[0]


def _read_questions(path: Path) -> list[Row]:
    rows = []
    for number, record in read_json_lines(path, ("question_id", "image", "text", "label")):
        if record["label"] not in ("yes", "no"):
            raise DataError(f"{path}, line {number}: label {record['label']!r}, expected yes or no")
        rows.append(
            {
                "question_id": int(record["question_id"]),
                "image": str(record["image"]),
                "question": str(record["text"]),
                "answer": record["label"],
            }
        )
    return rows


def _phd_questions(data: Path) -> Iterator[Row]:
    """Each record's two questions about the picture; the reader of the text task checks the file."""
    for document in phd.documents(str(data)):
        # The text reader's truth is the context's; the picture's is the opposite one.
        yield {
            "row": document["row"],
            "image": document["image_id"],
            "kind": document["kind"],
            "question": document["question"],
            "choices": document["choices"],
            "target": 1 - document["target"],
        }


def _copy(source: Path, target: Path) -> None:
    if target.exists() and source.samefile(target):
        return
    with replacing(target.parent) as partial:
        shutil.copyfile(source, partial / target.name)
