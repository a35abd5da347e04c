"""lmms-eval's requests as questions with pictures, and its generation settings as transformers' own.

The tuples are those of lmms-eval's simple interface (HOSTS.md, "Requests").
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image, ImageFile

from truthgate_eval.errors import DataError, ModelError, TaskError, TruthGateError

log = logging.getLogger(__name__)

T = TypeVar("T")
_MAX_NEW_TOKENS = 1024
# The host adds this one to every task that names none; its own models do not stop at it.
_HOST_UNTIL = "\n\n"
_SAMPLING = {"temperature": float, "top_p": float, "top_k": int}
_SEARCH = {"num_beams": int, "min_new_tokens": int, "no_repeat_ngram_size": int}
_WEIGHTS = {"repetition_penalty": float, "length_penalty": float}
_HANDLED = {"max_new_tokens", "until", "do_sample", *_SAMPLING, *_SEARCH, *_WEIGHTS}


@dataclass(frozen=True, eq=False)
class ImageRequest:
    """One request: a text, and where its document and pictures are.

    Attributes:
        text: What is asked.
        visual: Gives the document's pictures; None for a request without a document.
        document: Reads the document; pictures are decoded here, so only when they are needed.
        task: The task's name.
        doc_id: The document's number.
        answer: The answer to rate, for log-likelihoods.
    """

    text: str
    doc_to_visual: Callable[[Any], Any] | None
    document: Callable[[], Any]
    task: str
    doc_id: int
    answer: str = ""

    @property
    def where(self) -> str:
        """Names the document in messages."""
        return f"task {self.task!r}, document {self.doc_id}"

    def image_count(self) -> list[Hashable]:
        """What tells its pictures from others: the path that our own data sets have, or the pixels' hash.

        Raises:
            DataError: As `pictures`.
        """
        try:
            document = self.document()  # may decode pictures
        except Exception as error:
            raise self._unreadable(error) from error
        if isinstance(document, Mapping) and isinstance(document.get("image_path"), str):
            return [document["image_path"]]
        return [
            (picture.mode, picture.size, hashlib.sha256(picture.tobytes()).hexdigest())
            for picture in self.load_images()
        ]

    def load_images(self) -> list[Image.Image]:
        """The document's pictures, decoded.

        Raises:
            DataError: One cannot be read, or is no picture; the message names the document.
        """
        if self.doc_to_visual is None:
            return []
        try:
            with _whole_files_only():
                found = list(_flat(self.doc_to_visual(self.document())))
                for one in found:
                    if isinstance(one, Image.Image):
                        one.load()  # until now a file may only have been opened
        except Exception as error:
            raise self._unreadable(error) from error
        other = next((one for one in found if not isinstance(one, Image.Image)), None)
        if other is not None:
            raise DataError(f"{self.where}: gated models take pictures, got a {type(other).__name__}")
        return found

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"{self.where}: its picture cannot be read: {reason_of(error)}")


def generation_options(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A task's `generation_kwargs` as options of transformers' `generate`, and the texts to stop at.

    As in the host's own models a temperature above 0 means sampling, and 1024 new tokens are the most.

    Raises:
        TaskError: A setting is not of its kind.
    """
    try:
        temperature = float(settings.get("temperature") or 0)
        options: dict[str, Any] = {"max_new_tokens": int(settings.get("max_new_tokens") or _MAX_NEW_TOKENS)}
        options["do_sample"] = temperature > 0
        for name, kind in (_SAMPLING | _SEARCH | _WEIGHTS).items():
            if settings.get(name) is not None:
                options[name] = kind(settings[name])
    except (TypeError, ValueError) as error:
        raise TaskError(f"generation_kwargs {dict(settings)} hold a wrong value: {error}") from error
    if not options["do_sample"]:  # unset what the checkpoint may recommend for sampling
        options |= dict.fromkeys(_SAMPLING)
    until = settings.get("until") or []
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, list | tuple) or not all(isinstance(text, str) for text in until):
        raise TaskError(f"generation_kwargs have until={until!r}, expected a text or a list of texts")
    return options, [text for text in until if text and text != _HOST_UNTIL]


def unknown_settings(settings: Mapping[str, Any]) -> list[str]:
    """The generation settings that have no effect here."""
    return sorted(set(settings) - _HANDLED)


def cut_at_stop(text: str, until: Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    for stop in until:
        text = text.split(stop, 1)[0]
    return text


def batches(keys: Sequence[Any], texts: Sequence[str], size: int) -> Iterator[list[int]]:
    """Positions in batches: equal keys together, long texts first.

    The longest come first so that a batch which does not fit in memory shows itself at the start.
    """
    groups: dict[str, list[int]] = {}
    for position in range(len(texts)):
        groups.setdefault(json.dumps(keys[position], sort_keys=True, default=str), []).append(position)
    for group in groups.values():
        group.sort(key=lambda position: -len(texts[position]))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def bisect_on_failure(
    questions: Sequence[ImageRequest], work: Callable[[Sequence[ImageRequest]], list[T]]
) -> list[T]:
    """Do a batch; where it fails, its halves, down to the document that cannot be done.

    Raises:
        ModelError: A document fails alone; the message names it.
    """
    try:
        return work(questions)
    except TruthGateError:
        raise
    except Exception as error:
        if len(questions) == 1:
            raise ModelError(f"{questions[0].where} failed: {reason_of(error)}") from error
        log.warning("a batch of %d failed (%s): trying its halves", len(questions), reason_of(error))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(questions) // 2
    return bisect_on_failure(questions[:middle], work) + bisect_on_failure(questions[middle:], work)


@contextmanager
def _whole_files_only() -> Iterator[None]:
    """Lmms-eval lets Pillow fill up truncated files with grey, for the whole process."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _flat(found: Any) -> Iterator[Any]:
    """Pictures out of the lists of lists that tasks return; None is no picture."""
    if isinstance(found, list | tuple):
        for one in found:
            yield from _flat(one)
    elif found is not None:
        yield found


def reason_of(error: Exception) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
