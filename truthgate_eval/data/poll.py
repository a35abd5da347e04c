"""A yes/no benchmark about one's own annotated images, by POPE's sampling rule.

Each image gives as many questions about objects that are on it as about objects that are not. The absent
objects are sampled in three ways, for three splits with the same images and the same "yes" questions:

* `random`: any object;
* `popular`: the objects that are on most images;
* `adversarial`: for each present object that is asked about, the one that occurs with it most often.

Li et al., "Evaluating object hallucination in large vision-language models" (EMNLP 2023).
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from truthgate_eval.data.annotations import AnnotatedImage, read_annotations
from truthgate_eval.data.images import ImageFolders
from truthgate_eval.data.store import PreparedDataset, Row, add_image_paths, require_images, write_dataset
from truthgate_eval.errors import DataError
from truthgate_eval.files import sha256
from truthgate_eval.metrics.pope import SPLITS

PROBE = "probe"  # the file of the questions for probing
# Words that begin with a vowel letter but a consonant sound, such as "unicycle" and "one-way sign".
_CONSONANT_SOUND = re.compile(
    r"eu|ewe|one\b|once|u-|ufo|uni([^dmn]|$)|us[eaiu]|ut[ei]|ukulele|ura|urin", re.IGNORECASE
)
# Words that begin with a vowel sound, those with a silent h among them.
_VOWEL_SOUND = re.compile(r"[aeiou]|heir|honest|hono|hour|x-ray", re.IGNORECASE)


@dataclass(frozen=True)
class Poll:
    """The questions, and the images that they are about or that were left out.

    Attributes:
        splits: Rows of question_id, image, object, question and answer, by split.
        images: Names of the images that questions are about.
        unannotated: Images without a single object.
        too_few_objects: Images with fewer objects than required.
        incomplete: Images with fewer questions than the others, because the objects did not suffice.
    """

    splits: dict[str, list[Row]]
    images: tuple[str, ...]
    unannotated: tuple[str, ...]
    too_few_objects: tuple[str, ...]
    incomplete: tuple[str, ...]


@dataclass(frozen=True)
class _ObjectCounts:
    """On how many images each object is, and each two objects together."""

    single: Counter[str]
    pairs: Mapping[str, Counter[str]]

    @classmethod
    def of(cls, images: Iterable[AnnotatedImage]) -> _ObjectCounts:
        single: Counter[str] = Counter()
        pairs: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for image in images:
            single.update(image.objects)
            for name in image.objects:
                pairs[name].update(other for other in image.objects if other != name)
        return cls(single, pairs)


def make_poll(
    images: Sequence[AnnotatedImage],
    *,
    per_image: int = 3,
    min_objects: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Poll:
    """Sample the questions of the three splits.

    The questions about an image depend on the seed, on the image's name and on the counts of objects on all
    images, and not on the order of the images.

    Args:
        images: All annotated images. Objects are counted over all of them.
        per_image: "Yes" questions about an image, and as many "no" questions (POPE: 3).
        min_objects: Images with fewer objects are left out; by default `per_image`, as in POPE. With a
            smaller number, an image has as many questions of each answer as it has objects.
        limit: At most this many images, sampled at random (POPE: 500).
        seed: Of all random choices.

    Raises:
        DataError: A setting is below 1, or no image is left.
    """
    required = per_image if min_objects is None else min_objects
    if per_image < 1 or required < 1:
        raise DataError(f"per_image={per_image}, min_objects={required}: expected at least 1 of each")
    counts = _ObjectCounts.of(images)
    annotated = [image for image in images if image.objects]
    candidates = [image for image in annotated if len(image.objects) >= required]
    if limit is not None and limit < len(candidates):
        names = set(random.Random(seed).sample(sorted(image.image for image in candidates), limit))
        candidates = [image for image in candidates if image.image in names]
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    used, incomplete = [], []
    for image in candidates:
        count = min(per_image, len(image.objects), len(counts.single) - len(image.objects))
        if count:
            used.append(image.image)
            _add_questions(splits, image, count, counts, seed)
        if count < per_image:
            incomplete.append(image.image)
    if not used:
        raise DataError(
            f"no questions can be asked: of {len(images)} images, {len(annotated)} are annotated and "
            f"{len(candidates)} have at least {required} objects, of {len(counts.single)} kinds in all"
        )
    return Poll(
        splits=splits,
        images=tuple(used),
        unannotated=tuple(image.image for image in images if not image.objects),
        too_few_objects=tuple(image.image for image in annotated if len(image.objects) < required),
        incomplete=tuple(incomplete),
    )


def prepare_poll(
    annotations: Path,
    images: Sequence[Path],
    out: Path,
    *,
    per_image: int = 3,
    min_objects: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    probe_share: float = 0.0,
    allow_missing: bool = False,
) -> PreparedDataset:
    """Write `out/poll/{random,popular,adversarial}.parquet`, and `probe.parquet` for a `probe_share`.

    Args:
        annotations: See `read_annotations`.
        images: Folders of images.
        out: The data folder.
        per_image: See `make_poll`.
        min_objects: See `make_poll`.
        limit: See `make_poll`.
        seed: See `make_poll`.
        probe_share: Share of the images that are set aside for probing, from 0 to below 1. `probe.parquet`
            has the random split's questions about them, and no split has questions about them.
        allow_missing: Leave missing images out.

    Raises:
        DataError: The annotations cannot be read, two of their names are one image, images are missing, or
            `probe_share` leaves no image for probing or none for the splits.
    """
    if not 0 <= probe_share < 1:
        raise DataError(f"probe_share={probe_share}: expected a share from 0 to below 1")
    annotated = read_annotations(annotations)
    folders = ImageFolders(images)
    found, missing = folders.find_all(image.image for image in annotated)
    folder = out / "poll"
    require_images(found, missing, folders.folders, allow_missing=allow_missing, report_to=folder)
    _require_different_images(annotations, found)
    poll = make_poll(
        [image for image in annotated if image.image in found],
        per_image=per_image,
        min_objects=min_objects,
        limit=limit,
        seed=seed,
    )
    files = {split: add_image_paths(questions, found) for split, questions in poll.splits.items()}
    probe_images = _sample_probe_images(poll.images, probe_share, seed)
    if probe_share:
        probing = [row for row in files["random"] if row["image"] in probe_images]
        files = {
            split: [row for row in rows if row["image"] not in probe_images] for split, rows in files.items()
        }
        files[PROBE] = probing
    required = per_image if min_objects is None else min_objects
    source = {
        "annotations": str(annotations),
        "sha256": sha256(annotations),
        "images": [str(path) for path in folders.folders],
        **{"per_picture": per_image, "min_objects": required, "limit": limit, "seed": seed},
        "probe_share": probe_share,
    }
    notes = [
        f"{len(poll.images)} images are asked about, {len(probe_images)} of them for probing only",
        f"{len(poll.unannotated)} annotated with no object: left out",
        f"{len(poll.too_few_objects)} with fewer than {required} kinds of objects: left out",
        f"{len(poll.incomplete)} give fewer than {2 * per_image} questions, for want of objects",
        f"{len(folders) - len(set(found.values()))} in the folder but not in the annotations: left out",
    ]
    prepared = write_dataset(folder, files, source=source, missing=missing, notes=notes)
    if PROBE not in files:  # the splits may have questions about the probing images of an older poll
        (folder / f"{PROBE}.parquet").unlink(missing_ok=True)
    return prepared


def _require_different_images(annotations: Path, found: Mapping[str, Path]) -> None:
    """Raise `DataError` where two names, with objects of their own each, are one image file."""
    names: dict[Path, str] = {}
    for name, path in found.items():
        if names.setdefault(path, name) != name:
            raise DataError(f"{annotations} lists one image twice: {names[path]} and {name} are both {path}")


def question_text(name: str) -> str:
    """POPE's question about an object, with the article that its first sound requires.

    Example:
        >>> question_text("apple")
        'Is there an apple in the image?'
    """
    vowel = _VOWEL_SOUND.match(name) and not _CONSONANT_SOUND.match(name)
    return f"Is there {'an' if vowel else 'a'} {name} in the image?"


def _sample_probe_images(images: Sequence[str], share: float, seed: int) -> set[str]:
    number = round(share * len(images))
    if share and not 0 < number < len(images):
        raise DataError(
            f"probe_share={share} of {len(images)} images leaves none for probing or none to ask about"
        )
    return set(random.Random(f"{seed}:probe").sample(sorted(images), number))


def _add_questions(
    splits: dict[str, list[Row]], image: AnnotatedImage, count: int, counts: _ObjectCounts, seed: int
) -> None:
    """Add an image's questions to every split, "yes" and "no" in turn."""
    rng = random.Random(f"{seed}:{image.image}")
    present = rng.sample(sorted(image.objects), count)
    for split, questions in splits.items():
        absent = _sample_absent(split, image, present, counts, rng)
        for present_name, absent_name in zip(present, absent, strict=True):
            for name, answer in ((present_name, "yes"), (absent_name, "no")):
                questions.append(
                    {
                        "question_id": len(questions) + 1,
                        "image": image.image,
                        "object": name,
                        "question": question_text(name),
                        "answer": answer,
                    }
                )


def _sample_absent(
    split: str, image: AnnotatedImage, present: Sequence[str], counts: _ObjectCounts, rng: random.Random
) -> list[str]:
    """One absent object for each present one, by the rule of the split."""
    candidates = sorted(set(counts.single) - set(image.objects))
    if split == "random":
        return rng.sample(candidates, len(present))
    if split == "popular":
        return sorted(candidates, key=lambda name: -counts.single[name])[: len(present)]
    chosen: list[str] = []
    for name in present:
        remaining = [other for other in candidates if other not in chosen]
        together = counts.pairs[name]
        nearest = max(remaining, key=lambda other: (together[other], counts.single[other]))
        # As POPE does where no remaining object occurs with the present one.
        chosen.append(nearest if together[nearest] else rng.choice(remaining))
    return chosen
