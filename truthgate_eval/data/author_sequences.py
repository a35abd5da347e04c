"""The probing sequences that the TruthProbe authors publish, as JSON lines."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from truthgate_eval.data.images import PictureFolders, describe_missing, open_picture
from truthgate_eval.data.store import Row, read_json_lines
from truthgate_eval.errors import DataError
from truthgate_eval.probing.dataset import Answered, Answers, within

_COLUMNS = ("question_id", "question", "answer", "label", "image_path")


def read_sequences(path: Path, folders: PictureFolders | None = None) -> list[Row]:
    """One document a line, with the one answer of the line.

    `choices` is [answer]; `target` is [0] where the answer is truthful (label gold) and [] where it is
    hallucinated. `image` is the name under which the folders have the picture: the authors' own, or
    COCO's number.

    Args:
        path: JSON lines of question_id, question, answer, label and image_path.
        folders: Where the pictures are. One that is not there keeps the authors' name.

    Raises:
        DataError: A line is not such a sequence.
    """
    rows: list[Row] = []
    for number, record in read_json_lines(path, _COLUMNS):
        if record["label"] not in ("gold", "hallucinated"):
            raise DataError(
                f"{path}, line {number}: label {record['label']!r}, expected gold or hallucinated"
            )
        names = [str(record[name]) for name in ("image_path", "image_id") if record.get(name)]
        known = [name for name in names if folders is not None and folders.find(name)]
        rows.append(
            {
                "row": len(rows),
                "question_id": int(record["question_id"]),
                "image": (known or names)[0],
                "question": str(record["question"]),
                "choices": [str(record["answer"])],
                "target": [0] if record["label"] == "gold" else [],
            }
        )
    return rows


def file_answers(
    path: Path, folders: PictureFolders, *, limit: float | None = None, allow_missing: bool = False
) -> Answers:
    """The answers of such a file, with their pictures.

    Sequences with one question and one picture are one document: they belong on one side of a split.

    Args:
        path: See `read_sequences`.
        folders: Where the pictures are.
        limit: The first so many lines, or a fraction of them below 1.
        allow_missing: Leave sequences whose picture is missing out instead of refusing.

    Raises:
        DataError: The file is not in that format, or pictures are missing.
    """
    rows = read_sequences(path, folders)
    rows = rows[: within(limit, len(rows))]
    found, missing = folders.find_all(row["image"] for row in rows)
    if missing and not (allow_missing and found):
        hint = "; --allow-missing leaves their sequences out" if found else ", so none of them was found"
        raise DataError(describe_missing(missing, folders.folders) + hint)
    kept = [row for row in rows if row["image"] in found]
    groups: dict[Hashable, int] = {}
    items = []
    for row in kept:
        group = groups.setdefault((row["image"], row["question"]), len(groups))
        file = found[row["image"]]
        pictures = functools.partial(_open, file)
        answer, truthful = row["choices"][0], bool(row["target"])
        items.append(Answered(row["question"], answer, truthful, group, pictures, file))
    settings = {"task": path.name, "missing_pictures": len(missing)}
    return Answers(items, {path.stem: [row["row"] for row in kept]}, settings, bare=True)


def _open(path: Path) -> list[Any]:
    return [open_picture(path)]
