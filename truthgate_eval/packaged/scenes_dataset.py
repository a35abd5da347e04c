"""The data set of scenes, drawn into the data folder at its first use.

    $TRUTHGATE_DATA/scenes/{random,popular,adversarial,probe}.parquet, pictures/test-00017.png, ...
    $TRUTHGATE_DATA/scenes/{captions,objects}.parquet

Its questions are made by POPE's sampling rule; see `truthgate_eval.data.poll`. `captions` has the images that
they are about, with the objects on them, and `objects` the names that are counted; see
`truthgate_eval.data.chair`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from truthgate_eval.data.annotations import AnnotatedImage
from truthgate_eval.data.chair import object_rows
from truthgate_eval.data.poll import make_poll
from truthgate_eval.data.splits import SELECTION, TEST
from truthgate_eval.data.store import PreparedDataset, Row, read_source, write_dataset
from truthgate_eval.files import build_once, folder_lock, update_folder
from truthgate_eval.packaged.scenes import DRAWING_VERSION, MIN_OBJECTS, OBJECTS, Scene, make_scene
from truthgate_eval.paths import data_dir

FOLDER = "scenes"
# Images by subset of `truthgate_eval.packaged.scenes`.
NUM_IMAGES = {"probe": 500, "selection": 250, "test": 1000}
# "Yes" questions about an image, as in POPE, and as many "no" questions. Fewer where it has fewer objects.
_PER_IMAGE = 3


def scenes_file(name: str) -> Path:
    """A Parquet file of the data set, such as `random`, `probe` or `captions`, drawn if it is missing.

    Raises:
        DataError: The data folder cannot be written.
    """
    data = data_dir()
    folder = data / FOLDER
    file = folder / f"{name}.parquet"
    build_once(
        folder,
        is_built=lambda: file.is_file() and read_source(folder).get("drawn") == DRAWING_VERSION,
        build=lambda: prepare_scenes(data),
        announcement=f"drawing {sum(NUM_IMAGES.values())} scenes into {folder}",
    )
    return file


def prepare_scenes(out: Path, num_images: Mapping[str, int] | None = None) -> PreparedDataset:
    """Draw all images and write `out/scenes/{random,popular,adversarial,probe,captions,objects}.parquet`.

    The rows of a split are those of `make_poll`, with `subset` (selection or evaluation) and the `caption` of
    the image. `probe` has the random split's questions about the images of subset `probe`. `captions` has one
    row for each image of the splits, with its `objects`.

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
    files["captions"] = [
        {"image": scene.name, "objects": list(scene.objects), "subset": subset}
        for subset, own in {SELECTION: scenes["selection"], TEST: scenes["test"]}.items()
        for scene in own
    ]
    captions = {scene.name: scene.caption for own in scenes.values() for scene in own}
    complete = {
        name: [_complete_row(number, row, captions, folder) for number, row in enumerate(rows)]
        for name, rows in files.items()
    }
    complete["objects"] = object_rows([name] for name in OBJECTS)
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
