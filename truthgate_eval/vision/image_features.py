"""Images as a text decoder sees them: the output of vision tower and projector, computed once for each image.

A gate acts in the text decoder only, so an image's features are valid for every gate, question and task. See
`docs/performance.md#how-the-engine-works`, "Images".
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import nn

from truthgate_eval.inference import tuning
from truthgate_eval.vision.image_tokens import ImageMismatchError, find_image_span
from truthgate_eval.vision.model import VisionLanguageModel

# Text after an image while it is encoded: the position after the image is read off the token that follows.
_QUESTION = "x"
# transformers' names of a decoder's arguments for DeepStack: what is added after each of the first layers,
# and the tokens to which it is added.
DEEPSTACK_FEATURES, DEEPSTACK_MASK = "deepstack_visual_embeds", "visual_pos_masks"


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """One image's part of the text decoder's input.

    Attributes:
        features: The embeddings of its tokens, [tokens, hidden], on the CPU; those of text that the processor
            writes between them, too.
        position_ids: Position ids counted from the image's first one, int64 [axes, tokens]; None where the
            model numbers tokens one by one.
        advance: By how many positions text after the image moves on: fewer than tokens where the image's axes
            overlap.
        layer_features: What is added to the hidden states of its tokens after each of the decoder's first
            layers (DeepStack, as in Qwen3-VL), [layers, tokens, hidden] on the CPU; None in most classes.
    """

    features: torch.Tensor
    position_ids: NDArray[np.int64] | None
    advance: int
    layer_features: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def memory(self) -> int:
        """Bytes of its features."""
        tensors = [self.features] if self.layer_features is None else [self.features, self.layer_features]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def image_key(image: Image.Image) -> Hashable:
    """Identifies an image by all that decides the pixels a processor makes of it.

    These are its mode and size, the stored values, the palette that they index, a transparent color (not in
    the stored values), and the EXIF orientation, by which transformers turns images.

    Example:
        >>> image = Image.new("RGB", (4, 3), "red")
        >>> image_key(image) == image_key(image.copy()), image_key(image) == image_key(image.rotate(180))
        (True, True)
        >>> image_key(image) == image_key(Image.new("RGB", (3, 4), "red"))
        False
    """
    pixels = hashlib.sha256(image.tobytes()).digest()
    palette = image.getpalette(None)
    return (
        image.mode,
        image.size,
        pixels,
        None if palette is None else (image.im.getpalettemode(), bytes(palette)),
        repr(image.info.get("transparency")),
        image.getexif().get(ExifTags.Base.Orientation, 1),
    )


def image_keys(images: Sequence[Image.Image]) -> tuple[Hashable, ...]:
    """The `image_key` of each image."""
    return tuple(map(image_key, images))


class ImageFeatureCache:
    """Features of images by key; the least recently used are dropped where memory is short.

    They are valid for one model with one set of active adapters: see `for_model`.
    """

    def __init__(self, memory: int | None = None) -> None:
        """Make an empty cache.

        Args:
            memory: The most bytes to keep; `tuning.IMAGE_FEATURE_CACHE_BYTES` by default.
        """
        self.memory = tuning.IMAGE_FEATURE_CACHE_BYTES if memory is None else memory
        self._model: Any = None
        self._adapters: tuple[Hashable, ...] = ()
        self._features: dict[Hashable, ImageFeatures] = {}
        self._used_memory = 0

    def for_model(self, model: Any) -> ImageFeatureCache:
        """This cache, emptied if another model, or other adapters of it, computed the features."""
        adapters = _active_adapters(model)
        if model is not self._model or adapters != self._adapters:
            self._model, self._adapters = model, adapters
            self._features.clear()
            self._used_memory = 0
        return self

    def get(self, key: Hashable) -> ImageFeatures | None:
        """An image's features, which count as used now; None if they are not here."""
        found = self._features.pop(key, None)
        if found is not None:
            self._features[key] = found
        return found

    def add(self, key: Hashable, features: ImageFeatures) -> None:
        """Keep an image's features."""
        self._features[key] = features
        self._used_memory += features.memory
        while self._used_memory > self.memory and self._features:
            self._used_memory -= self._features.pop(next(iter(self._features))).memory


