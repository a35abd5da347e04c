"""Where the images of lmms-eval's questions come from, known before any is decoded.

A document that names its image's file, in one of this package's tasks, has the image that the file has. A
data set of `datasets` may hold encoded images, of which many documents have equal ones. What another task's
function makes of a document is known only when it has run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import datasets
from PIL import Image

from truthgate_eval.harness.lmms_eval import tasks
from truthgate_eval.harness.lmms_eval.requests import ImageRequest

ImageKeys = tuple[Hashable, ...]

# Decoded images of data sets that are kept: documents with equal ones are read one after another. And splits
# whose stored images can be read: a sweep makes a new one for every gate.
_DECODED, _SPLITS = 8, 32


class ImageSources:
    """Reads the images of questions; an encoded image that several documents have is decoded once.

    Questions about one image must be read one after another: see `parts`.
    """

    def __init__(self) -> None:
        # The split without decoding, and its columns of images, by the identity of the split.
        self._splits: dict[int, tuple[Any, Any, dict[str, datasets.Image]]] = {}
        self._decoded: dict[Hashable, Image.Image] = {}
        self._keys: dict[Hashable, ImageKeys] = {}

    def parts(self, questions: Sequence[ImageRequest], num_images: int) -> Iterator[list[int]]:
        """Indices of the questions in parts; those about one source are neighbours, and in one part.

        Args:
            questions: The questions.
            num_images: The most sources of a part.
        """
        by_source: dict[Hashable, list[int]] = {}
        for i, question in enumerate(questions):
            source = None if question.doc_to_visual is None else self._stored(question)
            # Without a known source, and with images, a question's are its own.
            own = ("question", i) if source is None and question.doc_to_visual is not None else source
            by_source.setdefault(own, []).append(i)
        sources = list(by_source.values())
        for start in range(0, len(sources), num_images):
            yield [i for source in sources[start : start + num_images] for i in source]

    def file(self, question: ImageRequest) -> Hashable | None:
        """The image file that a question is about, as it is now; None where the task may show another."""
        visual = question.doc_to_visual
        config = getattr(getattr(visual, "__self__", None), "config", None)  # of lmms-eval's task
        if tasks.doc_to_visual not in (visual, getattr(config, "doc_to_visual", None)):
            return None
        path = question.document().get("image_path")
        if not isinstance(path, str):
            return None
        try:
            status = os.stat(path)
        except OSError:  # reading it says why
            return None
        return path, status.st_mtime_ns, status.st_size

    def keys(
        self, question: ImageRequest, identify: Callable[[Sequence[Image.Image]], ImageKeys]
    ) -> ImageKeys:
        """What identifies a question's images; an image of a file is decoded for it only once.

        Args:
            question: The question.
            identify: Gives the keys of its images.

        Raises:
            DataError: As `ImageRequest.load_images`.
        """
        file = self.file(question)
        if file is None:
            return identify(self.load(question))
        if file not in self._keys:
            self._keys[file] = identify(self.load(question))
        return self._keys[file]

    def load(self, question: ImageRequest) -> list[Image.Image]:
        """A question's images, decoded.

        Raises:
            DataError: As `ImageRequest.load_images`.
        """
        return dataclasses.replace(question, document=lambda: self._document(question)).load_images()

    def _stored(self, question: ImageRequest) -> Hashable | None:
        """What a question's document has of its images, a file or encoded images; None if that is unknown."""
        return self.file(question) or self._encoded_key(question)

    def _encoded_key(self, question: ImageRequest) -> Hashable | None:
        row, columns = self._row(question)
        return tuple(_digest(row[name]) for name in columns) if columns else None

    def _row(self, question: ImageRequest) -> tuple[Any, dict[str, datasets.Image]]:
        """The document with its images as they are stored, and the columns that have them."""
        split = question.documents
        if not isinstance(split, datasets.Dataset) or split.format["type"] is not None:
            return None, {}
        if id(split) not in self._splits:
            if len(self._splits) == _SPLITS:
                del self._splits[next(iter(self._splits))]
            columns = {
                name: feature
                for name, feature in split.features.items()
                if isinstance(feature, datasets.Image) and feature.decode
            }
            stored = split
            for name in columns:
                stored = stored.cast_column(name, datasets.Image(decode=False))
            self._splits[id(split)] = split, stored, columns  # with the split, whose id another could get
        _, stored, columns = self._splits[id(split)]
        return (stored[question.doc_id], columns) if columns else (None, {})

    def _document(self, question: ImageRequest) -> Any:
        """The document as the task would read it."""
        row, columns = self._row(question)
        if not columns:
            return question.document()
        return row | {name: self._decode(feature, row[name]) for name, feature in columns.items()}

    def _decode(self, feature: datasets.Image, stored: Any) -> Image.Image | None:
        """A copy of a stored image: the task's function may draw on it."""
        if stored is None:
            return None
        key = _digest(stored)
        image = self._decoded.pop(key, None)
        if image is None:
            image = feature.decode_example(stored)
        self._decoded[key] = image
        if len(self._decoded) > _DECODED:
            del self._decoded[next(iter(self._decoded))]
        copied = image.copy()
        copied.format = image.format
        return copied


def _digest(stored: Any) -> Hashable:
    """Identifies an image as it is stored; None for no image."""
    if stored is None:
        return None
    if stored["bytes"] is None:
        return stored["path"]
    return hashlib.sha256(stored["bytes"]).digest()
