"""Answers many questions about images, and computes once what they share.

Each image is encoded once, its keys and values are those of a shared prefix, equal questions are answered
once, and questions about different images run in one batch.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from truthgate_eval.inference import tuning
from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.greedy import decode_greedily, end_tokens
from truthgate_eval.inference.loglikelihood import ScoringRequest, log_likelihoods
from truthgate_eval.inference.next_token_divergence import next_token_log_probs
from truthgate_eval.memory import is_out_of_memory
from truthgate_eval.vision.image_features import (
    ImageFeatureCache,
    ImageFeatures,
    encode_images,
    image_keys,
)
from truthgate_eval.vision.image_tokens import ImageMismatchError
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.shared_prefix import SharedPrefixVLM

log = logging.getLogger(__name__)

# Texts whose token ids are kept: tasks and gates ask the same ones again.
_CACHED_TEXTS = 1 << 16

Progress = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """One question about images.

    Attributes:
        prompt: The question in the model's chat format, up to where the answer begins.
        image_keys: Keys of its images, in the order of their placeholders: see `register_images`.
        load_images: Decodes the images.
        answer: What is scored, for losses.
    """

    prompt: str
    image_keys: tuple[Hashable, ...]
    load_images: Callable[[], Sequence[Image.Image]]
    answer: str = ""


@dataclass(frozen=True, eq=False)
class _Part:
    """Questions that run together, and a model with their images' features.

    Attributes:
        indices: Indices of the questions.
        model: The model with the images.
        image_indices: Index in `model.images` of each image key.
    """

    indices: list[int]
    model: SharedPrefixVLM
    image_indices: dict[Hashable, int]


class ImageQuestionEngine:
    """A vision-language model that answers many questions at a time, from `self_check.load_question_engine`.

    Attributes:
        vlm: The model.
        model: The same, with shared prefixes.
        feature_cache: Features of images seen before; no gate changes them.
    """

    def __init__(self, vlm: VisionLanguageModel, model: SharedPrefixVLM) -> None:
        """Make an engine.

        Args:
            vlm: The model.
            model: The same, from `vision.self_check.load`; it must support sharing.
        """
        self.vlm, self.model = vlm, model
        self.feature_cache = ImageFeatureCache()
        # Images that were decoded for their keys and wait for the vision tower.
        self._decoded: dict[Hashable, Image.Image] = {}
        self._decoded_bytes = 0
        self._token_ids = functools.lru_cache(maxsize=_CACHED_TEXTS)(vlm.tokens)
        self._answer_token_ids = functools.lru_cache(maxsize=_CACHED_TEXTS)(vlm.answer_tokens)

    def register_images(self, images: Sequence[Image.Image]) -> tuple[Hashable, ...]:
        """Keys of a question's images, for `ImagePrompt`; equal images have equal keys."""
        keys = image_keys(images)
        features = self.feature_cache.for_model(self.vlm.model)
        for key, image in zip(keys, images, strict=True):
            waits = features.get(key) is not None or key in self._decoded
            if not waits and self._decoded_bytes < tuning.DECODED_IMAGE_BYTES:
                self._decoded[key] = image
                self._decoded_bytes += _decoded_bytes(image)
        return keys

    def generate(
        self,
        prompts: Sequence[ImagePrompt],
        *,
        max_new_tokens: int,
        batch_size: int | str,
        progress: Progress = lambda _: None,
    ) -> list[str | None]:
        """Greedy answers; None for a question that the model must answer on its own path.

        Args:
            prompts: The questions.
            max_new_tokens: The most tokens of an answer.
            batch_size: A batch has as many tokens as that many of the longest questions, or `auto`.
            progress: Called with the number of questions answered since the last call.
        """
        answers: list[str | None] = [None] * len(prompts)
        for part in self._split_by_memory(prompts, batch_size):
            token_ids = {i: self._token_ids(prompts[i].prompt) for i in part.indices}
            limit = part.model.max_shared_length - max_new_tokens
            expanded = {i: own for i, own in _expand(part, prompts, token_ids).items() if len(own) <= limit}
            sequences = list(expanded.values())
            new_tokens = decode_greedily(
                part.model,
                sequences,
                max_new_tokens=max_new_tokens,
                budget=TokenBudget.for_batch_size(
                    batch_size, sequences, part.model.device, max_new_tokens=max_new_tokens
                ),
                eos=end_tokens(self.vlm.model.generation_config),
                progress=progress,
            )
            texts = self.vlm.processor.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
            for i, text in zip(expanded, texts, strict=True):
                answers[i] = text
        return answers

    def losses(
        self, prompts: Sequence[ImagePrompt], *, batch_size: int | str, progress: Progress = lambda _: None
    ) -> list[tuple[float, bool] | None]:
        """Mean loss per token of each answer and whether it is the greedy one; None as in `generate`.

        Raises:
            DataError: An answer has no token of its own.
        """
        losses: list[tuple[float, bool] | None] = [None] * len(prompts)
        for part in self._split_by_memory(prompts, batch_size):
            token_ids = {
                i: self._answer_token_ids(prompts[i].prompt + prompts[i].answer) for i in part.indices
            }
            requests: dict[int, ScoringRequest] = {}
            for i, sequence in _expand(part, prompts, token_ids).items():
                count = self.vlm.new_tokens(prompts[i].prompt, prompts[i].answer)
                if count < len(sequence) <= part.model.max_shared_length:
                    requests[i] = sequence[:-1], sequence[-count:]
            inputs = [input_ids for input_ids, _ in requests.values()]
            found = log_likelihoods(
                part.model,
                list(requests.values()),
                budget=TokenBudget.for_batch_size(batch_size, inputs, part.model.device),
                softmax_dtype=torch.float32,
                progress=progress,
            )
            for (i, (_, answer)), (log_likelihood, is_greedy) in zip(requests.items(), found, strict=True):
                losses[i] = -log_likelihood / len(answer), is_greedy
        return losses

    def sequences(
        self, prompts: Sequence[ImagePrompt], *, batch_size: int | str
    ) -> Iterator[tuple[SharedPrefixVLM, dict[int, list[int]]]]:
        """Questions with their answers as token ids, in parts, each with the model that reads them.

        Args:
            prompts: The questions.
            batch_size: How many images go through the vision tower together, or `auto`.

        Yields:
            The model with a part's images, and by index the token ids of its questions, up to their answers'
            last tokens. Questions that cannot be written so, or are too long, are in no part.
        """
        for part in self._split_by_memory(prompts, batch_size):
            token_ids = {
                i: self._answer_token_ids(prompts[i].prompt + prompts[i].answer) for i in part.indices
            }
            expanded = _expand(part, prompts, token_ids)
            limit = part.model.max_shared_length
            yield part.model, {i: own for i, own in expanded.items() if len(own) <= limit}

    def next_token_log_probs(
        self, prompts: Sequence[ImagePrompt], *, batch_size: int | str
    ) -> list[torch.Tensor | None]:
        """Log-probabilities of each answer's first token, float32 [vocabulary]; None as in `generate`."""
        found: list[torch.Tensor | None] = [None] * len(prompts)
        for part in self._split_by_memory(prompts, batch_size):
            token_ids = {i: self._token_ids(prompts[i].prompt) for i in part.indices}
            limit = part.model.max_shared_length
            expanded = {i: own for i, own in _expand(part, prompts, token_ids).items() if len(own) <= limit}
            if expanded:
                rows = next_token_log_probs(part.model, list(expanded.values()), batch_size=batch_size)
                for i, row in zip(expanded, rows, strict=True):
                    found[i] = row
        return found

    def _split_by_memory(self, prompts: Sequence[ImagePrompt], batch_size: int | str) -> Iterator[_Part]:
        """Parts of the questions whose images' features may be in memory together.

        Questions about the same images stay together. Those about several images are left out where the model
        does not support them.
        """
        by_images: dict[tuple[Hashable, ...], list[int]] = {}
        for i, prompt in enumerate(prompts):
            if len(prompt.image_keys) < 2 or self.model.supports_multi_image:
                by_images.setdefault(prompt.image_keys, []).append(i)
        indices: list[int] = []
        features: dict[Hashable, ImageFeatures] = {}
        size = batch_size if isinstance(batch_size, int) else tuning.AUTO_IMAGE_BATCH
        groups = list(by_images.values())
        for start in range(0, len(groups), size):
            chosen = groups[start : start + size]
            features |= self._find_features([prompts[group[0]] for group in chosen], features)
            indices += [i for group in chosen for i in group]
            is_last = start + size >= len(groups)
            if is_last or sum(image.memory for image in features.values()) > tuning.PLANNED_FEATURE_BYTES:
                image_indices = {key: index for index, key in enumerate(features)}
                yield _Part(indices, self.model.with_images(list(features.values())), image_indices)
                indices, features = [], {}

    def _find_features(
        self, prompts: Sequence[ImagePrompt], known: dict[Hashable, ImageFeatures]
    ) -> dict[Hashable, ImageFeatures]:
        """Features of these questions' images by key; images that are new are encoded in one batch."""
        cache, new = self.feature_cache.for_model(self.vlm.model), dict[Hashable, Image.Image]()
        found: dict[Hashable, ImageFeatures] = {}
        for prompt in prompts:
            for position, key in enumerate(prompt.image_keys):
                features = known.get(key) or cache.get(key)
                if features is not None:
                    found[key] = features
                elif key not in new:
                    new[key] = self._decoded.get(key) or prompt.load_images()[position]
        for key, encoded in zip(new, self._encode(list(new.values())), strict=True):
            if encoded is not None:
                found[key] = encoded
                cache.add(key, encoded)
            waiting = self._decoded.pop(key, None)
            if waiting is not None:
                self._decoded_bytes -= _decoded_bytes(waiting)
        return found

    def _encode(self, images: list[Image.Image]) -> list[ImageFeatures | None]:
        """Features of images, in halves where memory ends; None where one cannot be separated."""
        if not images:
            return []
        try:
            return list(encode_images(self.vlm, self.model.decoder, images))
        except ImageMismatchError as error:
            if len(images) == 1:
                log.warning("an image takes the model's own path: %s", error)
                return [None]
        except (RuntimeError, MemoryError) as error:
            if len(images) == 1 or not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
        half = len(images) // 2
        return self._encode(images[:half]) + self._encode(images[half:])


def _expand(
    part: _Part, prompts: Sequence[ImagePrompt], token_ids: dict[int, list[int]]
) -> dict[int, list[int]]:
    """Token ids of a part's questions with their images' ids; without questions that cannot be written so."""
    expanded: dict[int, list[int]] = {}
    for i, own in token_ids.items():
        keys = prompts[i].image_keys
        if all(key in part.image_indices for key in keys):
            try:
                expanded[i] = part.model.expand(own, [part.image_indices[key] for key in keys])
            except ImageMismatchError as error:
                log.warning("a question takes the model's own path: %s", error)
    return expanded


def _decoded_bytes(image: Image.Image) -> int:
    return image.width * image.height * len(image.getbands())
