"""RLHF-V's question-answering samples, with their chosen and rejected answers, as a prepared data set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.images import ImageFolders
from truthgate_eval.data.store import PreparedDataset, Row, add_image_paths, require_images, write_dataset
from truthgate_eval.errors import DataError, first_line
from truthgate_eval.files import folder_lock, sha256, update_folder

HUB = "openbmb/RLHF-V-Dataset"
_COLUMNS = ("image", "text", "origin_split", "idx")


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
    if parquet is not None and parquet.suffix == ".jsonl":
        return _prepare_sequences(parquet, images, folder, allow_missing=allow_missing)
    types: Counter[str] = Counter()
    rows: list[Row] = []
    with folder_lock(folder):
        with update_folder(folder) as partial:
            (partial / "images").mkdir()
            for number, record in enumerate(_records(parquet)):
                where = f"{parquet or HUB}, record {number}"
                question_type = _question_type(record, where)
                types[question_type] += 1
                if question_type == "question_answering":
                    row, content = _preference(record, where)
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


def _records(parquet: Path | None) -> Iterator[Row]:
    if parquet is None:
        yield from _from_hub()
        return
    import pyarrow
    import pyarrow.parquet

    if not parquet.is_file():
        raise DataError(f"no file {parquet}")
    try:
        for batch in pyarrow.parquet.ParquetFile(parquet).iter_batches(batch_size=64):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{parquet} is not a Parquet file that can be read: {error}") from error


def _from_hub() -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_dataset(HUB, split="train")
    except Exception as error:  # of many classes: no network, no data set, no file
        reason = first_line(error)
        raise DataError(f"cannot fetch {HUB} from the hub ({reason}): give --parquet FILE") from error
    yield from data.cast_column("image", datasets.Image(decode=False))


def _question_type(record: Row, where: str) -> str:
    """The type in `origin_split`, which is a JSON object with a type, or the type alone."""
    missing = [name for name in _COLUMNS if name not in record]
    if missing:
        raise DataError(f"{where}: no {', '.join(missing)}, so this is not RLHF-V's data")
    origin = str(record["origin_split"])
    try:
        parsed = json.loads(origin)
    except json.JSONDecodeError:
        parsed = origin
    text = str(parsed.get("type", origin) if isinstance(parsed, dict) else parsed)
    text = text.lower().replace(" ", "_").replace("-", "_")
    for known in ("question_answering", "detailed_description"):
        if known in text:
            return known
    raise DataError(f"{where}: origin_split {origin!r} is neither question answering nor description")


def _preference(record: Row, where: str) -> tuple[Row, bytes]:
    """A row with the chosen and the rejected answer, and the content of its image file."""
    try:
        text = record["text"] if isinstance(record["text"], dict) else json.loads(record["text"])
        answers = [str(text["chosen"]), str(text["rejected"])]
        question, content = str(text["question"]), record["image"]["bytes"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{where}: no question, chosen and rejected, or no image ({error!r})") from error
    if not content:
        raise DataError(f"{where}: its image is empty")
    # Several records can have the same image name, but not the same index.
    suffix = Path(str(record.get("image_path") or "")).suffix or ".jpg"
    row = {
        "row": int(record["idx"]),
        "image": f"{int(record['idx'])}{suffix}",
        "question": question,
        "choices": answers,
        "target": 0,
    }
    return row, content
