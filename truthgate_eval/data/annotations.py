"""Images with the objects on them, from COCO's instances file or from JSON lines."""

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
    """An image and the objects on it.

    Attributes:
        image: The image's file name.
        objects: Names of the objects, without duplicates.
    """

    image: str
    objects: tuple[str, ...]


def read_annotations(file: Path) -> list[AnnotatedImage]:
    """Annotated images from COCO's instances JSON, or from JSON lines of image and objects.

    Raises:
        DataError: The file has neither format, no image, or an image twice.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the annotations {file}: {error}") from error
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        whole = None  # several lines of JSON, or no JSON, which read_json_lines reports
    if isinstance(whole, dict) and "images" in whole:
        images = _from_coco(file, whole)
    else:
        images = [
            AnnotatedImage(str(record["image"]), _objects(record["objects"], f"{file}, line {number}"))
            for number, record in read_json_lines(file, ("image", "objects"))
        ]
    duplicates = [name for name, count in Counter(image.image for image in images).items() if count > 1]
    if duplicates:
        raise DataError(f"{file} lists {len(duplicates)} images more than once, such as {duplicates[0]}")
    if not images:
        raise DataError(f"{file} has no images")
    return images


def _objects(names: Any, where: str) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise DataError(f"{where}: objects is not a list of names")
    return tuple(dict.fromkeys(name.strip() for name in names))


def _from_coco(file: Path, whole: Mapping[str, Any]) -> list[AnnotatedImage]:
    try:
        names = {category["id"]: str(category["name"]) for category in whole["categories"]}
        # Dictionaries as ordered sets.
        objects: dict[Any, dict[str, None]] = {image["id"]: {} for image in whole["images"]}
        for annotation in whole["annotations"]:
            objects[annotation["image_id"]][names[annotation["category_id"]]] = None
        return [
            AnnotatedImage(str(image["file_name"]), tuple(objects[image["id"]])) for image in whole["images"]
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"{file} is not COCO's instances file: {error!r}") from error
