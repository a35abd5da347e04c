"""The probing sequences that the TruthProbe authors publish, as JSON lines."""

from __future__ import annotations

from pathlib import Path

from truthgate_eval.data.images import ImageFolders
from truthgate_eval.data.records import Record, read_records, unify_identifiers
from truthgate_eval.data.store import Row

_COLUMNS = ("question_id", "question", "answer", "label")


def read_sequences(path: Path, folders: ImageFolders | None = None) -> list[Row]:
    """One row for each line: a question with one answer, which is truthful or hallucinated.

    Args:
        path: JSON lines of question_id, question, answer, label, and image_path or image_id, or both.
        folders: The folders of images. An image that is in none of them keeps the authors' name.

    Returns:
        Rows with `choices` [answer] and `target` [0] for a truthful answer (label gold) or [] for a
        hallucinated one. `image` is the name by which the folders have the image: the authors' own, or COCO's
        number.

    Raises:
        DataError: A line does not have this format.
    """
    records = list(read_records(path))
    for record in records:
        record.require(*_COLUMNS)
    ids = unify_identifiers(record.identifier("question_id") for record in records)
    return [
        {
            "row": number,
            "question_id": question_id,
            "image": _image_name(record, folders),
            "question": record.text("question"),
            "choices": [record.text("answer", blank=True)],  # one of the published ones is empty
            "target": [0] if record.choice("label", ("gold", "hallucinated")) == "gold" else [],
        }
        for number, (record, question_id) in enumerate(zip(records, ids, strict=True))
    ]


def _image_name(record: Record, folders: ImageFolders | None) -> str:
    names = [text for name in ("image_path", "image_id") if (text := record.optional_text(name))]
    if not names:
        record.require("image_path")
        record.text("image_path")
    return next((name for name in names if folders is not None and folders.find(name)), names[0])
