"""Easy-VQA: yes/no questions about one coloured shape, from the Python package `easy-vqa`.

    $TRUTHGATE_DATA/easy_vqa/{test,probe}.parquet

The package has 4,000 images of 64 x 64 pixels to train on and 1,000 to test on; a question mentions a shape
or a colour, and its words alone give the answer away more often than not. Images stay in the package.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from truthgate_eval.data.store import Row, read_source, write_dataset
from truthgate_eval.errors import DataError
from truthgate_eval.files import build_once, read_json
from truthgate_eval.paths import data_dir, packaged_file

FOLDER = "easy_vqa"
PACKAGE = "easy_vqa"
# The training images from this number on are set aside for probing: no model is trained on them.
FIRST_PROBE_IMAGE = 3000
_ANSWERS = ("yes", "no")


def easy_vqa_file(name: str) -> Path:
    """The Parquet file `test` or `probe`, written if it is missing.

    Raises:
        DataError: The package `easy-vqa` is not installed, or the data folder cannot be written.
    """
    package = _package()
    folder = data_dir() / FOLDER
    file = folder / f"{name}.parquet"
    build_once(
        folder,
        is_built=lambda: file.is_file() and read_source(folder).get("package") == str(package),
        build=lambda: write_dataset(
            folder, {"test": questions("test"), "probe": questions("probe")}, source={"package": str(package)}
        ),
        announcement=f"writing the questions of easy-VQA into {folder}",
    )
    return file


def questions(part: str, *, yes_no: bool = True) -> list[Row]:
    """The questions of a part, in the package's order.

    A row has `row`, `question_id`, `question`, `answer`, `image` (the image's name, by which
    answers are clustered) and `image_path`.

    Args:
        part: `test`; `probe`, the training images that are set aside; or `train`, the other ones.
        yes_no: Whether to leave out the questions whose answer is a shape or a colour.

    Raises:
        DataError: The package `easy-vqa` is not installed, or is not the one that is known.
    """
    split = "test" if part == "test" else "train"
    folder = _package() / "data" / split
    try:
        released = read_json(folder / "questions.json")
        rows = [
            _row(split, number, question, answer, image, folder)
            for number, (question, answer, image) in enumerate(released)
            if (answer in _ANSWERS or not yes_no) and _part(split, image) == part
        ]
    except (DataError, ValueError, TypeError) as error:
        raise DataError(f"{folder} is not easy-VQA's: {error}; reinstall easy-vqa 1.0") from error
    return [{"row": number, **row} for number, row in enumerate(rows)]


def question_only_accuracy(learned_from: Iterable[Row], rows: Sequence[Row]) -> float:
    """Accuracy of the answer that is most frequent for a question's words, whatever the image.

    Args:
        learned_from: Rows that give each question's most frequent answer.
        rows: What to answer. A question that was never seen is answered with no.

    Example:
        >>> seen = [{"question": "is it red?", "answer": answer} for answer in ("yes", "no", "no")]
        >>> question_only_accuracy(seen, seen)
        0.6666666666666666
    """
    counts: dict[str, int] = defaultdict(int)
    for row in learned_from:
        counts[row["question"]] += 1 if row["answer"] == "yes" else -1
    right = sum((counts[row["question"]] > 0) == (row["answer"] == "yes") for row in rows)
    return right / len(rows)


def _row(split: str, number: int, question: str, answer: str, image: int, folder: Path) -> Row:
    if not (isinstance(question, str) and isinstance(answer, str) and isinstance(image, int)):
        raise DataError(f"entry {number} is no question, answer and number of an image")
    (question + answer).encode()  # a lone surrogate is an error here, and not where the rows are written
    return {
        "question_id": f"{split}-{number}",
        "question": question,
        "answer": answer,
        "image": f"{split}-{image}",
        "image_path": str(folder / "images" / f"{image}.png"),
    }


def _part(split: str, image: int) -> str:
    if split == "test":
        return "test"
    return "probe" if image >= FIRST_PROBE_IMAGE else "train"


def _package() -> Path:
    package = packaged_file(PACKAGE)
    if package is None:
        raise DataError(
            "the package easy-vqa is not installed: `pip install easy-vqa` (3 MB, no further packages)"
        )
    return package.absolute()
