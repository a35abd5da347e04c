"""How likely a vision-language model finds the answers that it is probed on, with their images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from truthgate_eval.errors import shorten
from truthgate_eval.harness.lmms_eval.requests import batches, bisect_on_failure, try_sharing
from truthgate_eval.inference.greedy import is_plain_greedy
from truthgate_eval.probing.dataset import ProbeExample
from truthgate_eval.probing.image_capture import load_images
from truthgate_eval.probing.image_conditions import write_sequence
from truthgate_eval.probing.own_answers import AnswerText
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImagePrompt
from truthgate_eval.vision.self_check import load_question_engine

T = TypeVar("T")


class ImageAnswerReader:
    """A vision-language model that answers as under lmms-eval; see `probing.own_answers.AnswerReader`.

    Images and prompts are computed once for all answers. Where the model cannot do that, its own path takes a
    batch at a time.
    """

    def __init__(self, vlm: VisionLanguageModel, *, bare_questions: bool, batch_size: int) -> None:
        """Check what the model can share.

        Args:
            vlm: The model, without a gate.
            bare_questions: As in `ProbeDataset`.
            batch_size: Questions in a batch.
        """
        self.vlm, self.bare_questions, self.batch_size = vlm, bare_questions, batch_size
        self._engine = load_question_engine(vlm)
        # Keys of each question's images, so that they are decoded once for all its answers.
        self._image_keys: dict[int, tuple[Hashable, ...]] = {}

    def write(self, example: ProbeExample) -> AnswerText:
        """See `AnswerReader`."""
        if example.group not in self._image_keys:
            images = load_images(example)
            keys = range(len(images)) if self._engine is None else self._engine.register_images(images)
            self._image_keys[example.group] = tuple(keys)
        count = len(self._image_keys[example.group])
        prompt, answer = write_sequence(self.vlm, example, count, bare_question=self.bare_questions)
        return AnswerText(prompt, answer, example)

    def log_probabilities(self, texts: Sequence[AnswerText]) -> list[float]:
        """See `AnswerReader`."""
        counts = [self.vlm.new_tokens(text.prompt, text.answer) for text in texts]
        shared: list[tuple[float, bool] | None] = [None] * len(texts)
        if self._engine is not None:
            losses = functools.partial(self._engine.losses, batch_size=self.batch_size)
            shared = self._share(texts, losses)
        found = self._complete(shared, texts, self._losses)
        return [-loss * count for (loss, _), count in zip(found, counts, strict=True)]

    def generate(self, texts: Sequence[AnswerText], max_new_tokens: int) -> list[str]:
        """See `AnswerReader`."""
        shared: list[str | None] = [None] * len(texts)
        if self._engine is not None and is_plain_greedy(self.vlm.model.generation_config):
            generate = functools.partial(
                self._engine.generate, max_new_tokens=max_new_tokens, batch_size=self.batch_size
            )
            shared = self._share(texts, generate)
        own_path = functools.partial(self._generate, max_new_tokens=max_new_tokens)
        return self._complete(shared, texts, own_path)

    def _share(
        self, texts: Sequence[AnswerText], work: Callable[[list[ImagePrompt]], list[T | None]]
    ) -> list[T | None]:
        """Results with shared prefixes; where there are none, sharing is not tried again."""
        found = try_sharing(self._prompts(texts), work)
        if all(one is None for one in found):
            self._engine = None
        return found

    def _complete(
        self,
        found: list[T | None],
        texts: Sequence[AnswerText],
        work: Callable[[Sequence[AnswerText]], list[T]],
    ) -> list[T]:
        """All results, those that are missing by the model's own path."""
        missing = [i for i, one in enumerate(found) if one is None]
        lengths = [texts[i].prompt + texts[i].answer for i in missing]
        for batch in batches([None] * len(missing), lengths, self.batch_size):
            own = [missing[i] for i in batch]
            results = bisect_on_failure([texts[i] for i in own], work, where=_where)
            for i, result in zip(own, results, strict=True):
                found[i] = result
        return [one for one in found if one is not None]

    def _losses(self, texts: Sequence[AnswerText]) -> list[tuple[float, bool]]:
        prompts, answers, examples = zip(*texts, strict=True)
        return self.vlm.losses(prompts, answers, list(map(load_images, examples)))

    def _generate(self, texts: Sequence[AnswerText], max_new_tokens: int) -> list[str]:
        prompts, _, examples = zip(*texts, strict=True)
        images = list(map(load_images, examples))
        return self.vlm.generate(prompts, images, max_new_tokens=max_new_tokens, do_sample=False)

    def _prompts(self, texts: Sequence[AnswerText]) -> list[ImagePrompt]:
        return [
            ImagePrompt(
                text.prompt,
                self._image_keys[text.example.group],
                functools.partial(load_images, text.example),
                text.answer,
            )
            for text in texts
        ]


def _where(text: AnswerText) -> str:
    return f"the question {shorten(text.example.context)}"
