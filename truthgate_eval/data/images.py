"""Finding the pictures that a data set names in the folders that a user has, and opening them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from truthgate_eval.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
# COCO's number stands at the end of a name in every release: COCO_val2014_000000310196, 000000310196.
_COCO_NUMBER = re.compile(r"(?:^|_)(\d{12})$")
_NAMED = 5  # missing pictures that a message names


class ImageFolders:
    """The pictures below some folders, found by name.

    A COCO picture is found under the name of any of COCO's releases: `COCO_val2014_000000310196.jpg`,
    `000000310196.jpg` and the bare number 310196 are one photograph.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = [Path(folder) for folder in folders]
        self._paths: set[Path] = set()
        self._names: dict[str, Path] = {}
        self._stems: dict[str, Path] = {}
        self._coco: dict[int, Path] = {}
        for folder in self.folders:
            if not folder.is_dir():
                raise DataError(f"no folder of pictures at {folder}")
            self._index(folder)

    def __len__(self) -> int:
        return len(self._paths)

    def find(self, name: str) -> Path | None:
        """The picture of that name or number, or None."""
        base = Path(name).name
        stem = Path(base).stem if Path(base).suffix.lower() in _SUFFIXES else base
        found = self._names.get(base) or self._stems.get(stem)
        if found is None and (number := _coco_number(stem)) is not None:
            found = self._coco.get(number)
        return found

    def find_all(self, names: Iterable[str]) -> tuple[dict[str, Path], list[str]]:
        """Where each name was found, and the names that were not, each once and in order."""
        found: dict[str, Path] = {}
        missing: list[str] = []
        for name in dict.fromkeys(names):
            path = self.find(name)
            if path is None:
                missing.append(name)
            else:
                found[name] = path
        return found, missing

    def _index(self, folder: Path) -> None:
        for parent, folders, files in os.walk(folder):
            folders.sort()
            for file in sorted(files):
                stem, suffix = os.path.splitext(file)
                if suffix.lower() not in _SUFFIXES:
                    continue
                path = Path(parent, file).absolute()
                self._paths.add(path)
                self._names.setdefault(file, path)
                self._stems.setdefault(stem, path)
                if match := _COCO_NUMBER.search(stem):
                    self._coco.setdefault(int(match[1]), path)


def _coco_number(stem: str) -> int | None:
    match = _COCO_NUMBER.search(stem)
    if match:
        return int(match[1])
    return int(stem) if stem.isascii() and stem.isdigit() else None


def describe_missing(missing: Sequence[str], folders: Sequence[Path]) -> str:
    """How many pictures are missing, where they were looked for, and the first few names."""
    where = ", ".join(str(folder) for folder in folders)
    return f"{len(missing)} pictures are not in {where}: {name_some(missing)}"


def name_some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def open_image(path: str | Path) -> Image.Image:
    """A picture in RGB.

    Raises:
        DataError: The file is missing or is not a picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"no picture at {path}: prepare the data set again where the pictures are") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"cannot read the picture {path}: {error}") from error
