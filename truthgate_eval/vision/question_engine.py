"""Answers to many questions about pictures, with what the questions share computed once.

A picture is looked at once, its keys and values are those of a shared prefix, equal questions are one,
and questions about different pictures run in one batch.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from truthgate_eval.inference.greedy import decode_greedily, end_tokens
from truthgate_eval.inference.loglikelihood import ScoringRequest, log_likelihoods
from truthgate_eval.inference.shared_prefix import TokenBudget, out_of_memory
from truthgate_eval.vision.image_features import (
    ImageFeatureCache,
    ImageFeatures,
    ImageMismatchError,
    encode_images,
    image_key,
)
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.shared_prefix import SharedPrefixVLM

log = logging.getLogger(__name__)

# Bytes of picture features that questions planned together may have, and of decoded pictures kept for them.
_PART = 1 << 30
_DECODED = 1 << 30
# Where the batch size is `auto`, so many pictures go through the vision tower together.
_LOOK = 16

Progress = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """One question.

    Attributes:
        prompt: In the model's chat format, up to where the answer begins.
        keys: Its pictures, in the order of their placeholders: see `ImageQuestionEngine.note`.
        pictures: Decodes them.
        answer: What is rated, for losses.
    """

    prompt: str
    image_keys: tuple[Hashable, ...]
    load_images: Callable[[], Sequence[Image.Image]]
    answer: str = ""


class ImageQuestionEngine:
    """A vision-language model that is asked many questions at a time.

    Attributes:
        seen: The pictures seen before; no gate changes them.
    """

    def __init__(self, vlm: VisionLanguageModel, forward: SharedPrefixVLM) -> None:
        """Share what `forward` shares."""
        self.vlm, self.forward = vlm, forward
        self.seen = ImageFeatureCache()
        self._decoded: dict[Hashable, Image.Image] = {}
        self._held = 0
        self._tokens = functools.lru_cache(maxsize=1 << 16)(vlm.tokens)

    def register_images(self, pictures: Sequence[Image.Image]) -> tuple[Hashable, ...]:
        """The keys of a question's pictures, for `Asked`; equal pixels have one key."""
        keys = tuple(map(image_key, pictures))
        seen = self.seen.for_model(self.vlm.model)
        for key, picture in zip(keys, pictures, strict=True):
            if seen.get(key) is None and key not in self._decoded and self._held < _DECODED:
                self._decoded[key] = picture
                self._held += picture.width * picture.height * len(picture.getbands())
        return keys

    def generate(
        self,
        asked: Sequence[ImagePrompt],
        *,
        max_new_tokens: int,
        batch_size: int | str,
        progress: Progress = lambda _: None,
    ) -> list[str | None]:
        """Greedy answers; None for a question that must be asked the plain way.

        Args:
            asked: The questions.
            max_new_tokens: The most tokens of an answer.
            batch_size: A batch has as many tokens as so many of the longest questions, or `auto`.
            progress: Called with the number of questions answered since the last call.
        """
        answers: list[str | None] = [None] * len(asked)
        for part, forward, numbers in self._split_by_memory(asked, batch_size):
            found = self._expanded(part, asked, forward, numbers, [asked[i].prompt for i in part])
            fits = {
                i: own for i, own in found.items() if len(own) + max_new_tokens <= forward.max_shared_length
            }
            budget = TokenBudget.for_batch_size(batch_size, list(fits.values()), forward.device)
            if isinstance(batch_size, int):
                budget.tokens += batch_size * max_new_tokens
            tokens = decode_greedily(
                forward, list(fits.values()), max_new_tokens=max_new_tokens, budget=budget,
                eos=end_tokens(self.vlm.model.generation_config), progress=progress,
            )  # fmt: skip
            texts = self.vlm.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            for i, text in zip(fits, texts, strict=True):
                answers[i] = text
        return answers

    def losses(
        self, asked: Sequence[ImagePrompt], *, batch_size: int | str, progress: Progress = lambda _: None
    ) -> list[tuple[float, bool] | None]:
        """Each answer's mean loss per token and whether it is the greedy one; None as in `generate`.

        Raises:
            DataError: An answer has no token of its own.
        """
        losses: list[tuple[float, bool] | None] = [None] * len(asked)
        for part, forward, numbers in self._split_by_memory(asked, batch_size):
            whole = [asked[i].prompt + asked[i].answer for i in part]
            requests: dict[int, ScoringRequest] = {}
            for i, tokens in self._expanded(part, asked, forward, numbers, whole).items():
                count = self.vlm.new_tokens(asked[i].prompt, asked[i].answer)
                if count < len(tokens) <= forward.max_shared_length:
                    requests[i] = tokens[:-1], tokens[-count:]
            budget = TokenBudget.for_batch_size(
                batch_size, [own for own, _ in requests.values()], forward.device
            )
            found = log_likelihoods(
                forward,
                list(requests.values()),
                budget=budget,
                softmax_dtype=torch.float32,
                progress=progress,
            )
            for (i, (_, answer)), (value, likeliest) in zip(requests.items(), found, strict=True):
                losses[i] = -value / len(answer), likeliest
        return losses

    def _split_by_memory(
        self, asked: Sequence[ImagePrompt], batch_size: int | str
    ) -> Iterator[tuple[list[int], SharedPrefixVLM, dict[Hashable, int]]]:
        """(questions, a forward pass that shows their pictures, these pictures' numbers in it), in turn."""
        groups: dict[tuple[Hashable, ...], list[int]] = {}
        for i, one in enumerate(asked):
            if len(one.image_keys) < 2 or self.forward.supports_multi_image:
                groups.setdefault(one.image_keys, []).append(i)
        part: list[int] = []
        shown: dict[Hashable, ImageFeatures] = {}
        size = batch_size if isinstance(batch_size, int) else _LOOK
        order = list(groups.values())
        for start in range(0, len(order), size):
            some = order[start : start + size]
            shown |= self._features_of([asked[own[0]] for own in some], shown)
            part += [i for own in some for i in own]
            last = start + size >= len(order)
            if last or sum(picture.memory for picture in shown.values()) > _PART:
                numbers = {key: number for number, key in enumerate(shown)}
                yield part, self.forward.with_images(list(shown.values())), numbers
                part, shown = [], {}

    def _features_of(
        self, asked: Sequence[ImagePrompt], shown: dict[Hashable, ImageFeatures]
    ) -> dict[Hashable, ImageFeatures]:
        """These questions' pictures; those that are new are looked at, all in one batch."""
        seen, new = self.seen.for_model(self.vlm.model), dict[Hashable, Image.Image]()
        found: dict[Hashable, ImageFeatures] = {}
        for one in asked:
            for place, key in enumerate(one.image_keys):
                known = shown.get(key) or seen.get(key)
                if known is not None:
                    found[key] = known
                elif key not in new:
                    new[key] = self._decoded.get(key) or one.load_images()[place]
        for key, picture in zip(new, self._encode(list(new.values())), strict=True):
            if picture is not None:
                found[key] = picture
                seen.add(key, picture)
            waiting = self._decoded.pop(key, None)
            if waiting is not None:
                self._held -= waiting.width * waiting.height * len(waiting.getbands())
        return found

    def _encode(self, pictures: list[Image.Image]) -> list[ImageFeatures | None]:
        if not pictures:
            return []
        try:
            return list(encode_images(self.vlm, self.forward.decoder, pictures))
        except ImageMismatchError as error:
            if len(pictures) == 1:
                log.warning("a picture takes the model's plain path: %s", error)
                return [None]
        except RuntimeError as error:
            if len(pictures) == 1 or not out_of_memory(error):
                raise
            torch.cuda.empty_cache()
        half = len(pictures) // 2
        return self._encode(pictures[:half]) + self._encode(pictures[half:])

    def _expanded(
        self, part: list[int], asked: Sequence[ImagePrompt], forward: SharedPrefixVLM,
        numbers: dict[Hashable, int], texts: list[str],
    ) -> dict[int, list[int]]:  # fmt: skip
        """Each question's text as tokens, its pictures' included; without those that cannot be written so."""
        found: dict[int, list[int]] = {}
        for i, text in zip(part, texts, strict=True):
            keys = asked[i].image_keys
            if all(key in numbers for key in keys):
                try:
                    found[i] = forward.expand(self._tokens(text), [numbers[key] for key in keys])
                except ImageMismatchError as error:
                    log.warning("a question takes the model's plain path: %s", error)
        return found
