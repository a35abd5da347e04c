"""Scenes as data sets: drawn, asked about by the poll's rule, and kept in the data folder at first use.

$TRUTHGATE_DATA/scenes/{random,popular,adversarial,probe}.parquet, pictures/test-00017.png, ...
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from truthgate_eval.data.annotations import AnnotatedImage
from truthgate_eval.data.poll import make_poll
from truthgate_eval.data.store import PROVENANCE, PreparedDataset, write_dataset
from truthgate_eval.files import replace_folder
from truthgate_eval.packaged.scenes import FEWEST, MAKE, Scene, make_scene
from truthgate_eval.paths import data_dir

log = logging.getLogger(__name__)

FOLDER = "scenes"
PICTURES = {"probe": 500, "selection": 250, "test": 1000}
_PER_PICTURE = 3  # questions of each answer, as in POPE; as many as there are objects on a poorer picture


def scenes_file(name: str) -> Path:
    """The file of a split, or of `probe`; all are made where they are not there, in a few seconds."""
    folder = data_dir() / FOLDER
    if not (folder / f"{name}.parquet").is_file() or _made_by(folder) != MAKE:
        log.warning("drawing %d scenes into %s", sum(PICTURES.values()), folder)
        prepare_scenes(data_dir())
    return folder / f"{name}.parquet"


def prepare_scenes(out: Path, pictures: dict[str, int] | None = None) -> PreparedDataset:
    """Draw all pictures and write `out/scenes/{random,popular,adversarial,probe}.parquet`.

    A split's rows are those of the poll, with `subset` (selection or evaluation) and the picture's
    `caption`; `probe` has the random questions about pictures of its own.

    Args:
        out: The data folder.
        pictures: How many of each part; by default `PICTURES`.
    """
    numbers = PICTURES | (pictures or {})
    scenes = {part: [make_scene(part, number) for number in range(count)] for part, count in numbers.items()}
    folder = out / FOLDER
    with replace_folder(folder) as partial:
        (partial / "pictures").mkdir()
        for some in scenes.values():
            for scene in some:
                scene.image.save(partial / "pictures" / f"{scene.name}.png")
    asked = {part: make_questions(some) for part, some in scenes.items()}
    files: dict[str, list[dict[str, Any]]] = {}
    for split, rows in asked["test"].items():
        subsets = {"selection": asked["selection"][split], "evaluation": rows}
        files[split] = [{**row, "subset": subset} for subset, some in subsets.items() for row in some]
    files["probe"] = asked["probe"]["random"]
    captions = {scene.name: scene.caption for some in scenes.values() for scene in some}
    rows_of = {
        name: [_row(number, row, captions, folder) for number, row in enumerate(rows)]
        for name, rows in files.items()
    }
    return write_dataset(folder, rows_of, source={"drawn": MAKE, "pictures": numbers})


def make_questions(scenes: list[Scene]) -> dict[str, list[dict[str, Any]]]:
    """The poll's three splits about scenes, by its sampling rule."""
    annotated = [AnnotatedImage(scene.name, scene.objects) for scene in scenes]
    return make_poll(annotated, per_picture=_PER_PICTURE, min_objects=FEWEST).splits


def _row(number: int, row: dict[str, Any], captions: dict[str, str], folder: Path) -> dict[str, Any]:
    path = (folder / "pictures" / f"{row['image']}.png").absolute()
    return {**row, "row": number, "caption": captions[row["image"]], "image_path": str(path)}


def _made_by(folder: Path) -> Any:
    """Which drawing made the folder's data, from its provenance."""
    file = folder / PROVENANCE
    return json.loads(file.read_bytes())["source"].get("drawn") if file.is_file() else None
