"""All images of a run are looked at before its first answer: a broken one costs seconds and not the run."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from datasets import Dataset
from PIL import Image

from truthgate_eval.data.images import IMAGE_SUFFIXES, image_formats, raise_on_unsound_files
from truthgate_eval.errors import DataError, first_line
from truthgate_eval.harness.lmms_eval.requests import ImageRequest

_MAX_NAMED = 50  # documents in a message
_BATCH_DOCUMENTS = 64  # whose encoded images are in memory at once
_MAX_THREADS = 8
# What a JPEG file's data ends in, which it does not contain, and the bytes at a file's end in which it must
# be: cameras write more behind it, and a thumbnail in the header has an end of its own.
_JPEG_END, _JPEG_TAIL = b"\xff\xd9", 1024
_USUAL_SIDE = 336  # of an image that every image processor takes

# Why an image of some width and height is refused, or None.
SizeCheck = Callable[[tuple[int, int]], str | None]


def check_images(questions: Iterable[ImageRequest], processor: Any) -> None:
    """Look at the images of all questions, and ask the image processor whether it takes their sizes.

    An image that documents hold encoded, or whose file they name, is looked at once, however many documents
    have it, and is not decoded: see `_is_sound`. Where that leaves a doubt, or a document has no such image,
    its images are read as for an answer, so that only what the run would stop at is reported.

    Args:
        questions: Those of the run.
        processor: The model's processor.

    Raises:
        DataError: Images cannot be read, or have a size that the image processor refuses. The message names a
            document of each.
    """
    size_check = _size_check(processor)
    documents = {
        (question.task, question.doc_id, question.doc_to_visual, id(question.documents)): question
        for question in questions
        if question.doc_to_visual is not None
    }
    with raise_on_unsound_files():
        suspects = dict.fromkeys(_find_suspects(documents.values(), size_check))
        problems = [problem for question in suspects if (problem := _problem(question, size_check))]
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        more = [f"and {len(problems) - _MAX_NAMED} more"] if len(problems) > _MAX_NAMED else []
        named = "; ".join(problems[:_MAX_NAMED] + more)
        raise DataError(f"{len(problems)} images cannot be used, nothing was answered yet: {named}")


def _find_suspects(questions: Iterable[ImageRequest], size_check: SizeCheck) -> Iterator[ImageRequest]:
    """The first question about each stored image that is not sound, and those without a stored image."""
    seen: set[Hashable] = set()
    views: dict[int, Dataset] = {}
    remaining = iter(questions)
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        while batch := list(itertools.islice(remaining, _BATCH_DOCUMENTS)):
            looked_at = []
            for question in batch:
                stored = list(_stored_images(_stored_document(question, views)))
                if not stored:
                    yield question
                for image in stored:
                    key = image if isinstance(image, str) else hashlib.sha256(image).digest()
                    if key not in seen:
                        seen.add(key)
                        looked_at.append((question, pool.submit(_is_sound, image, size_check)))
            yield from (question for question, sound in looked_at if not sound.result())


def _stored_document(question: ImageRequest, views: dict[int, Dataset]) -> Any:
    """The document with its images as they are stored, without decoding any; None if there is no such access.

    Args:
        question: The question about it.
        views: Data sets that give their stored values, by the identity of the data set.
    """
    documents = question.documents
    if isinstance(documents, Dataset):
        if id(documents) not in views:
            views[id(documents)] = documents.with_format("arrow")
        return views[id(documents)][question.doc_id].to_pylist()[0]
    return documents[question.doc_id] if isinstance(documents, list) else None


def _stored_images(value: Any) -> Iterator[str | bytes]:
    """Encoded images and paths of image files in a document, however nested."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _stored_images(part)
    elif isinstance(value, bytes):
        yield value
    elif isinstance(value, str) and value.lower().endswith(IMAGE_SUFFIXES):
        if os.path.isabs(value) or os.path.isfile(value):  # else a name, whose folder the task knows
            yield value


def _is_sound(stored: str | bytes, size_check: SizeCheck) -> bool:
    """Whether an image has a header, a size that is not refused, and all of its data; nothing is decoded."""
    try:
        with (
            open(stored, "rb") if isinstance(stored, str) else io.BytesIO(stored) as file,
            Image.open(file, formats=image_formats()) as image,
        ):
            return size_check(image.size) is None and _is_whole(image, file)
    except Exception:  # of many classes: `_problem` finds out what the run would stop at
        return False


def _is_whole(image: Image.Image, file: IO[bytes]) -> bool:
    """Whether a file's data is complete, as far as its format shows that; False where it does not."""
    if image.format == "PNG":
        image.verify()  # the checksum of every chunk
        return True
    length = file.seek(0, os.SEEK_END)
    if image.format in ("JPEG", "MPO"):
        file.seek(-min(length, _JPEG_TAIL), os.SEEK_END)
        return _JPEG_END in file.read()
    if image.format == "WEBP":
        file.seek(4)
        return length >= 8 + int.from_bytes(file.read(4), "little")
    return False


def _problem(question: ImageRequest, size_check: SizeCheck) -> str | None:
    """Why a question cannot be answered, or None."""
    try:
        images = question.load_images()
    except DataError as error:
        return str(error)
    for image in images:
        if refusal := size_check(image.size):
            size = f"{image.width} x {image.height}"
            return f"{question.where}: the model's processor takes no picture of {size} pixels: {refusal}"
    return None


def _size_check(processor: Any) -> SizeCheck:
    """The check of sizes by an image processor that can count an image's patches; others take every size."""
    count_patches = getattr(getattr(processor, "image_processor", None), "get_number_of_image_patches", None)

    def refusal(size: tuple[int, int]) -> str | None:
        assert count_patches is not None
        try:
            count_patches(size[1], size[0], {})
        except Exception as error:  # of the processor's own class
            return first_line(error)
        return None

    if count_patches is None or refusal((_USUAL_SIDE, _USUAL_SIDE)) is not None:
        return lambda _size: None
    return refusal
