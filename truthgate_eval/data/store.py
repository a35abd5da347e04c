"""Prepared data sets: Parquet files in a folder inside the data folder, with their provenance.

    $TRUTHGATE_DATA/pope/coco_random.parquet, ..., prepared.json, missing_pictures.txt

Images are not copied: a row has the absolute path of its image. `prepared.json` records what the data set was
made from and what was left out.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truthgate_eval import __version__
from truthgate_eval.data.images import describe_missing
from truthgate_eval.errors import DataError
from truthgate_eval.files import read_json, update_folder
from truthgate_eval.files.parquet import iterate_rows
from truthgate_eval.paths import data_dir

if TYPE_CHECKING:
    import pyarrow

MISSING_FILE, PROVENANCE_FILE = "missing_pictures.txt", "prepared.json"

# The command that makes each data set, for error messages.
PREPARE_COMMANDS = {
    "pope": "truthgate data pope --questions DIR --images DIR",
    "poll": "truthgate data poll --images DIR --annotations FILE",
    "chair": "truthgate data chair --images DIR --annotations FILE --synonyms FILE",
    "chair_poll": "truthgate data chair-poll --images DIR --annotations FILE",
    "phd": "truthgate data phd --json data.json --images DIR",
    "rlhf_v": "truthgate data rlhf-v",
    "minimal_pairs": "truthgate data minimal-pairs",
    "halueval": "truthgate data halueval DIR",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class PreparedDataset:
    """A data set that has been written.

    Attributes:
        folder: Its folder.
        files: Number of rows by file name, without the suffix.
        missing: Names of images that were not found; their rows were left out.
        notes: Sentences for the user about what was left out.
    """

    folder: Path
    files: dict[str, int]
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prepared_file(name: str, *, data: Path | None = None) -> Path:
    """The path of a prepared file, such as that of `pope/coco_random`.

    Args:
        name: Folder and file name, without the suffix.
        data: The data folder; by default `data_dir()`.

    Raises:
        DataError: The file does not exist; the message has the command that makes it.
    """
    path = (data or data_dir()) / f"{name}.parquet"
    if path.is_file():
        return path
    command = PREPARE_COMMANDS.get(name.split("/")[0])
    how = f"make it with `{command}`" if command else "no command makes a data set of that name"
    raise DataError(f"the data set {name} is not prepared: no file {path}; {how}, or set TRUTHGATE_DATA")


def read_rows(path: Path) -> list[Row]:
    """The rows of a Parquet file, see `truthgate_eval.files.parquet.iterate_rows`."""
    return list(iterate_rows(path))


def read_source(folder: Path) -> dict[str, Any]:
    """What a data set was made from; empty where its provenance is missing or damaged."""
    try:
        found = read_json(folder / PROVENANCE_FILE)
    except DataError:
        return {}
    source = found.get("source") if isinstance(found, dict) else None
    return source if isinstance(source, dict) else {}


def write_dataset(
    folder: Path,
    files: Mapping[str, Sequence[Row]],
    *,
    source: Mapping[str, Any],
    missing: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> PreparedDataset:
    """Write a data set. Files of an older one are replaced only when all new files are complete.

    Args:
        folder: Made if it does not exist.
        files: Rows by file name, without the suffix.
        source: What the data set is made from, for `prepared.json`.
        missing: Names of images that were not found.
        notes: Sentences for the user about what was left out.

    Raises:
        DataError: A file would be empty, or the folder cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    for name, rows in files.items():
        if not rows:
            raise DataError(f"{folder.name}/{name} would be empty: nothing was written")
    counts = {name: len(rows) for name, rows in files.items()}
    with update_folder(folder) as partial:
        for name, rows in files.items():
            pyarrow.parquet.write_table(_to_table(rows), partial / f"{name}.parquet")
        if missing:
            _write_missing(partial, missing)
        else:
            (folder / MISSING_FILE).unlink(missing_ok=True)
        provenance = {
            "truthgate_eval": __version__,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "source": dict(source),
            "rows": counts,
            "missing_pictures": len(missing),
            "notes": list(notes),
        }
        (partial / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    return PreparedDataset(folder, counts, list(missing), list(notes))


def _to_table(rows: Sequence[Row]) -> pyarrow.Table:
    """The rows as a table of all their columns; `from_pylist` keeps those of the first row only."""
    import pyarrow

    columns = dict.fromkeys(name for row in rows for name in row)
    return pyarrow.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows])


def require_images(
    found: Mapping[str, Path],
    missing: Sequence[str],
    folders: Sequence[Path],
    *,
    allow_missing: bool,
    report_to: Path,
) -> None:
    """Raise an error for missing images, unless some may be missing and at least one was found.

    Args:
        found: Paths by name of the images that were found.
        missing: Names of those that were not; written to a file in `report_to` before the error is raised.
        folders: The folders that were searched.
        allow_missing: Whether some may be missing.
        report_to: The data set's folder.

    Raises:
        DataError: Images are missing.
    """
    if not missing or (allow_missing and found):
        return
    with update_folder(report_to) as partial:
        _write_missing(partial, missing)
    hint = "; --allow-missing leaves their questions out" if found else ", so none of them was found"
    raise DataError(f"{describe_missing(missing, folders)} (all in {report_to / MISSING_FILE}){hint}")


def _write_missing(folder: Path, missing: Sequence[str]) -> None:
    (folder / MISSING_FILE).write_text("".join(f"{name}\n" for name in missing), encoding="utf-8")


def add_image_paths(rows: Iterable[Row], found: Mapping[str, Path]) -> list[Row]:
    """The rows whose image was found, each with its `image_path`."""
    return [{**row, "image_path": str(found[row["image"]])} for row in rows if row["image"] in found]


def copy_into_dataset(source: Path, target: Path) -> None:
    """Copy a released file into the folder of a prepared data set, atomically."""
    if target.exists() and source.samefile(target):
        return
    with update_folder(target.parent) as partial:
        shutil.copyfile(source, partial / target.name)
