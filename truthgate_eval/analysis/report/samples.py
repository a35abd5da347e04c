"""The documents of a report's sample browser: question, label, the answer of each run, and a thumbnail."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truthgate_eval.analysis.runs.methods import RunEntry
from truthgate_eval.analysis.runs.results_files import samples_file
from truthgate_eval.analysis.runs.run import Run
from truthgate_eval.analysis.runs.samples import SampleResult
from truthgate_eval.data.images import ImageFolders, open_image
from truthgate_eval.errors import DataError
from truthgate_eval.files import read_json_lines

# Longer texts are cut: a question or another field of a document, and an answer; in characters.
_LONGEST_FIELD, _LONGEST_ANSWER = 600, 400
# All texts of a page together, in characters; a page of 6 MB still opens at once.
_ALL_TEXT = 3_000_000
_THUMBNAIL_SIDE, _JPEG_QUALITY = 160, 75
# Fields of a document that are elsewhere on the page, or repeat the task.
_SHOWN_ELSEWHERE = ("question", "prompt", "hallucinated", "subset")


@dataclass
class _Document:
    """One document of one task, with the sample of every run that has it, by the run's index."""

    task: str
    samples: dict[int, SampleResult] = field(default_factory=dict)

    @property
    def first(self) -> SampleResult:
        return next(iter(self.samples.values()))

    @property
    def rank(self) -> int:
        """0 if some runs are right and others wrong, 1 if only the wording of the answers differs, else 2."""
        if len({sample.correct for sample in self.samples.values()}) > 1:
            return 0
        return 1 if len({sample.answer.strip() for sample in self.samples.values()}) > 1 else 2


def collect_samples(
    entries: Sequence[RunEntry], *, documents: int, thumbnails: int, folders: ImageFolders
) -> dict[str, Any]:
    """The documents of all runs; where not all fit, those on which runs differ come first.

    Args:
        entries: The runs.
        documents: How many documents to keep at most.
        thumbnails: How many images to embed at most.
        folders: Where to look for images that are not where the run had them.

    Returns:
        `runs` (names), `tasks` (names), `documents` in the runs' own order, `pictures` (JPEG data
        URIs), and `notes`: a sentence for everything that was left out.
    """
    found = _documents(entries)
    order = sorted(range(len(found)), key=lambda index: found[index].rank)
    fields = [_fields(entry.run) for entry in entries]
    written: dict[int, dict[str, Any]] = {}
    size = 0
    for index in order[:documents]:
        written[index] = _write_document(found[index], len(entries), fields)
        size += len(json.dumps(written[index]))
        if size > _ALL_TEXT:
            break
    notes = []
    if len(written) < len(found):
        notes.append(
            f"{len(written):,} of {len(found):,} documents are on this page: first those on which runs "
            "differ."
        )
    images = {index: found[index].first.image for index in order if index in written}
    embedded, more = _embed(images, written, thumbnails, folders)
    kept = sorted(written)
    return {
        "runs": [entry.name for entry in entries],
        "tasks": list(dict.fromkeys(found[index].task for index in kept)),
        "documents": [written[index] for index in kept],
        "pictures": embedded,
        "notes": [*notes, *more],
    }


def _documents(entries: Sequence[RunEntry]) -> list[_Document]:
    found: dict[tuple[str, str], _Document] = {}
    for number, entry in enumerate(entries):
        for name, task in entry.run.tasks.items():
            for key, sample in task.samples.items():
                found.setdefault((name, key), _Document(name)).samples[number] = sample
    return list(found.values())


def _write_document(
    document: _Document, num_runs: int, fields: Sequence[Mapping[tuple[str, int], Any]]
) -> dict[str, Any]:
    """A document as JSON; `fields` are those of each run's documents."""
    first = document.first
    answers = {
        number: {
            "text": _cut(sample.answer.strip(), _LONGEST_ANSWER),
            "right": sample.correct,
            **({"unparsed": True} if sample.unparsed else {}),
            **_hallucinated(sample),
        }
        for number, sample in document.samples.items()
    }
    about = fields[next(iter(document.samples))].get((document.task, first.doc_id), {})
    return {
        "task": document.task,
        "id": first.doc_id,
        "question": _cut(first.question.strip(), _LONGEST_FIELD),
        "label": _cut(first.gold, _LONGEST_ANSWER),
        "answers": [answers.get(number) for number in range(num_runs)],
        **({"about": about} if about else {}),
    }


def _hallucinated(sample: SampleResult) -> dict[str, list[str]]:
    """The objects that a caption makes up, each once; nothing where there are none."""
    found = sample.caption.hallucinated if sample.caption is not None else ()
    return {"hallucinated": [_cut(name, _LONGEST_ANSWER) for name in dict.fromkeys(found)]} if found else {}


def _fields(run: Run) -> dict[tuple[str, int], dict[str, str]]:
    """Other fields of lm-eval's documents, by (task run, number): such as an answer to check."""
    if run.harness != "lm-eval":  # lmms-eval does not record documents
        return {}
    about: dict[tuple[str, int], dict[str, str]] = {}
    for task in dict.fromkeys(own.task for own in run.tasks.values()):
        names = run.task_run_names(task)
        for _, sample in read_json_lines(samples_file(run.file, run.harness, task), ("doc_id", "doc")):
            fields = {
                str(name): _cut(value, _LONGEST_FIELD)
                for name, value in sample["doc"].items()
                if isinstance(value, str) and value and name not in _SHOWN_ELSEWHERE
            }
            about |= {(name, sample["doc_id"]): fields for name in names}
    return about


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} [cut: {len(text):,} characters]"


def _embed(
    images: Mapping[int, str | None],
    written: Mapping[int, dict[str, Any]],
    most: int,
    folders: ImageFolders,
) -> tuple[list[str], list[str]]:
    """Make thumbnails, and write the index of each document's thumbnail into `written`.

    Args:
        images: The image file of each document, in the order in which thumbnails are made.
        written: The documents.
        most: How many thumbnails to make at most.
        folders: Where to look for images.

    Returns:
        The thumbnails, and a sentence for everything that was left out.
    """
    documents: dict[str, list[int]] = {}
    for index, name in images.items():
        if name:
            documents.setdefault(name, []).append(index)
    embedded: list[str] = []
    missing: list[str] = []
    for name, indices in documents.items():
        if len(embedded) == most:
            break
        small = make_thumbnail(name, folders)
        if small is None:
            missing.append(name)
            continue
        for index in indices:
            written[index]["picture"] = len(embedded)
        embedded.append(small)
    notes = []
    if left := len(documents) - len(embedded) - len(missing):
        notes.append(
            f"{len(embedded):,} of {len(documents):,} images are on this page, those of documents on which "
            f"runs differ first; {left:,} are left out to keep it small (--thumbnails)."
        )
    if missing:
        notes.append(
            f"{len(missing):,} images are not where the run had them, such as {missing[0]} "
            "(--images FOLDER says where they are)."
        )
    return embedded, notes


def make_thumbnail(name: str, folders: ImageFolders) -> str | None:
    """An image as a small JPEG in a data URI; None if there is no image that can be opened."""
    content = io.BytesIO()
    try:
        # os.path takes names that are too long for the file system, which pathlib does not.
        path = Path(name) if os.path.isfile(name) else folders.find(name)
        if path is None:
            return None
        small = open_image(path, min_side=_THUMBNAIL_SIDE)
    except DataError:
        return None
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    small.save(content, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
