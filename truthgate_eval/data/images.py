"""Images: found by name in the user's folders, and opened."""

from __future__ import annotations

import filecmp
import os
import posixpath
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from truthgate_eval.errors import DataError, first_line

if TYPE_CHECKING:
    from PIL import Image

# Of images that Pillow and the data sets' `imagefolder` read.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif",
    ".tiff", ".jp2", ".ppm", ".pgm",
)  # fmt: skip
# COCO's number stands at the end of a name in every release: COCO_val2014_000000310196, 000000310196.
_COCO_NUMBER = re.compile(r"(?:^|_)(\d{12})$")
# Folders of COCO's releases. In another folder, 000000000001.png is some other image.
_COCO_FOLDER = re.compile(r"(?:ms)?coco|images?|(?:train|val|test|unlabeled)(?:20\d\d)?", re.IGNORECASE)
_MAX_NAMES = 5  # of missing images in a message


class ImageFolders:
    """The images in some folders and their subfolders, by name.

    A name with folders, such as `2024/a.png`, is that of a file whose path ends so. A name without its suffix
    or with another one is found as well, and names are equal in every Unicode normalization.

    An image of COCO is found by its name in any release: `COCO_val2014_000000310196.jpg`, `000000310196.jpg`
    and the bare number 310196 are the same photograph.

    Raises:
        DataError: A folder does not exist.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = [Path(folder) for folder in folders]
        self._roots: dict[Path, Path] = {}  # the folder of `folders` that has each image
        self._names: dict[str, list[Path]] = {}
        self._stems: dict[str, list[Path]] = {}
        self._coco: dict[int, list[Path]] = {}
        for folder in self.folders:
            if not folder.is_dir():
                raise DataError(f"no folder of images at {folder}")
            self._index(folder)

    def __len__(self) -> int:
        return len(self._roots)

    def find(self, name: str) -> Path | None:
        """The path of the image with that name or COCO number, or None.

        Args:
            name: A file name or a COCO number, with as many of its folders as are known. An absolute path may
                be that of another machine: there, one of `folders` stands for some folder above the image.

        Raises:
            DataError: Different images have that name.
        """
        candidates = self._candidates(name)
        if len(candidates) > 1:
            raise _ambiguous_names({name: candidates})
        return candidates[0] if candidates else None

    def find_all(self, names: Iterable[str]) -> tuple[dict[str, Path], list[str]]:
        """Paths by name, and the names that were not found, without duplicates and in order.

        Raises:
            DataError: Different images have one of the names; the message has all such names.
        """
        candidates = {name: self._candidates(name) for name in dict.fromkeys(names)}
        ambiguous = {name: paths for name, paths in candidates.items() if len(paths) > 1}
        if ambiguous:
            raise _ambiguous_names(ambiguous)
        found = {name: paths[0] for name, paths in candidates.items() if paths}
        return found, [name for name, paths in candidates.items() if not paths]

    def _index(self, folder: Path) -> None:
        for parent, folders, files in os.walk(folder):
            folders.sort()
            for file in sorted(files):
                stem, suffix = os.path.splitext(_normalize(file))
                path = Path(parent, file).absolute()
                if suffix.lower() not in IMAGE_SUFFIXES or path in self._roots:
                    continue
                self._roots[path] = folder.absolute()
                self._names.setdefault(stem + suffix, []).append(path)
                self._stems.setdefault(stem, []).append(path)
                if match := _COCO_NUMBER.search(stem):
                    self._coco.setdefault(int(match[1]), []).append(path)

    def _candidates(self, name: str) -> list[Path]:
        """The different images of that name: files with equal content count as one."""
        given = PurePath(posixpath.normpath(name))
        wanted = PurePath(_normalize(str(given)))
        file = wanted.name
        stem, suffix = os.path.splitext(file)
        if suffix.lower() not in IMAGE_SUFFIXES:
            stem, suffix = file, ""
        for paths in (self._names.get(file, []), self._stems.get(stem, [])):
            matching = self._with_folders(wanted, paths)
            if matching:
                return _different(_exact(given, matching))
        number = _coco_number(stem, bare=not suffix)
        if number is None or not _COCO_FOLDER.fullmatch(wanted.parent.name or "coco"):
            return []
        releases = self._coco.get(number, [])
        return _different([path for path in releases if path.name == releases[0].name])

    def _with_folders(self, wanted: PurePath, paths: Sequence[Path]) -> list[Path]:
        """Those of the paths that are in the folders which the wanted name has."""
        folders = _folders(wanted)
        if not wanted.is_absolute():
            return [path for path in paths if _ends_with(_folders(path), folders)]
        lengths = {}
        for path in paths:
            if _folders(path) == folders:
                return [path]
            own = _folders(path.relative_to(self._roots[path]))
            if _ends_with(folders, own):
                lengths[path] = len(own)
        return [path for path, length in lengths.items() if length == max(lengths.values())]


def _normalize(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folders(path: PurePath) -> tuple[str, ...]:
    """Names of the folders that a path goes through, without the root and `..`."""
    parts = path.parent.parts
    return tuple(_normalize(part) for part in parts if part not in (path.anchor, "..", "."))


def _ends_with(folders: Sequence[str], end: Sequence[str]) -> bool:
    return len(end) <= len(folders) and list(folders[len(folders) - len(end) :]) == list(end)


def _exact(given: PurePath, paths: list[Path]) -> list[Path]:
    """The files with that very name if there are any: some file systems hold it in two normalizations."""
    return [path for path in paths if path.name == given.name] or paths


def _different(paths: list[Path]) -> list[Path]:
    """The paths without those whose content is that of an earlier one."""
    different: list[Path] = []
    for path in paths:
        if not different or (
            path.is_file() and not any(filecmp.cmp(path, other, shallow=False) for other in different)
        ):
            different.append(path)
    return different


def _coco_number(stem: str, *, bare: bool) -> int | None:
    """COCO's number in a name; in a bare one, without a suffix, also without its leading zeros."""
    match = _COCO_NUMBER.search(stem)
    if match:
        return int(match[1])
    return int(stem) if bare and stem.isascii() and stem.isdigit() else None


