"""A polling benchmark by POPE's sampling rule, from any annotated pictures.

From each picture, as many objects that are there as objects that are not. The ones that are not there
are chosen in three ways, which make three splits over the same pictures and the same "yes" questions:

* `random`: any;
* `popular`: those that most pictures have;
* `adversarial`: for each asked object that is there, the one seen together with it most often.

Li et al., "Evaluating object hallucination in large vision-language models" (EMNLP 2023).
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgate_eval.data.annotations import AnnotatedImage, read_annotations
from truthgate_eval.data.images import ImageFolders
from truthgate_eval.data.store import PreparedDataset, add_image_paths, require_images, write_dataset
from truthgate_eval.errors import DataError
from truthgate_eval.files import sha256
from truthgate_eval.metrics.pope import SPLITS

PROBE = "probe"  # the file of questions for probing
# A vowel that sounds like "you" or "one"; and an h that is silent.
_CONSONANT_SOUND = re.compile(
    r"eu|ewe|one\b|once|u-|ufo|uni([^dmn]|$)|us[eaiu]|ut[ei]|ukulele|ura|urin", re.IGNORECASE
)
_VOWEL_SOUND = re.compile(r"[aeiou]|heir|honest|hono|hour|x-ray", re.IGNORECASE)


@dataclass(frozen=True)
class Poll:
    """The questions, and what became of the pictures.

    Attributes:
        splits: Questions by split: question_id, image, object, question and answer.
        pictures: Pictures that questions are asked about.
        unannotated: Pictures without a single object.
        too_few: Pictures with fewer objects than asked for.
        short: Pictures that give fewer questions than the others, for want of objects.
    """

    splits: dict[str, list[dict[str, Any]]]
    pictures: tuple[str, ...]
    unannotated: tuple[str, ...]
    too_few: tuple[str, ...]
    short: tuple[str, ...]


@dataclass(frozen=True)
class _Counts:
    """How often objects are seen, and how often two of them on one picture."""

    seen: Counter[str]
    together: Mapping[str, Counter[str]]

    @classmethod
    def of(cls, pictures: Iterable[AnnotatedImage]) -> _Counts:
        seen: Counter[str] = Counter()
        together: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for picture in pictures:
            seen.update(picture.objects)
            for one in picture.objects:
                together[one].update(other for other in picture.objects if other != one)
        return cls(seen, together)


def make_poll(
    pictures: Sequence[AnnotatedImage],
    *,
    per_picture: int = 3,
    min_objects: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Poll:
    """The three splits over annotated pictures.

    A picture's questions depend on the seed, on its name and on the statistics of all pictures, and not
    on the order of the pictures.

    Args:
        pictures: All annotated pictures; the statistics are taken over them.
        per_picture: "Yes" questions a picture, and as many "no" questions (POPE: 3).
        min_objects: Pictures with fewer objects are left out; `per_picture` by default, as in POPE.
            With less, a picture gives as many questions of each answer as it has objects.
        limit: At most this many pictures, drawn at random (POPE: 500).
        seed: Of all draws.

    Raises:
        DataError: A setting makes no sense, or no picture is left.
    """
    needed = per_picture if min_objects is None else min_objects
    if per_picture < 1 or needed < 1:
        raise DataError(f"per_picture={per_picture}, min_objects={needed}: expected at least 1 of each")
    counts = _Counts.of(pictures)
    annotated = [picture for picture in pictures if picture.objects]
    enough = [picture for picture in annotated if len(picture.objects) >= needed]
    if limit is not None and limit < len(enough):
        drawn = set(random.Random(seed).sample(sorted(picture.image for picture in enough), limit))
        enough = [picture for picture in enough if picture.image in drawn]
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    used, short = [], []
    for picture in enough:
        asked = min(per_picture, len(picture.objects), len(counts.seen) - len(picture.objects))
        if asked:
            used.append(picture.image)
            _ask(splits, picture, asked, counts, seed)
        if asked < per_picture:
            short.append(picture.image)
    if not used:
        raise DataError(
            f"no questions can be asked: of {len(pictures)} pictures, {len(annotated)} are annotated and "
            f"{len(enough)} have at least {needed} objects, of {len(counts.seen)} kinds in all"
        )
    return Poll(
        splits=splits,
        pictures=tuple(used),
        unannotated=tuple(picture.image for picture in pictures if not picture.objects),
        too_few=tuple(picture.image for picture in annotated if len(picture.objects) < needed),
        short=tuple(short),
    )


def prepare_poll(
    annotations: Path,
    images: Sequence[Path],
    out: Path,
    *,
    per_picture: int = 3,
    min_objects: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    probe_share: float = 0.0,
    allow_missing: bool = False,
) -> PreparedDataset:
    """Write `out/poll/{random,popular,adversarial}.parquet`; see `make_poll` for the other settings.

    Args:
        annotations: See `read_annotations`.
        images: Folders of pictures.
        out: The data folder.
        per_picture: As in `make_poll`, and so are the others.
        min_objects: As there.
        limit: As there.
        seed: As there.
        probe_share: The share of the pictures that is set aside for probing: the random questions about
            them go into `probe.parquet`, and no split has them.
        allow_missing: Leave pictures that are missing out instead of refusing.

    Raises:
        DataError: The annotations cannot be read, pictures are missing and that is not allowed, or the
            share leaves nothing on one side.
    """
    if not 0 <= probe_share < 1:
        raise DataError(f"probe_share={probe_share}: expected a share from 0 to below 1")
    pictures = read_annotations(annotations)
    folders = ImageFolders(images)
    found, missing = folders.find_all(picture.image for picture in pictures)
    folder = out / "poll"
    require_images(found, missing, folders.folders, allow_missing=allow_missing, report_to=folder)
    poll = make_poll(
        [picture for picture in pictures if picture.image in found],
        per_picture=per_picture,
        min_objects=min_objects,
        limit=limit,
        seed=seed,
    )
    files = {split: add_image_paths(questions, found) for split, questions in poll.splits.items()}
    aside = _set_aside(poll.pictures, probe_share, seed)
    if probe_share:
        probing = [row for row in files["random"] if row["image"] in aside]
        files = {split: [row for row in rows if row["image"] not in aside] for split, rows in files.items()}
        files[PROBE] = probing
    needed = per_picture if min_objects is None else min_objects
    unlisted = len(folders) - len(set(found.values()))
    notes = [
        f"{len(poll.pictures)} pictures are asked about, {len(aside)} of them for probing only",
        f"{len(poll.unannotated)} annotated with no object: left out",
        f"{len(poll.too_few)} with fewer than {needed} kinds of objects: left out",
        f"{len(poll.short)} give fewer than {2 * per_picture} questions, for want of objects",
        f"{unlisted} in the folder but not in the annotations: left out",
    ]
    source = {
        "annotations": str(annotations),
        "sha256": sha256(annotations),
        "images": [str(path) for path in folders.folders],
        **{"per_picture": per_picture, "min_objects": needed, "limit": limit, "seed": seed},
        "probe_share": probe_share,
    }
    prepared = write_dataset(folder, files, source=source, missing=missing, notes=notes)
    if PROBE not in files:  # an older poll's pictures for probing may be asked about in this one
        (folder / f"{PROBE}.parquet").unlink(missing_ok=True)
    return prepared


def question_text(name: str) -> str:
    """POPE's question about an object, with the article that its sound asks for."""
    vowel = _VOWEL_SOUND.match(name) and not _CONSONANT_SOUND.match(name)
    return f"Is there {'an' if vowel else 'a'} {name} in the image?"


