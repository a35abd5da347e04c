"""Annotated pictures: which objects are on each, from COCO's instances file or from JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgate_eval.errors import DataError
from truthgate_eval.files import read_json_lines


@dataclass(frozen=True)
class AnnotatedImage:
    """A picture and the names of the objects on it, each once."""

    image: str
    objects: tuple[str, ...]


def read_annotations(file: Path) -> list[AnnotatedImage]:
    """Annotated pictures from COCO's instances JSON, or from JSON lines of image and objects.

    Raises:
        DataError: The file is neither, or names a picture twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the annotations {file}: {error}") from error
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        whole = None  # several lines of JSON, or none at all: the reader of lines will say
    if isinstance(whole, dict) and "images" in whole:
        pictures = _from_coco(file, whole)
    else:
        pictures = [
            AnnotatedImage(str(record["image"]), _objects(record["objects"], f"{file}, line {number}"))
            for number, record in read_json_lines(file, ("image", "objects"))
        ]
    twice = [name for name, times in Counter(picture.image for picture in pictures).items() if times > 1]
    if twice:
        raise DataError(f"{file} lists {len(twice)} pictures more than once, such as {twice[0]}")
    if not pictures:
        raise DataError(f"{file} has no pictures")
    return pictures


def _objects(given: Any, where: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(name, str) and name.strip() for name in given):
        raise DataError(f"{where}: objects is not a list of names")
    return tuple(dict.fromkeys(name.strip() for name in given))


def _from_coco(file: Path, whole: Mapping[str, Any]) -> list[AnnotatedImage]:
    try:
        names = {category["id"]: str(category["name"]) for category in whole["categories"]}
        objects: dict[Any, dict[str, None]] = {image["id"]: {} for image in whole["images"]}
        for annotation in whole["annotations"]:
            objects[annotation["image_id"]][names[annotation["category_id"]]] = None
        return [
            AnnotatedImage(str(image["file_name"]), tuple(objects[image["id"]])) for image in whole["images"]
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"{file} is not COCO's instances file: {error!r}") from error
