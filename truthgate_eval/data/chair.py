"""Images with the objects on them, prepared for CHAIR: how many objects a model's captions make up.

    $TRUTHGATE_DATA/chair/{test,objects}.parquet, chair_poll/{test,objects}.parquet

`test` has a row for each image, and `objects` one for each object with all its names. `prepare_chair` is the
published benchmark, on COCO with its list of synonyms; `prepare_chair_poll` is the same on one's own images.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from truthgate_eval.data.annotations import AnnotatedImage, read_annotations
from truthgate_eval.data.images import ImageFolders, shorten_names
from truthgate_eval.data.records import Record
from truthgate_eval.data.store import (
    PreparedDataset,
    Row,
    add_image_paths,
    read_rows,
    require_images,
    write_dataset,
)
from truthgate_eval.errors import DataError
from truthgate_eval.files import MAX_DATASET_BYTES, read_json, read_text, sha256
from truthgate_eval.metrics.chair import Vocabulary, clean_name

TEST, OBJECTS = "test", "objects"


def prepare_chair(
    annotations: Path,
    images: Sequence[Path],
    out: Path,
    *,
    synonyms: Path,
    captions: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    allow_missing: bool = False,
) -> PreparedDataset:
    """Write `out/chair/{test,objects}.parquet` from COCO's annotations.

    The objects on an image are its annotated categories and, as in the published code, those that its
    reference captions mention.

    Args:
        annotations: COCO's instances file, see `read_annotations`.
        images: Folders of images.
        out: The data folder.
        synonyms: The published list, see `read_synonyms`.
        captions: COCO's captions file, or None: then the categories alone are the objects of an image.
        limit: At most this many images, sampled at random.
        seed: Of the sample.
        allow_missing: Leave missing images out.

    Raises:
        DataError: A file cannot be read, an annotated category is in no list of synonyms, no caption is about
            one of the images, or images are missing.
    """
    annotated = read_annotations(annotations)
    lists = read_synonyms(synonyms)
    vocabulary = Vocabulary.of(lists)
    categories = dict.fromkeys(name for image in annotated for name in image.objects)
    unknown = [name for name in categories if vocabulary.object_of(name) is None]
    if unknown:
        raise DataError(
            f"{synonyms} has no line with {shorten_names(unknown)}: every annotated category must be in the "
            "list; `truthgate data chair-poll` takes images with objects of your own"
        )
    references = _captions_of(annotated, captions) if captions else {}
    mentioned = {
        name: [one.object for text in texts for one in vocabulary.mentions(text)]
        for name, texts in references.items()
    }
    notes = [f"{len(references)} of {len(annotated)} images have reference captions"] if captions else []
    return _prepare(
        out / "chair",
        [
            AnnotatedImage(image.image, (*image.objects, *mentioned.get(image.image, ())))
            for image in annotated
        ],
        images,
        lists,
        limit=limit,
        seed=seed,
        allow_missing=allow_missing,
        files={"annotations": annotations, "synonyms": synonyms, "captions": captions},
        notes=notes,
    )


def prepare_chair_poll(
    annotations: Path,
    images: Sequence[Path],
    out: Path,
    *,
    synonyms: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    allow_missing: bool = False,
) -> PreparedDataset:
    """Write `out/chair_poll/{test,objects}.parquet` from annotations in a format that polls take.

    The objects that count are all that are annotated on any image, and those of the synonyms.

    Args:
        annotations: See `read_annotations`. Images without an object are left out, as in polls.
        images: Folders of images.
        out: The data folder.
        synonyms: More names of the objects, see `read_synonyms`.
        limit: See `prepare_chair`.
        seed: See `prepare_chair`.
        allow_missing: See `prepare_chair`.

    Raises:
        DataError: A file cannot be read, no image is annotated, or images are missing.
    """
    annotated = read_annotations(annotations)
    lists = read_synonyms(synonyms) if synonyms else []
    known = Vocabulary.of(lists)
    names = dict.fromkeys(name for image in annotated for name in image.objects)
    lists += [[name] for name in names if known.object_of(name) is None]
    kept = [image for image in annotated if image.objects]
    if not kept:
        raise DataError(f"{annotations} has no image with an object")
    return _prepare(
        out / "chair_poll",
        kept,
        images,
        lists,
        limit=limit,
        seed=seed,
        allow_missing=allow_missing,
        files={"annotations": annotations, "synonyms": synonyms},
        notes=[f"{len(annotated) - len(kept)} annotated with no object: left out"],
    )


def read_synonyms(file: Path) -> list[list[str]]:
    """Lists of names, the first of each being the object: a line for each, with commas between the names.

    That is the format of CHAIR's published `synonyms.txt`.

    Raises:
        DataError: The file cannot be read, has more than 1 MiB, or has no names.
    """
    lists = [
        [name for name in map(str.strip, line.split(",")) if clean_name(name)]
        for line in read_text(file).splitlines()
    ]
    lists = [names for names in lists if names]
    if not lists:
        raise DataError(
            f"{file} has no names: expected a line for each object, with commas between its names"
        )
    return lists


def read_captions(file: Path) -> dict[str, list[str]]:
    """The reference captions of COCO's captions file, by the image's file name.

    Captions of images that the file does not list are left out.

    Raises:
        DataError: The file cannot be read, or is not COCO's.
    """
    whole = read_json(file, most=MAX_DATASET_BYTES)
    names = {
        str(image.identifier("id")): image.text("file_name") for image in _records(file, whole, "images")
    }
    captions: dict[str, list[str]] = {}
    for annotation in _records(file, whole, "annotations"):
        name = names.get(str(annotation.identifier("image_id")))
        if name is not None:
            captions.setdefault(name, []).append(annotation.text("caption", blank=True))
    return captions


def read_vocabulary(file: Path) -> Vocabulary:
    """The vocabulary of a prepared `objects.parquet`.

    Raises:
        DataError: The file is missing, or is not one of these.
    """
    lists = [row.get("names") for row in read_rows(file)]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise DataError(f"{file} has no lists of names: prepare the data set again")
    return Vocabulary.of([names for names in lists if names])


def object_rows(synonyms: Iterable[Sequence[str]]) -> list[Row]:
    """The rows of `objects.parquet` for lists of synonyms."""
    return [{"object": clean_name(names[0]), "names": list(names)} for names in synonyms]


def _prepare(
    folder: Path,
    annotated: Sequence[AnnotatedImage],
    images: Sequence[Path],
    synonyms: Sequence[Sequence[str]],
    *,
    limit: int | None,
    seed: int,
    allow_missing: bool,
    files: Mapping[str, Path | None],
    notes: Sequence[str],
) -> PreparedDataset:
    """Write the images that are found, each with its objects by the first of their names."""
    folders = ImageFolders(images)
    found, missing = folders.find_all(image.image for image in annotated)
    require_images(found, missing, folders.folders, allow_missing=allow_missing, report_to=folder)
    kept = [image for image in annotated if image.image in found]
    if limit is not None and limit < len(kept):
        names = set(random.Random(seed).sample(sorted(image.image for image in kept), limit))
        kept = [image for image in kept if image.image in names]
    vocabulary = Vocabulary.of(synonyms)
    rows = [{"image": image.image, "objects": _objects(image, vocabulary)} for image in kept]
    source = {
        **{
            name: {"file": str(file), "sha256": sha256(file)}
            for name, file in files.items()
            if file is not None
        },
        "images": [str(path) for path in folders.folders],
        "limit": limit,
        "seed": seed,
    }
    contents = {TEST: add_image_paths(rows, found), OBJECTS: object_rows(synonyms)}
    return write_dataset(folder, contents, source=source, missing=missing, notes=notes)


def _objects(image: AnnotatedImage, vocabulary: Vocabulary) -> list[str]:
    known = {vocabulary.object_of(name) for name in image.objects}
    return sorted(name for name in known if name is not None)


def _captions_of(annotated: Sequence[AnnotatedImage], file: Path) -> dict[str, list[str]]:
    """The captions of annotated images, by name."""
    captions = read_captions(file)
    found = {image.image: captions[image.image] for image in annotated if image.image in captions}
    if not found:
        raise DataError(
            f"{file} has captions of {len(captions)} images, and none of the annotated ones is among them"
        )
    return found


def _records(file: Path, whole: object, name: str) -> Iterable[Record]:
    values = whole.get(name) if isinstance(whole, dict) else None
    if not isinstance(values, list):
        raise DataError(f"{file} is not COCO's captions file: no list of {name}")
    return (Record.of(value, f"{file}, {name}[{number}]") for number, value in enumerate(values))
