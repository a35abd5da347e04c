"""Answers about images as token ids of a vision-language model that shares prefixes.

An image is encoded once, and its tokens have ids of their own beyond the vocabulary
(`vision.shared_prefix`): measures of heads then see a question about an image as a text like any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

from PIL.Image import Image

from truthgate_eval.errors import ModelError, ProbeError
from truthgate_eval.memory import free_memory
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_conditions import write_prompt
from truthgate_eval.vision.image_features import ImageFeatures, ImageMismatchError, encode_images
from truthgate_eval.vision.shared_prefix import SharedPrefixVLM

_ENCODE_AT_ONCE = 8


def tokenize_with_images(
    model: SharedPrefixVLM, dataset: ProbeDataset
) -> tuple[SharedPrefixVLM, list[list[int]]]:
    """Encode a data set's images, and write its sequences as token ids.

    Args:
        model: From `vision.self_check.load`.
        dataset: Answers with their images.

    Returns:
        The model with the images, and each sequence's token ids, up to the answer's last token.

    Raises:
        ModelError: The model's images cannot be separated from its text.
        ProbeError: The images' features would fill half of the memory.
    """
    if not model.supports_sharing:
        raise ModelError(
            f"{model.vlm.name} does not compute the same with its images apart from its text (see the log "
            "above): probe it with --score accuracy, auroc or context-gain"
        )
    features, keys = _encode(model, dataset.examples)
    order = {key: index for index, key in enumerate(features)}
    with_images = model.with_images(list(features.values()))
    sequences = []
    for example, own_keys in zip(dataset.examples, keys, strict=True):
        text = write_prompt(model.vlm, example, len(own_keys), bare_question=dataset.bare_questions)
        try:
            sequences.append(
                with_images.expand(model.vlm.answer_tokens(text), [order[key] for key in own_keys])
            )
        except ImageMismatchError as error:
            raise ModelError(f"{model.vlm.name}: {error}") from error
    return with_images, sequences


def features_digest(model: SharedPrefixVLM) -> str:
    """SHA-256 of the features of a model's images, in order: of their pixels and of the vision tower."""
    found = hashlib.sha256()
    for image in model.images:
        found.update(image.features.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _encode(
    model: SharedPrefixVLM, examples: Sequence[ProbeExample]
) -> tuple[dict[Hashable, ImageFeatures], list[list[Hashable]]]:
    """Features of each image, and the keys of each answer's images. Few images are decoded at a time."""
    features: dict[Hashable, ImageFeatures] = {}
    counts: dict[Hashable, int] = {}
    keys: list[list[Hashable]] = []
    waiting: dict[Hashable, Image] = {}
    for number, example in enumerate(examples):
        # Answers without a key are about images of their own.
        base = example.image_key if example.image_key is not None else ("answer", number)
        if base not in counts:
            own = list(example.load_images()) if example.load_images is not None else []
            counts[base] = len(own)
            waiting |= {(base, position): image for position, image in enumerate(own)}
        keys.append([(base, position) for position in range(counts[base])])
        if len(waiting) >= _ENCODE_AT_ONCE:
            features |= _encode_batch(model, waiting)
            waiting = {}
            if sum(image.memory for image in features.values()) > free_memory(model.device) / 2:
                raise ProbeError(
                    f"the features of {len(features)} images fill half of the free memory: take fewer "
                    "documents with --limit"
                )
    return features | _encode_batch(model, waiting), keys


def _encode_batch(model: SharedPrefixVLM, images: dict[Hashable, Image]) -> dict[Hashable, ImageFeatures]:
    if not images:
        return {}
    try:
        encoded = encode_images(model.vlm, model.decoder, list(images.values()))
    except ImageMismatchError as error:
        raise ModelError(f"{model.vlm.name}: {error}") from error
    return dict(zip(images, encoded, strict=True))
