"""RLHF-V's question-answering samples, chosen and rejected answer, as a prepared data set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.images import ImageFolders
from truthgate_eval.data.store import PreparedDataset, Row, add_image_paths, require_images, write_dataset
from truthgate_eval.errors import DataError
from truthgate_eval.files import replace_folder, sha256

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
    """Write `out/rlhf_v/qa.parquet` and its pictures from RLHF-V's question-answering samples.

    Args:
        out: The data folder.
        parquet: The release's Parquet file, or the TruthProbe authors' JSON lines; by default the hub.
        images: Folders of pictures, for JSON lines only: the release has its pictures inside.
        allow_missing: Leave the questions about missing pictures out instead of refusing.
        progress: Called with 1 after each record.

    Raises:
        DataError: The data cannot be read, is not RLHF-V's, or pictures are missing.
    """
    folder = out / "rlhf_v"
    if parquet is not None and parquet.suffix == ".jsonl":
        return _prepare_sequences(parquet, images, folder, allow_missing=allow_missing)
    kinds: Counter[str] = Counter()
    rows: list[Row] = []
    with replace_folder(folder) as partial:
        (partial / "images").mkdir()
        for number, record in enumerate(_records(parquet)):
            where = f"{parquet or HUB}, record {number}"
            kind = _question_type(record, where)
            kinds[kind] += 1
            if kind == "question_answering":
                row, content = _preference(record, where)
                (partial / "images" / row["image"]).write_bytes(content)
                rows.append({**row, "image_path": str(folder.absolute() / "images" / row["image"])})
            if progress is not None:
                progress(1)
    notes = [f"{count} records of type {kind}" for kind, count in kinds.most_common()]
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
    except Exception as error:  # the hub raises many kinds: no network, no data set, no file
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"cannot fetch {HUB} from the hub ({reason}): give --parquet FILE") from error
    yield from data.cast_column("image", datasets.Image(decode=False))


def _question_type(record: Row, where: str) -> str:
    """The type named in `origin_split`, which is a string of JSON or the bare type."""
    missing = [name for name in _COLUMNS if name not in record]
    if missing:
        raise DataError(f"{where}: no {', '.join(missing)}, so this is not RLHF-V's data")
    given = str(record["origin_split"])
    try:
        parsed = json.loads(given)
    except json.JSONDecodeError:
        parsed = given
    kind = str(parsed.get("type", given) if isinstance(parsed, dict) else parsed)
    kind = kind.lower().replace(" ", "_").replace("-", "_")
    for known in ("question_answering", "detailed_description"):
        if known in kind:
            return known
    raise DataError(f"{where}: origin_split {given!r} names neither question answering nor description")


def _preference(record: Row, where: str) -> tuple[Row, bytes]:
    """A document of chosen and rejected answer, and the content of its picture."""
    try:
        text = record["text"] if isinstance(record["text"], dict) else json.loads(record["text"])
        answers = [str(text["chosen"]), str(text["rejected"])]
        question, content = str(text["question"]), record["image"]["bytes"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{where}: no question, chosen and rejected, or no picture ({error!r})") from error
    if not content:
        raise DataError(f"{where}: its picture is empty")
    # Records can share a picture's name; the index keeps them apart.
    suffix = Path(str(record.get("image_path") or "")).suffix or ".jpg"
    row = {
        "row": int(record["idx"]),
        "image": f"{int(record['idx'])}{suffix}",
        "question": question,
        "choices": answers,
        "target": 0,
    }
    return row, content
