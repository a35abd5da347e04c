"""The shared-prefix forward pass of a vision-language model: a picture is a run of tokens like any other.

Each of a picture's tokens gets an id of its own beyond the vocabulary, the same in every question about
that picture. So the planner (`prefix_tree`) sees what questions share, pictures and all, and only at
the decoder's door do ids become embeddings: the text's from the model's table, the pictures' from theirs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from truthgate_eval.inference.prefix_plan import PackedPrompt
from truthgate_eval.inference.self_check import ReferenceLogits, logits_and_rounding, mismatch, run_safely
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.vision.image_features import ImageFeatures, encode_images, expand_images, find_image_token
from truthgate_eval.vision.model import VisionLanguageModel

log = logging.getLogger(__name__)

_Tried = tuple[str, list[int]]  # a question, the numbers of its pictures


class SharedPrefixVLM(SharedPrefixModel):
    """A vision-language model that can be run on rows.

    Attributes:
        vlm: The model.
        several: Whether it is right about several pictures in one question, too.
    """

    def __init__(self, vlm: VisionLanguageModel, decoder: nn.Module) -> None:
        """Try the model on two small pictures, and say in one log line what it cannot share."""
        self.vlm = vlm
        self.placeholder = find_image_token(vlm)
        self.embedding = vlm.model.get_input_embeddings()
        self.beyond = int(self.embedding.weight.shape[0])
        self.axes = 0
        self._set_images([])
        super().__init__(vlm.model, decoder)
        reason = run_safely(self._several) if self.supports_sharing else None
        self.supports_multi_image = self.supports_sharing and reason is None
        if reason is not None:
            log.warning(
                "%s: questions about several pictures share no prefixes: %s", type(vlm.model).__name__, reason
            )
        self._set_images([])

    def with_images(self, pictures: Sequence[ImageFeatures]) -> SharedPrefixVLM:
        """The same model, with these pictures' tokens as the ids beyond its vocabulary."""
        other = copy.copy(self)
        other._set_images(pictures)
        return other

    def _set_images(self, pictures: Sequence[ImageFeatures]) -> None:
        self.pictures = list(pictures)
        self.starts = self.beyond + np.cumsum([0, *map(len, pictures)])
        self.features = torch.cat([picture.features for picture in pictures] or [torch.zeros(0)])
        self.axes = next(
            (len(seen.position_ids) for seen in pictures if seen.position_ids is not None), self.axes
        )
        self.position_ids = self._positions if self.axes else None

    def shown(self) -> tuple[Hashable, ...]:
        """The pictures: a picture that is looked at again is another one."""
        return tuple(self.pictures)

    def expand(self, tokens: Sequence[int], pictures: Sequence[int]) -> list[int]:
        """A prompt's tokens with its pictures' tokens in place of the placeholders.

        Args:
            tokens: See `VisionLanguageModel.tokens`.
            pictures: For each placeholder, the number of its picture in `showing`.

        Raises:
            ImageMismatchError: There are not as many placeholders.
        """
        runs = [range(int(self.starts[n]), int(self.starts[n + 1])) for n in pictures]
        return expand_images(tokens, self.placeholder, runs)

    def given(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Embeddings [lanes, length, hidden]."""
        seen = tokens >= self.beyond
        with torch.no_grad():
            embedded = self.embedding(tokens.masked_fill(seen, 0))
        if bool(seen.any()):
            own = self.features[(tokens[seen] - self.beyond).to(self.features.device)]
            embedded[seen] = own.to(embedded.device, embedded.dtype)
        return {"inputs_embeds": embedded}

    def _positions(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        """As `lanes.Positions`: text counts on from the picture before it, as that picture says."""
        ids, count = np.asarray(tokens, dtype=np.int64), len(tokens)
        places = np.tile(np.arange(count + 1), (self.axes, 1))
        for start in np.flatnonzero(np.isin(ids, self.starts[:-1])).tolist():
            picture = self.pictures[int(np.searchsorted(self.starts, ids[start]))]
            assert picture.position_ids is not None
            end = min(start + len(picture), count)  # a prefix may end within a picture
            free = int(places[0, start])
            places[:, start:end] = free + picture.position_ids[:, : end - start]
            places[:, end:] = free + picture.advance + np.arange(count + 1 - end)
        return places

    def trial(self) -> ReferenceLogits:
        """As in `SharedPrefixModel`, about the second of two pictures."""
        noise = np.random.default_rng(0).integers(0, 256, (2, 80, 80, 3), dtype=np.uint8)
        self.samples = [Image.fromarray(noise[0, :, :56]), Image.fromarray(noise[1, :56])]
        self._set_images(encode_images(self.vlm, self.decoder, self.samples))
        asked = [("Is there a small dog?", [1]), ("Which colour has it?", [1])]
        first, second = self._tokens(asked)
        shared = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        row = PackedPrompt(tuple(first[:shared]), (tuple(first[shared:]), tuple(second[shared:])), (0, 1))
        longer = ("Is there a small dog to the left of the tree, or is there none?", [1])
        return ReferenceLogits(row, *logits_and_rounding(self._plainly, asked, longer, self.dtype))

    def _tokens(self, asked: Sequence[_Tried]) -> list[list[int]]:
        """Questions as the decoder's tokens."""
        return [
            self.expand(self.vlm.tokens(self.vlm.prompt(text, len(pictures))), pictures)
            for text, pictures in asked
        ]

    def _plainly(self, asked: Sequence[_Tried]) -> torch.Tensor:
        """The plain model's last logits after questions in one padded batch, float32 [n, vocabulary]."""
        inputs = self.vlm.encode(
            [self.vlm.prompt(text, len(pictures)) for text, pictures in asked],
            [[self.samples[n] for n in pictures] for _, pictures in asked],
            padding_side="right",
        )
        last = (inputs["attention_mask"].sum(dim=1) - 1).cpu()  # logits may be on another device
        with torch.no_grad():
            logits = self.model(**inputs, use_cache=False).logits
        return logits[torch.arange(len(last)), last].float()

    def _several(self) -> str | None:
        """How logits about two pictures, in either order, are not the plain model's; None if they are."""
        asked = [("Which one?", [0, 1]), ("Which one?", [1, 0])]
        longer = ("Which one of the two is it?", [0, 1])
        plain, rounding = logits_and_rounding(self._plainly, asked, longer, self.dtype)
        rows = [PackedPrompt((), (tuple(tokens),), (i,)) for i, tokens in enumerate(self._tokens(asked))]
        batch = self.pack(rows)
        return mismatch(self.logits(batch, *batch.last_tokens(rows)), plain, rounding, self.dtype)
