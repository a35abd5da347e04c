"""RLHF-V's question-answering samples, with their chosen and rejected answers, as a prepared data set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.images import ImageFolders
from truthgate_eval.data.records import Record
from truthgate_eval.data.store import (
    PreparedDataset,
    Row,
    add_image_paths,
    require_images,
    write_dataset,
)
from truthgate_eval.errors import DataError, first_line
from truthgate_eval.files import folder_lock, parse_json, sha256, update_folder
from truthgate_eval.files.parquet import iterate_rows

HUB = "openbmb/RLHF-V-Dataset"
_COLUMNS = ("image", "text", "origin_split", "idx")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")


def prepare_rlhf_v(
    out: Path,
    *,
    parquet: Path | None = None,
    images: Sequence[Path] = (),
    allow_missing: bool = False,
    progress: Callable[[int], None] | None = None,
) -> PreparedDataset:
    """Write `out/rlhf_v/qa.parquet` and its images from RLHF-V's question-answering samples.

    Args:
        out: The data folder.
        parquet: The release's Parquet file, or the TruthProbe authors' JSON lines; by default the hub.
        images: Folders of images, for JSON lines only; the release has its images inside.
        allow_missing: Leave questions about missing images out.
        progress: Called with 1 after each record.

    Raises:
        DataError: The data cannot be read, is not RLHF-V's, or images are missing.
    """
    folder = out / "rlhf_v"
    if parquet is not None and parquet.suffix.lower() == ".jsonl":
        return _prepare_sequences(parquet, images, folder, allow_missing=allow_missing)
    types: Counter[str] = Counter()
    indices: dict[int, str] = {}
    rows: list[Row] = []
    with folder_lock(folder):
        with update_folder(folder) as partial:
            (partial / "images").mkdir()
            for record in _records(parquet):
                question_type = _question_type(record)
                types[question_type] += 1
                if question_type == "question_answering":
                    row, content = _preference(record)
                    first = indices.setdefault(row["row"], record.where)
                    if first != record.where:
                        raise DataError(f"{record.where}: idx {row['row']} is also that of {first}")
                    (partial / "images" / row["image"]).write_bytes(content)
                    rows.append({**row, "image_path": str(folder.absolute() / "images" / row["image"])})
                if progress is not None:
                    progress(1)
        notes = [f"{count} records of type {question_type}" for question_type, count in types.most_common()]
        source = {"file": str(parquet), "sha256": sha256(parquet)} if parquet else {"hub": HUB}
        return write_dataset(folder, {"qa": rows}, source=source, notes=notes)


def _prepare_sequences(
    path: Path, images: Sequence[Path], folder: Path, *, allow_missing: bool
) -> PreparedDataset:
    folders = ImageFolders(images)
    rows = read_sequences(path, folders)
    found, missing = folders.find_all(row["image"] for row in rows)
    require_images(found, missing, folders.folders, allow_missing=allow_missing, report_to=folder)
    source = {"file": str(path), "sha256": sha256(path), "images": [str(item) for item in folders.folders]}
    return write_dataset(folder, {"qa": add_image_paths(rows, found)}, source=source, missing=missing)


def _records(parquet: Path | None) -> Iterator[Record]:
    rows = _from_hub() if parquet is None else iterate_rows(parquet)
    for number, row in enumerate(rows):
        record = Record(row, f"{parquet or HUB}, record {number}")
        missing = [name for name in _COLUMNS if name not in row]
        if missing:
            raise DataError(f"{record.where}: no {', '.join(missing)}, so this is not RLHF-V's data")
        yield record


def _from_hub() -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_dataset(HUB, split="train")
    except Exception as error:  # of many classes: no network, no data set, no file
        reason = first_line(error)
        raise DataError(f"cannot fetch {HUB} from the hub ({reason}): give --parquet FILE") from error
    yield from data.cast_column("image", datasets.Image(decode=False))


def _question_type(record: Record) -> str:
    """The type in `origin_split`, which is an object with a type, JSON of one, or the type alone."""
    origin = record.fields["origin_split"]
    try:
        is_text = isinstance(origin, str)
        parsed = parse_json(origin.encode("utf-8", "surrogatepass"), "origin_split") if is_text else origin
    except DataError:  # the type alone
        parsed = origin
    found = parsed.get("type", origin) if isinstance(parsed, dict) else parsed
    text = found.lower().replace(" ", "_").replace("-", "_") if isinstance(found, str) else ""
    for known in ("question_answering", "detailed_description"):
        if known in text:
            return known
    record.raise_error("origin_split", "question answering or detailed description")


def _preference(record: Record) -> tuple[Row, bytes]:
    """A row with the chosen and the rejected answer, and the content of its image file."""
    text = record.fields["text"]
    if not isinstance(text, dict):
        text = parse_json(record.text("text").encode(), f"{record.where}: text")
    pair = Record.of(text, f"{record.where}: text")
    pair.require("question", "chosen", "rejected")
    image = record.fields["image"]
    content = image.get("bytes") if isinstance(image, dict) else None
    if not isinstance(content, bytes) or not content:
        raise DataError(f"{record.where}: its image is empty")
    number = record.integer("idx")
    # Several records can have the same image name, but not the same index.
    suffix = Path(record.optional_text("image_path") or "").suffix
    row = {
        "row": number,
        "image": f"{number}{suffix if _SUFFIX.fullmatch(suffix) else '.jpg'}",
        "question": pair.text("question"),
        "choices": [pair.text(name, blank=True) for name in ("chosen", "rejected")],
        "target": 0,
    }
    return row, content
