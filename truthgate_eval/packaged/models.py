"""The packaged models by name: SmolLM2, and its children, made of it and of small shipped weights.

A child is assembled at its first use, to an ordinary checkpoint in the user's cache.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgate_eval.errors import ModelError
from truthgate_eval.files import build_once, replace_folder, sha256
from truthgate_eval.gating.gate_arguments import Modality
from truthgate_eval.packaged import scenes_llava, text_lora
from truthgate_eval.packaged.smollm2 import SMOLLM2, SMOLLM2_SCORES, resolve_smollm2
from truthgate_eval.paths import cache_dir, shipped

log = logging.getLogger(__name__)

# Ends the names of early states of a training, which have more wrong answers. hatch_build.py leaves their
# weights out of the wheel.
EARLY = "-early"
_SOURCES = "made_from.txt"
_RUN_BY: dict[Modality, str] = {
    "text": "is a text model: lm_eval --model gated_hf and truthgate probe --model hf run it",
    "image": "takes images: lmms_eval --model gated_vlm and truthgate probe --model vlm run it",
}


@dataclass(frozen=True)
class PackagedModel:
    """A child of SmolLM2, and how it is made.

    Attributes:
        modality: `text` for a causal language model, `image` for one that takes images and text.
        files: The names of its weights' files in `packaged_weights/NAME`.
        assemble: Writes the checkpoint: called with the folder of weights and an empty folder.
    """

    modality: Modality
    files: tuple[str, ...]
    assemble: Callable[[Path, Path], None]


_LLAVA = PackagedModel("image", scenes_llava.WEIGHT_FILES, scenes_llava.assemble)
_LORA = PackagedModel("text", text_lora.WEIGHT_FILES, text_lora.assemble)
_KINDS = {
    scenes_llava.SCENES_LLAVA: _LLAVA,
    "smollm2-135m-easy-vqa": _LLAVA,
    "smollm2-135m-halueval": _LORA,
}
CHILDREN = {name + state: child for name, child in _KINDS.items() for state in ("", EARLY)}


def resolve_packaged(name: str, modality: Modality) -> str:
    """A model's name or path for transformers; a packaged model becomes a folder in the cache.

    Every other name is returned as it is.

    Args:
        name: As a user writes it.
        modality: What the model is used for: `text`, or `image` with pictures.

    Raises:
        DataError: The cache cannot be written.
        ModelError: The packaged model is of the other modality; its weights are missing, as those of early
            states are in a wheel, or do not fit; or the name is nearly a packaged model's.

    Example:
        >>> resolve_packaged("owner/model", "text")
        'owner/model'
    """
    _check_name(name, modality)
    child = CHILDREN.get(name)
    if child is None:
        return resolve_smollm2(name)
    folder, weights = cache_dir() / "models" / name, shipped("packaged_weights") / name
    missing = next((file for file in child.files if not (weights / file).is_file()), None)
    if missing is not None:
        remedy = "only a checkout has those of early states" if name.endswith(EARLY) else "install it again"
        raise ModelError(f"the weights of {name} are missing, there is no {weights / missing}: {remedy}")
    fingerprint = "\n".join(f"{file} {sha256(weights / file)}" for file in child.files)

    def build() -> None:
        with replace_folder(folder) as partial:
            child.assemble(weights, partial)
            (partial / _SOURCES).write_text(fingerprint, encoding="utf-8")

    build_once(
        folder,
        is_built=lambda: (folder / "config.json").is_file() and _made_from(folder) == fingerprint,
        build=build,
        announcement=f"assembling {name} once in {folder} (about half a minute)",
    )
    return str(folder)


def default_scores(pretrained: object, scores: Any) -> Any:
    """The scores that a model is gated with where none are named.

    Args:
        pretrained: The model's name, or a loaded model.
        scores: What the user gives; None where that is nothing.

    Returns:
        `scores`, if they are given; else the name of the shipped ones for the packaged SmolLM2, `none` for
        its children, and None for another model.

    Example:
        >>> default_scores(SMOLLM2, None), default_scores(SMOLLM2, "none"), default_scores("owner/base", None)
        ('smollm2-135m-instruct__halueval-qa', 'none', None)
    """
    if scores is not None or not isinstance(pretrained, str):
        return scores
    if pretrained in CHILDREN:
        log.info("no scores are given: %s runs without a gate", pretrained)
        return "none"
    return SMOLLM2_SCORES if pretrained == SMOLLM2 else None


def _check_name(name: str, modality: Modality) -> None:
    """Refuse a packaged model of the other modality, and a name that is nearly one of theirs."""
    packaged: dict[str, Modality] = {SMOLLM2: "text"}
    packaged |= {child_name: child.modality for child_name, child in CHILDREN.items()}
    own = packaged.get(name)
    if own is not None and own != modality:
        raise ModelError(f"{name} {_RUN_BY[own]}")
    if own is not None or "/" in name or Path(name).exists():
        return
    near = difflib.get_close_matches(name, packaged, cutoff=0.7)
    if near:
        raise ModelError(f"no packaged model and no folder has the name {name}: try {', '.join(near)}")


def _made_from(checkpoint: Path) -> str | None:
    """The fingerprint of the weights that a checkpoint was assembled from; None if it is not recorded."""
    file = checkpoint / _SOURCES
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
