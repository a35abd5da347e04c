"""The data set of scenes, drawn into the data folder at its first use.

    $TRUTHGATE_DATA/scenes/{random,popular,adversarial,probe}.parquet, pictures/test-00017.png, ...

Its questions are made by POPE's sampling rule; see `truthgate_eval.data.poll`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truthgate_eval.data.annotations import AnnotatedImage
from truthgate_eval.data.poll import make_poll
from truthgate_eval.data.splits import SELECTION, TEST
from truthgate_eval.data.store import PROVENANCE_FILE, PreparedDataset, Row, write_dataset
from truthgate_eval.errors import DataError
from truthgate_eval.files import build_once, folder_lock, read_json, update_folder
from truthgate_eval.packaged.scenes import DRAWING_VERSION, MIN_OBJECTS, Scene, make_scene
from truthgate_eval.paths import data_dir

FOLDER = "scenes"
# Images by subset of `truthgate_eval.packaged.scenes`.
NUM_IMAGES = {"probe": 500, "selection": 250, "test": 1000}
# "Yes" questions about an image, as in POPE, and as many "no" questions. Fewer where it has fewer objects.
_PER_IMAGE = 3


def scenes_file(name: str) -> Path:
    """The Parquet file `random`, `popular`, `adversarial` or `probe`, drawn if it is missing.

    Raises:
        DataError: The data folder cannot be written.
    """
    data = data_dir()
    folder = data / FOLDER
    file = folder / f"{name}.parquet"
    build_once(
        folder,
        is_built=lambda: file.is_file() and _drawing_version(folder) == DRAWING_VERSION,
        build=lambda: prepare_scenes(data),
        announcement=f"drawing {sum(NUM_IMAGES.values())} scenes into {folder}",
    )
    return file


def prepare_scenes(out: Path, num_images: Mapping[str, int] | None = None) -> PreparedDataset:
    """Draw all images and write `out/scenes/{random,popular,adversarial,probe}.parquet`.

    The rows of a split are those of `make_poll`, with `subset` (selection or evaluation) and the `caption` of
    the image. `probe` has the random split's questions about the images of subset `probe`.

    Args:
        out: The data folder.
        num_images: Images by subset; `NUM_IMAGES` for those that are missing.

    Raises:
        DataError: The folder cannot be written.
    """
    numbers = NUM_IMAGES | dict(num_images or {})
    scenes = {
        subset: [make_scene(subset, number) for number in range(count)] for subset, count in numbers.items()
    }
    folder = out / FOLDER
    questions = {subset: make_questions(own) for subset, own in scenes.items()}
    files: dict[str, list[Row]] = {}
    for split, rows in questions["test"].items():
        by_subset = {SELECTION: questions["selection"][split], TEST: rows}
        files[split] = [{**row, "subset": subset} for subset, own in by_subset.items() for row in own]
    files["probe"] = questions["probe"]["random"]
    captions = {scene.name: scene.caption for own in scenes.values() for scene in own}
    complete = {
        name: [_complete_row(number, row, captions, folder) for number, row in enumerate(rows)]
        for name, rows in files.items()
    }
    with folder_lock(folder):
        with update_folder(folder) as partial:
            (partial / "pictures").mkdir()
            for scene in (scene for own in scenes.values() for scene in own):
                scene.image.save(partial / "pictures" / f"{scene.name}.png")
        return write_dataset(folder, complete, source={"drawn": DRAWING_VERSION, "pictures": numbers})


def make_questions(scenes: list[Scene]) -> dict[str, list[Row]]:
    """The questions of POPE's three splits about scenes: {split: rows of `make_poll`}."""
    annotated = [AnnotatedImage(scene.name, scene.objects) for scene in scenes]
    return make_poll(annotated, per_image=_PER_IMAGE, min_objects=MIN_OBJECTS).splits


def _complete_row(number: int, row: Row, captions: Mapping[str, str], folder: Path) -> Row:
    path = (folder / "pictures" / f"{row['image']}.png").absolute()
    return {**row, "row": number, "caption": captions[row["image"]], "image_path": str(path)}


def _drawing_version(folder: Path) -> Any:
    """The version of the drawing that made a data set; None where its provenance is missing or damaged."""
    file = folder / PROVENANCE_FILE
    if not file.exists():
        return None
    try:
        found = read_json(file)
    except DataError:  # it is drawn again
        return None
    source = found.get("source") if isinstance(found, dict) else None
    return source.get("drawn") if isinstance(source, dict) else None
