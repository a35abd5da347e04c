"""A vision-language model that computes shared prefixes once; an image is a run of tokens like any other.

Each token of an image gets an id of its own beyond the vocabulary, the same in every question about that
image. Planning (`inference.prefix_plan`) therefore sees what questions share, images included. Only where the
decoder is called do ids become embeddings: those of text from the model's table, those of images from their
features.

Use `vision.self_check.load`, which also finds out whether a model can do this.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from truthgate_eval.inference.packing import PositionIds
from truthgate_eval.inference.prefix_plan import PackedPrompt
from truthgate_eval.inference.reference import ReferenceLogits, logits_and_rounding
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.vision.image_features import (
    DEEPSTACK_FEATURES,
    DEEPSTACK_MASK,
    ImageFeatures,
    encode_images,
)
from truthgate_eval.vision.image_tokens import expand_images, find_image_token
from truthgate_eval.vision.model import VisionLanguageModel

# A question of the self check: its text, and which of the test images it is about.
_TestQuestion = tuple[str, list[int]]


class SharedPrefixVLM(SharedPrefixModel):
    """A vision-language model that runs packed prompts after shared prefixes.

    Attributes:
        vlm: The model.
        supports_multi_image: Whether it is also right about several images in one question. True until
            `vision.self_check` has found otherwise.
        placeholder: Token id of an image's placeholder.
        first_image_id: The first id beyond the vocabulary.
        num_position_axes: How many axes the model's position ids have; 0 where it numbers tokens one by one,
            which an image that was encoded shows.
        images: The images that prompts may contain: see `with_images`.
        first_ids: First id of each image, and the first id after all of them.
    """

    def __init__(self, vlm: VisionLanguageModel, decoder: nn.Module) -> None:
        """Wrap a model without running it.

        Args:
            vlm: The model.
            decoder: Its text decoder.
        """
        super().__init__(vlm.model, decoder)
        self.vlm = vlm
        self.supports_multi_image = True
        self.placeholder = find_image_token(vlm)
        self.num_position_axes = 0
        self._embedding = vlm.model.get_input_embeddings()
        self.first_image_id = int(self._embedding.weight.shape[0])
        self._set_images([])

    def with_images(self, images: Sequence[ImageFeatures]) -> SharedPrefixVLM:
        """A copy whose ids beyond the vocabulary are these images' tokens."""
        other = copy.copy(self)
        other._set_images(images)
        return other

    def _set_images(self, images: Sequence[ImageFeatures]) -> None:
        self.images = list(images)
        self.first_ids = self.first_image_id + np.cumsum([0, *map(len, images)])
        self._features = torch.cat([image.features for image in images] or [torch.zeros(0)])
        added = [image.layer_features for image in images if image.layer_features is not None]
        self._layer_features = torch.cat(added, dim=1) if added else None
        axes = (len(image.position_ids) for image in images if image.position_ids is not None)
        self.num_position_axes = next(axes, self.num_position_axes)

    @property
    def position_ids(self) -> PositionIds | None:
        """Position ids of a sequence, for models with several axes; else None."""
        return self._position_ids if self.num_position_axes else None

    def input_key(self) -> tuple[Hashable, ...]:
        """The images: the same ids stand for others in another copy."""
        return tuple(self.images)

    def expand(self, token_ids: Sequence[int], images: Sequence[int]) -> list[int]:
        """A prompt's token ids with its images' ids in place of the placeholders.

        Args:
            token_ids: See `VisionLanguageModel.tokens`.
            images: For each placeholder, the index of its image in `images`.

        Raises:
            ImageMismatchError: There are not as many placeholders as images.
        """
        runs = [range(int(self.first_ids[i]), int(self.first_ids[i + 1])) for i in images]
        return expand_images(token_ids, self.placeholder, runs)

    def embed(self, token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """The decoder's keyword argument for token ids [rows, length]: embeddings [rows, length, hidden]."""
        of_images = token_ids >= self.first_image_id
        with torch.no_grad():
            embeddings = self._embedding(token_ids.masked_fill(of_images, 0))
        if bool(of_images.any()):
            index = (token_ids[of_images] - self.first_image_id).to(self._features.device)
            embeddings[of_images] = self._features[index].to(embeddings.device, embeddings.dtype)
        return {"inputs_embeds": embeddings}

    @contextmanager
    def _pass(self, token_ids: torch.Tensor) -> Iterator[None]:
        """See `SharedPrefixModel._pass`: the decoder gets what images add after its first layers (DeepStack).

        Its arguments are changed where it is called: the model around it takes no such arguments.
        """
        of_images = token_ids >= self.first_image_id
        if self._layer_features is None or not bool(of_images.any()):
            yield
            return
        added = self._layer_features[:, (token_ids[of_images] - self.first_image_id).cpu()]

        def change(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            features = list(added.to(kwargs["inputs_embeds"].device))
            return args, {**kwargs, DEEPSTACK_MASK: of_images, DEEPSTACK_FEATURES: features}

        hook = self.decoder.register_forward_pre_hook(change, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def _position_ids(self, token_ids: Sequence[int]) -> NDArray[np.int64]:
        """See `packing.PositionIds`; text after an image goes on by the image's `advance`."""
        ids, count = np.asarray(token_ids, dtype=np.int64), len(token_ids)
        positions = np.tile(np.arange(count + 1), (self.num_position_axes, 1))
        for start in np.flatnonzero(np.isin(ids, self.first_ids[:-1])).tolist():
            image = self.images[int(np.searchsorted(self.first_ids, ids[start]))]
            assert image.position_ids is not None
            end = min(start + len(image), count)  # a prefix may end within an image
            first = int(positions[0, start])
            positions[:, start:end] = first + image.position_ids[:, : end - start]
            positions[:, end:] = first + image.advance + np.arange(count + 1 - end)
        return positions

    def for_self_check(self) -> SharedPrefixVLM:
        """A copy with the two test images."""
        return self.with_images(encode_images(self.vlm, self.decoder, _make_test_images()))

    def make_reference(self) -> ReferenceLogits:
        """Two questions about the second test image, and the model's own logits for them."""
        questions: list[_TestQuestion] = [("Is there a small dog?", [1]), ("Which colour has it?", [1])]
        first, second = map(self._test_token_ids, questions)
        common = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        suffixes = tuple(first[common:]), tuple(second[common:])
        prompt = PackedPrompt(tuple(first[:common]), suffixes, (0, 1))
        longer = ("Is there a small dog to the left of the tree, or is there none?", [1])
        return ReferenceLogits(prompt, *logits_and_rounding(self._last_logits, questions, longer, self.dtype))

    def make_multi_image_reference(self) -> tuple[list[PackedPrompt], ReferenceLogits]:
        """A question about both test images in either order: a prompt each, and the model's own logits."""
        questions: list[_TestQuestion] = [("Which one?", [0, 1]), ("Which one?", [1, 0])]
        longer = ("Which one of the two is it?", [0, 1])
        sequences = [tuple(self._test_token_ids(question)) for question in questions]
        prompts = [PackedPrompt((), (token_ids,), (i,)) for i, token_ids in enumerate(sequences)]
        logits, rounding = logits_and_rounding(self._last_logits, questions, longer, self.dtype)
        return prompts, ReferenceLogits(prompts[0], logits, rounding)

    def _test_token_ids(self, question: _TestQuestion) -> list[int]:
        text, images = question
        return self.expand(self.vlm.tokens(self.vlm.prompt(text, len(images))), images)

    def _last_logits(self, questions: Sequence[_TestQuestion]) -> torch.Tensor:
        """The model's own last logits of test questions in one padded batch, float32 [n, vocabulary]."""
        test_images = _make_test_images()
        inputs = self.vlm.encode(
            [self.vlm.prompt(text, len(images)) for text, images in questions],
            [[test_images[i] for i in images] for _, images in questions],
            padding_side="right",
        )
        last = (inputs["attention_mask"].sum(dim=1) - 1).cpu()  # logits may be on another device
        with torch.no_grad():
            logits = self.model(**inputs, use_cache=False).logits
        return logits[torch.arange(len(last)), last].float()


def _make_test_images() -> list[Image.Image]:
    """Two images of noise, one upright and one wide."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 80, 80, 3), dtype=np.uint8)
    return [Image.fromarray(noise[0, :, :56]), Image.fromarray(noise[1, :56])]