def _ambiguous_names(candidates: Mapping[str, Sequence[Path]]) -> DataError:
    shown = [f"{name} ({' and '.join(map(str, paths[:2]))})" for name, paths in candidates.items()]
    return DataError(
        f"{len(shown)} image names are those of different images: {shorten_names(shown)}; "
        "write each name with its folder, or give only the folder that is meant"
    )


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

    Every image file that this package reads is opened here, so that all commands see the same pixels, which
    are those of transformers' `load_image`: EXIF's orientation is applied, transparency is dropped, values
    above 255 become 255, and an animation is its first frame.

    Args:
        path: The file.
        min_side: Lets a JPEG file be decoded at a reduced size, which is faster, with no side below this.

    Raises:
        DataError: The file is missing, is not an image, is truncated, or has more pixels than Pillow's limit.
    """
    from PIL import Image, ImageOps

    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise DataError(f"cannot read the image {path}: it is no regular file")
        with raise_on_unsound_files(), Image.open(path, formats=image_formats()) as image:
            if min_side is not None:
                image.draft("RGB", (min_side, min_side))
            ImageOps.exif_transpose(image, in_place=True)
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"no image at {path}: prepare the data set again where the images are") from error
    except DataError:
        raise
    except Exception as error:  # of many classes: each of Pillow's formats has its own
        raise DataError(f"cannot read the image {path}: {first_line(error)}") from error


def image_formats() -> tuple[str, ...]:
    """All of Pillow's formats but EPS, for which it starts Ghostscript, and IPTC, which may hold EPS."""
    from PIL import Image

    Image.preinit()  # the most frequent formats come first
    Image.init()
    return tuple(name for name in Image.OPEN if name not in ("EPS", "IPTC"))


@contextmanager
def raise_on_unsound_files() -> Iterator[None]:
    """Let Pillow refuse truncated files, and those of more pixels than it warns of, 89 million.

    lmms-eval has truncated files filled up with gray; larger ones are decoded up to twice that number.
    """
    from PIL import Image, ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
