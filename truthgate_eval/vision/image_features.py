"""Pictures as a text decoder sees them: what the vision tower and the projector make of each, once.

No gate reaches the vision tower, so a picture's features hold for every gate, question and task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from truthgate_eval.vision.model import VisionLanguageModel

# Text around a picture while it is looked at: a token must follow, or its position could not be read.
_QUESTION = "x"
_MEMORY = 2 << 30


class ImageMismatchError(Exception):
    """A model treats pictures in a way that cannot be taken apart; the message says how."""


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """One picture's part of the text decoder's input.

    Attributes:
        features: What stands in place of its placeholders, [tokens, hidden], on the CPU.
        places: Position ids counted from the picture's first free one, int64 [axes, tokens]; None where
            the model just counts tokens.
        advance: How many positions after that the text goes on.
    """

    features: torch.Tensor
    position_ids: NDArray[np.int64] | None
    advance: int

    def __len__(self) -> int:
        return len(self.features)

    @property
    def memory(self) -> int:
        """Bytes of its features."""
        return self.features.numel() * self.features.element_size()


def image_key(picture: Image.Image) -> Hashable:
    """What tells a picture from others: its pixels."""
    return picture.mode, picture.size, hashlib.sha256(picture.tobytes()).digest()


class ImageFeatureCache:
    """The pictures seen last, by key; the longest unused are dropped where memory is bounded.

    What a model has seen holds as long as the model and its active adapters stay what they are.
    """

    def __init__(self, memory: int = _MEMORY) -> None:
        self.memory = memory
        self._model: Any = None
        self._adapters: Hashable = None
        self._seen: dict[Hashable, ImageFeatures] = {}
        self._held = 0

    def for_model(self, model: Any) -> ImageFeatureCache:
        """These, if this model saw them; else emptied."""
        adapters = _adapters(model)
        if model is not self._model or adapters != self._adapters:
            self._model, self._adapters = model, adapters
            self._seen.clear()
            self._held = 0
        return self

    def get(self, key: Hashable) -> ImageFeatures | None:
        """A picture that is still here, now the last used."""
        found = self._seen.pop(key, None)
        if found is not None:
            self._seen[key] = found
        return found

    def add(self, key: Hashable, seen: ImageFeatures) -> None:
        """Keep one more."""
        self._seen[key] = seen
        self._held += seen.memory
        while self._held > self.memory and self._seen:
            self._held -= self._seen.pop(next(iter(self._seen))).memory


def _adapters(model: Any) -> Hashable:
    active = getattr(model, "active_adapters", None)
    try:
        return tuple(active() if callable(active) else active or ())
    except ValueError:  # transformers' own method, on a model without adapters
        return ()


def encode_images(
    vlm: VisionLanguageModel, decoder: nn.Module, pictures: Sequence[Image.Image]
) -> list[ImageFeatures]:
    """What the model's own forward hands to its text decoder for each of these pictures.

    Args:
        vlm: The model.
        decoder: Its text decoder, which is not run.
        pictures: One batch.

    Raises:
        ImageMismatchError: The decoder's input is not one run of embeddings for each picture.
    """
    prompt = vlm.prompt(_QUESTION, 1)
    inputs = vlm.encode([prompt] * len(pictures), [[picture] for picture in pictures])
    taken = _input_of(decoder, vlm.model, inputs)
    embedded, positions = taken.get("inputs_embeds"), taken.get("position_ids")
    if embedded is None or embedded.shape[:2] != inputs["input_ids"].shape:
        raise ImageMismatchError("its text decoder does not take one embedding for each token")
    seen = []
    for row, (tokens, mask) in enumerate(
        zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    ):
        own = tokens[mask]
        at = (own == find_image_token(vlm)).nonzero()[:, 0]
        start, count = int(at[0]) if len(at) else 0, len(at)
        expected = expand_images(vlm.tokens(prompt), find_image_token(vlm), [range(-count, 0)])
        expected = [find_image_token(vlm) if token < 0 else token for token in expected]
        if count == 0 or own.tolist() != expected:
            raise ImageMismatchError("its processor writes more than one run of picture tokens for a picture")
        places, advance = None, count
        if positions is not None and positions.ndim == 3:
            places = positions[:, row, mask.to(positions.device)].long().cpu().numpy()
            free = int(places[:, start - 1].max()) + 1 if start else 0
            advance = int(places[0, start + count]) - free
            places = places[:, start : start + count] - free
        seen.append(ImageFeatures(embedded[row][mask][at].cpu(), places, advance))
    return seen


def find_image_token(vlm: VisionLanguageModel) -> int:
    """The id of a picture's placeholder."""
    return int(vlm.processor.tokenizer.convert_tokens_to_ids(vlm.processor.image_token))


def expand_images(tokens: Sequence[int], placeholder: int, runs: Sequence[Sequence[int]]) -> list[int]:
    """Tokens with the placeholders replaced by one run each, in order.

    Raises:
        ImageMismatchError: There are not as many placeholders as runs.
    """
    if tokens.count(placeholder) != len(runs):
        raise ImageMismatchError(f"a prompt has {tokens.count(placeholder)} placeholders, not {len(runs)}")
    rest = iter(runs)
    return [new for token in tokens for new in (next(rest) if token == placeholder else (token,))]


class _TakenError(Exception):
    """Ends a model's forward where the decoder would begin."""


def _input_of(decoder: nn.Module, model: Any, inputs: Any) -> dict[str, Any]:
    """The keyword arguments with which the model calls its decoder."""
    taken: dict[str, Any] = {}

    def take(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        taken.update(kwargs)
        raise _TakenError

    hook = decoder.register_forward_pre_hook(take, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    except _TakenError:
        return taken
    finally:
        hook.remove()
    raise ImageMismatchError("its forward does not reach its text decoder")