def _set_aside(pictures: Sequence[str], share: float, seed: int) -> set[str]:
    number = round(share * len(pictures))
    if share and not 0 < number < len(pictures):
        raise DataError(
            f"probe_share={share} of {len(pictures)} pictures leaves none for probing or none to ask about"
        )
    return set(random.Random(f"{seed}:probe").sample(sorted(pictures), number))


def _ask(
    splits: dict[str, list[dict[str, Any]]], picture: AnnotatedImage, asked: int, counts: _Counts, seed: int
) -> None:
    """Add one picture's questions to every split, "yes" and "no" in turn."""
    draw = random.Random(f"{seed}:{picture.image}")
    present = draw.sample(sorted(picture.objects), asked)
    for split, questions in splits.items():
        absent = _absent(split, picture, present, counts, draw)
        for there, not_there in zip(present, absent, strict=True):
            for name, answer in ((there, "yes"), (not_there, "no")):
                questions.append(
                    {
                        "question_id": len(questions) + 1,
                        "image": picture.image,
                        "object": name,
                        "question": question_text(name),
                        "answer": answer,
                    }
                )


def _absent(
    split: str, picture: AnnotatedImage, present: Sequence[str], counts: _Counts, draw: random.Random
) -> list[str]:
    """As many absent objects as present ones are asked for, chosen as the split does."""
    candidates = sorted(set(counts.seen) - set(picture.objects))
    if split == "random":
        return draw.sample(candidates, len(present))
    if split == "popular":
        return sorted(candidates, key=lambda name: -counts.seen[name])[: len(present)]
    chosen: list[str] = []
    for name in present:
        left = [other for other in candidates if other not in chosen]
        near = counts.together[name]
        nearest = max(left, key=lambda other: (near[other], counts.seen[other]))
        # POPE's way out where nothing that is left was ever seen together with the object.
        chosen.append(nearest if near[nearest] else draw.choice(left))
    return chosen
