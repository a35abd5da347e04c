"""Images with the objects on them, from COCO's instances file or from JSON lines."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgate_eval.data.records import Record, as_text, read_records
from truthgate_eval.errors import DataError
from truthgate_eval.files import MAX_DATASET_BYTES, read_json


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and the objects on it.

    Attributes:
        image: The image's file name.
        objects: Names of the objects, without duplicates.
    """

    image: str
    objects: tuple[str, ...]


def read_annotations(file: Path) -> list[AnnotatedImage]:
    """Annotated images from COCO's instances JSON, or from JSON lines of image and objects.

    Both formats have their names of objects cleaned by one rule, see `clean_objects`.

    Raises:
        DataError: The file has neither format, no image, or an image twice.
    """
    whole = _whole_object(file)
    images = list(_from_lines(file) if whole is None else _from_coco(file, whole))
    duplicates = [name for name, count in Counter(image.image for image in images).items() if count > 1]
    if duplicates:
        raise DataError(f"{file} lists {len(duplicates)} images more than once, such as {duplicates[0]}")
    if not images:
        raise DataError(f"{file} has no images")
    return clean_objects(images)


def clean_objects(images: Iterable[AnnotatedImage]) -> list[AnnotatedImage]:
    """The images with one name for each object.

    Names are one object where they differ only in case, in spaces, in Unicode normalization, or in characters
    without a shape such as a zero-width space. The object has the spelling that is on most images; of equally
    frequent ones the shortest, and then the one in small letters.

    Example:
        >>> images = [AnnotatedImage("1.jpg", ("dog ", "Dog")), AnnotatedImage("2.jpg", ("Dog", "cat"))]
        >>> [image.objects for image in clean_objects(images)]
        [('Dog',), ('Dog', 'cat')]
    """
    images = list(images)
    spellings: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for image in images:
        for name in {_normalize(name) for name in image.objects}:
            spellings[_identity(name)][name] += 1
    chosen = {
        identity: max(counts, key=lambda name: (counts[name], -len(name), name))
        for identity, counts in spellings.items()
    }
    return [
        AnnotatedImage(image.image, tuple(dict.fromkeys(chosen[_identity(name)] for name in image.objects)))
        for image in images
    ]


def _normalize(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).split())


def _identity(name: str) -> str:
    """What the spellings of one object share. Without `str.casefold`, which makes ss of the German ß."""
    shown = "".join(character for character in name if unicodedata.category(character) != "Cf")
    return _normalize(_normalize(shown).lower())


def _whole_object(file: Path) -> Mapping[str, Any] | None:
    """COCO's object, or None for a file that has one record a line or a list of records."""
    try:
        whole = read_json(file, most=MAX_DATASET_BYTES)
    except DataError:
        if not file.is_file():
            raise
        return None  # several lines of JSON, or no JSON, which `read_records` reports
    return whole if isinstance(whole, dict) and "images" in whole else None


def _from_lines(file: Path) -> Iterator[AnnotatedImage]:
    for record in read_records(file):
        record.require("image", "objects")
        names = record.fields["objects"]
        if not isinstance(names, list):
            raise DataError(f"{record.where}: objects is not a list of names")
        yield AnnotatedImage(
            record.text("image"),
            tuple(as_text(name, f"{record.where}: objects is not a list of names: one") for name in names),
        )


def _from_coco(file: Path, whole: Mapping[str, Any]) -> Iterator[AnnotatedImage]:
    """The images of COCO's instances file.

    As in pycocotools, annotations of images that the file does not list are left out: files for a part of the
    images often keep the annotations of all.
    """
    names: dict[str, str] = {}
    for record in _coco_records(file, whole, "categories"):
        number, name = str(record.identifier("id")), record.text("name", blank=True)
        if names.setdefault(number, name) != name:
            raise DataError(f"{record.where}: id {number} is {names[number]!r} and {name!r}")
    images: dict[str, str] = {}
    for image in _coco_records(file, whole, "images"):
        number = str(image.identifier("id"))
        if number in images:
            raise DataError(f"{image.where}: id {number} is also that of {images[number]}")
        images[number] = image.text("file_name")
    # Dictionaries as ordered sets.
    categories: dict[str, dict[str, None]] = {number: {} for number in images}
    for annotation in _coco_records(file, whole, "annotations"):
        number = str(annotation.identifier("image_id"))
        if number in images:
            category = str(annotation.identifier("category_id"))
            if category not in names:
                raise DataError(f"{annotation.where}: no category has the id {category}")
            categories[number][category] = None
    for number, file_name in images.items():
        objects = [as_text(names[own], f"{file}: the name of category {own}") for own in categories[number]]
        yield AnnotatedImage(file_name, tuple(objects))


def _coco_records(file: Path, whole: Mapping[str, Any], name: str) -> Iterator[Record]:
    values = whole.get(name)
    if not isinstance(values, list):
        raise DataError(f"{file} is not COCO's instances file: no list of {name}")
    return (Record.of(value, f"{file}, {name}[{number}]") for number, value in enumerate(values))
