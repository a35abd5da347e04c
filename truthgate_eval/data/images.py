"""Images: found by name in the user's folders, and opened."""

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
_MAX_NAMES = 5  # of missing images in a message


class ImageFolders:
    """The images in some folders and their subfolders, by name.

    An image of COCO is found by its name in any release: `COCO_val2014_000000310196.jpg`, `000000310196.jpg`
    and the bare number 310196 are the same photograph.

    Raises:
        DataError: A folder does not exist.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = [Path(folder) for folder in folders]
        self._paths: set[Path] = set()
        self._names: dict[str, Path] = {}
        self._stems: dict[str, Path] = {}
        self._coco: dict[int, Path] = {}
        for folder in self.folders:
            if not folder.is_dir():
                raise DataError(f"no folder of images at {folder}")
            self._index(folder)

    def __len__(self) -> int:
        return len(self._paths)

    def find(self, name: str) -> Path | None:
        """The path of the image with that file name or COCO number, or None."""
        file = Path(name).name
        stem = Path(file).stem if Path(file).suffix.lower() in _SUFFIXES else file
        found = self._names.get(file) or self._stems.get(stem)
        if found is None and (number := _coco_number(stem)) is not None:
            found = self._coco.get(number)
        return found

    def find_all(self, names: Iterable[str]) -> tuple[dict[str, Path], list[str]]:
        """Paths by name, and the names that were not found, without duplicates and in order."""
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
    """A message with the number of missing images, the folders, and the first few names."""
    where = ", ".join(str(folder) for folder in folders)
    return f"{len(missing)} images are not in {where}: {shorten_names(missing)}"


def shorten_names(names: Sequence[str]) -> str:
    """The first few names, and how many more there are.

    Example:
        >>> shorten_names(["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg", "g.jpg"])
        'a.jpg, b.jpg, c.jpg, d.jpg, e.jpg and 2 more'
    """
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def open_image(path: str | Path, *, min_side: int | None = None) -> Image.Image:
    """An image in RGB.

    Every image file that this package reads is opened here, so that all commands see the same pixels.

    Args:
        path: The file.
        min_side: Lets a JPEG file be decoded at a reduced size, which is faster, with no side below this.

    Raises:
        DataError: The file is missing or is not an image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if min_side is not None:
                image.draft("RGB", (min_side, min_side))
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"no image at {path}: prepare the data set again where the images are") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"cannot read the image {path}: {error}") from error
