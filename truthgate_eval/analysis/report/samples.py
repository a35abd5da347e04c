"""The documents that a report's sample browser holds: question, label, each run's answer, a small picture."""

from __future__ import annotations

import base64
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from truthgate_eval.analysis.runs.methods import RunEntry
from truthgate_eval.analysis.runs.run import Run
from truthgate_eval.analysis.runs.samples import SampleResult
from truthgate_eval.data.images import ImageFolders

# Longer texts are cut: a question or another field of a document, an answer; in characters.
_LONGEST_FIELD, _LONGEST_ANSWER = 600, 400
# All texts of a page together; a page of 6 MB still opens at once.
_ALL_TEXT = 3_000_000
_THUMBNAIL_SIDE, _JPEG_QUALITY = 160, 75
# Fields of a document that stand elsewhere on the page, or repeat what the task says.
_SHOWN_ELSEWHERE = ("question", "prompt", "hallucinated", "subset")


@dataclass
class _Document:
    """One document of one task, with the record of every run that judged it, by the run's place."""

    task: str
    records: dict[int, SampleResult] = field(default_factory=dict)

    @property
    def first(self) -> SampleResult:
        return next(iter(self.records.values()))

    @property
    def rank(self) -> int:
        """0 where some runs are right and others wrong, 1 where only the answers' wording differs, else 2."""
        if len({record.correct for record in self.records.values()}) > 1:
            return 0
        return 1 if len({record.answer.strip() for record in self.records.values()}) > 1 else 2


def collect_samples(
    entries: Sequence[RunEntry], *, documents: int, thumbnails: int, folders: ImageFolders
) -> dict[str, Any]:
    """The documents of all runs, those on which runs differ first to be kept.

    Args:
        entries: The runs.
        documents: How many documents to keep at most.
        thumbnails: How many pictures to embed at most.
        folders: Where to look for pictures that are not where the run had them.

    Returns:
        `runs` (names), `tasks` (names), `documents` in the runs' own order, `pictures` (JPEG data
        URIs), and `notes`: a sentence for everything that was left out.
    """
    found = _documents(entries)
    order = sorted(range(len(found)), key=lambda place: found[place].rank)
    fields = [_fields(entry.run) for entry in entries]
    written: dict[int, dict[str, Any]] = {}
    used = 0
    for place in order[:documents]:
        written[place] = _written(found[place], len(entries), fields)
        used += len(json.dumps(written[place]))
        if used > _ALL_TEXT:
            break
    kept = sorted(written)
    notes = []
    if len(kept) < len(found):
        notes.append(
            f"{len(kept):,} of {len(found):,} documents are on this page: first those on which runs differ."
        )
    by_rank = [place for place in order if place in written]
    pictures, more = _embed(found, by_rank, written, thumbnails, folders)
    return {
        "runs": [entry.name for entry in entries],
        "tasks": list(dict.fromkeys(found[place].task for place in kept)),
        "documents": [written[place] for place in kept],
        "pictures": pictures,
        "notes": [*notes, *more],
    }


def _documents(entries: Sequence[RunEntry]) -> list[_Document]:
    found: dict[tuple[str, str], _Document] = {}
    for number, entry in enumerate(entries):
        for name, task in entry.run.tasks.items():
            for key, record in task.samples.items():
                found.setdefault((name, key), _Document(name)).records[number] = record
    return list(found.values())


def _written(document: _Document, runs: int, fields: Sequence[Mapping[Any, Any]]) -> dict[str, Any]:
    record = document.first
    given = {
        number: {
            "text": _cut(one.answer.strip(), _LONGEST_ANSWER),
            "right": one.correct,
            **({"unparsed": True} if one.unparsed else {}),
        }
        for number, one in document.records.items()
    }
    place = (document.task.partition(",")[0], record.doc_id)
    about = fields[next(iter(document.records))].get(place, {})
    return {
        "task": document.task,
        "id": record.doc_id,
        "question": _cut(record.question.strip(), _LONGEST_FIELD),
        "label": _cut(record.gold, _LONGEST_ANSWER),
        "answers": [given.get(number) for number in range(runs)],
        **({"about": about} if about else {}),
    }


def _fields(run: Run) -> dict[tuple[str, int], dict[str, str]]:
    """What else a document of lm-eval says, by (task, number): such as the answer that is to be judged."""
    if run.harness != "lm-eval":  # lmms-eval keeps no documents
        return {}
    about = {}
    stamp = run.file.stem.removeprefix("results_")
    for task in dict.fromkeys(name.partition(",")[0] for name in run.tasks):
        with run.file.with_name(f"samples_{task}_{stamp}.jsonl").open("rb") as lines:
            for line in lines:
                sample = json.loads(line)
                about[task, sample["doc_id"]] = {
                    str(name): _cut(value, _LONGEST_FIELD)
                    for name, value in sample["doc"].items()
                    if isinstance(value, str) and value and name not in _SHOWN_ELSEWHERE
                }
    return about


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} [cut: {len(text):,} characters]"


def _embed(
    found: Sequence[_Document],
    order: Sequence[int],
    written: Mapping[int, dict[str, Any]],
    most: int,
    folders: ImageFolders,
) -> tuple[list[str], list[str]]:
    """Small pictures of documents, in `order`, whose `picture` then is an index; and what was left out."""
    names: dict[str, list[int]] = {}
    for place in order:
        if name := found[place].first.image:
            names.setdefault(name, []).append(place)
    pictures: list[str] = []
    lost: list[str] = []
    for name, places in names.items():
        if len(pictures) == most:
            break
        small = thumbnail(name, folders)
        if small is None:
            lost.append(name)
            continue
        for place in places:
            written[place]["picture"] = len(pictures)
        pictures.append(small)
    notes = []
    if left := len(names) - len(pictures) - len(lost):
        notes.append(
            f"{len(pictures):,} of {len(names):,} pictures are on this page, those of documents on which "
            f"runs differ first; {left:,} are left out to keep it small (--thumbnails)."
        )
    if lost:
        notes.append(
            f"{len(lost):,} pictures are not where the run had them, such as {lost[0]} "
            "(--images FOLDER says where they are)."
        )
    return pictures, notes


def thumbnail(name: str, folders: ImageFolders) -> str | None:
    """A picture as a small JPEG in a data URI; None where there is no picture that can be opened."""
    path = Path(name) if Path(name).is_file() else folders.find(name)
    if path is None:
        return None
    content = io.BytesIO()
    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture.draft("RGB", (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))  # JPEGs are read in little, fast
            small = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    small.save(content, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