def _active_adapters(model: Any) -> tuple[Hashable, ...]:
    active = getattr(model, "active_adapters", None)
    try:
        return tuple(active() if callable(active) else active or ())
    except ValueError:  # transformers' own method, on a model without adapters
        return ()


def encode_images(
    vlm: VisionLanguageModel, decoder: nn.Module, images: Sequence[Image.Image]
) -> list[ImageFeatures]:
    """Features of some images: what the model's own forward passes to its text decoder for each of them.

    Args:
        vlm: The model.
        decoder: Its text decoder, which does not run.
        images: The images, in one batch.

    Raises:
        ImageMismatchError: The decoder's input is not one run of embeddings for each image.
    """
    prompt = vlm.prompt(_QUESTION, 1)
    unexpanded = vlm.tokens(prompt)
    inputs = vlm.encode([prompt] * len(images), [[image] for image in images])
    decoder_inputs = _capture_decoder_inputs(decoder, vlm.model, inputs)
    embeddings = decoder_inputs.get("inputs_embeds")
    if embeddings is None or embeddings.shape[:2] != inputs["input_ids"].shape:
        raise ImageMismatchError("its text decoder does not take one embedding for each token")
    rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    return [
        _features_of_row(decoder_inputs, row, mask, find_image_span(vlm, padded[mask].tolist(), unexpanded))
        for row, (padded, mask) in enumerate(rows)
    ]


def _features_of_row(
    decoder_inputs: Mapping[str, Any], row: int, mask: torch.Tensor, span: tuple[int, int]
) -> ImageFeatures:
    """The image of one prompt.

    Args:
        decoder_inputs: The decoder's keyword arguments, for a whole batch.
        row: Row of the prompt.
        mask: Its columns without padding, bool [length].
        span: Where the image is among these, see `find_image_span`.
    """
    start, end = span
    embeddings, positions = decoder_inputs["inputs_embeds"], decoder_inputs.get("position_ids")
    position_ids, advance = None, end - start
    if positions is not None and positions.ndim == 3:
        of_row = positions[:, row, mask.to(positions.device)].long().cpu().numpy()
        position_ids, advance = _image_positions(of_row, start, end - start)
    added = _layer_features(decoder_inputs, row, mask)
    added = None if added is None else added[:, start:end].cpu()
    return ImageFeatures(embeddings[row][mask][start:end].cpu(), position_ids, advance, added)


def _layer_features(decoder_inputs: Mapping[str, Any], row: int, mask: torch.Tensor) -> torch.Tensor | None:
    """What a decoder adds to one prompt's hidden states after each of its first layers; 0 at its text.

    Args as those of `_features_of_row`.

    Returns:
        [layers, tokens, hidden], or None where the decoder adds nothing.
    """
    by_layer = decoder_inputs.get(DEEPSTACK_FEATURES)
    if by_layer is None:
        return None
    where = decoder_inputs[DEEPSTACK_MASK]
    start = int(where[:row].sum())
    own = torch.stack([features[start : start + int(where[row].sum())] for features in by_layer])
    added = own.new_zeros(len(own), where.shape[1], own.shape[-1])
    added[:, where[row].to(own.device)] = own
    return added[:, mask.to(own.device)]


def _image_positions(positions: NDArray[np.int64], start: int, count: int) -> tuple[NDArray[np.int64], int]:
    """Position ids of an image counted from its first free one, and how far the text after it moves on.

    Args:
        positions: Position ids of a whole prompt, [axes, length].
        start: Column of the image's first token.
        count: How many tokens it has.
    """
    first_free = int(positions[:, start - 1].max()) + 1 if start else 0
    advance = int(positions[0, start + count]) - first_free
    return positions[:, start : start + count] - first_free, advance


class _DecoderReachedError(Exception):
    """Ends a model's forward where its decoder would run."""


def _capture_decoder_inputs(decoder: nn.Module, model: Any, inputs: Any) -> dict[str, Any]:
    """The keyword arguments with which the model calls its decoder."""
    captured: dict[str, Any] = {}

    def capture(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.update(kwargs)
        raise _DecoderReachedError

    hook = decoder.register_forward_pre_hook(capture, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    except _DecoderReachedError:
        return captured
    finally:
        hook.remove()
    raise ImageMismatchError("its forward does not reach its text decoder")
