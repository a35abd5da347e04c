"""The probing sequences that the TruthProbe authors publish, as JSON lines."""

from __future__ import annotations

from pathlib import Path

from truthgate_eval.data.images import ImageFolders
from truthgate_eval.data.store import Row
from truthgate_eval.errors import DataError
from truthgate_eval.files import read_json_lines

_COLUMNS = ("question_id", "question", "answer", "label", "image_path")


def read_sequences(path: Path, folders: ImageFolders | None = None) -> list[Row]:
    """One row for each line: a question with one answer, which is truthful or hallucinated.

    Args:
        path: JSON lines of question_id, question, answer, label and image_path; image_id is optional.
        folders: The folders of images. An image that is in none of them keeps the authors' name.

    Returns:
        Rows with `choices` [answer] and `target` [0] for a truthful answer (label gold) or [] for a
        hallucinated one. `image` is the name by which the folders have the image: the authors' own, or COCO's
        number.

    Raises:
        DataError: A line does not have this format.
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
