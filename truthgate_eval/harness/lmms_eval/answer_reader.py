"""How likely a vision-language model finds the answers that it is probed on, with their images."""

from __future__ import annotations

import functools
import logging
from collections.abc import Hashable, Sequence

from PIL.Image import Image

from truthgate_eval.errors import TruthGateError, reason_of
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.inference.greedy import is_plain_greedy
from truthgate_eval.probing.dataset import ProbeExample
from truthgate_eval.probing.image_conditions import write_sequence
from truthgate_eval.probing.own_answers import AnswerText
from truthgate_eval.vision import self_check
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImagePrompt, ImageQuestionEngine

log = logging.getLogger(__name__)


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
        shared = self_check.load(vlm, find_attention_layout(vlm.model).decoder)
        self._engine = ImageQuestionEngine(vlm, shared) if shared.supports_sharing else None
        # Keys of each question's images, so that they are decoded once for all its answers.
        self._image_keys: dict[int, tuple[Hashable, ...]] = {}

    def write(self, example: ProbeExample) -> AnswerText:
        """See `AnswerReader`."""
        if example.group not in self._image_keys:
            images = _images(example)
            keys = range(len(images)) if self._engine is None else self._engine.register_images(images)
            self._image_keys[example.group] = tuple(keys)
        count = len(self._image_keys[example.group])
        prompt, answer = write_sequence(self.vlm, example, count, bare_question=self.bare_questions)
        return AnswerText(prompt, answer, example)

    def log_probabilities(self, texts: Sequence[AnswerText]) -> list[float]:
        """See `AnswerReader`."""
        losses: list[tuple[float, bool] | None] = [None] * len(texts)
        counts = [self.vlm.new_tokens(text.prompt, text.answer) for text in texts]
        if self._engine is not None:
            try:
                losses = self._engine.losses(self._prompts(texts), batch_size=self.batch_size)
            except TruthGateError:
                raise
            except Exception as error:  # a model's own code may fail in any way
                log.warning("scoring answers without shared prefixes, which failed: %s", reason_of(error))
                self._engine = None
        for start in range(0, len(texts), self.batch_size):
            missing = [i for i in range(start, min(start + self.batch_size, len(texts))) if losses[i] is None]
            if missing:
                own = [texts[i] for i in missing]
                found = self.vlm.losses(
                    [text.prompt for text in own],
                    [text.answer for text in own],
                    [_images(text.example) for text in own],
                )
                for i, loss in zip(missing, found, strict=True):
                    losses[i] = loss
        return [-loss[0] * count for loss, count in zip(losses, counts, strict=True) if loss is not None]

    def generate(self, texts: Sequence[AnswerText], max_new_tokens: int) -> list[str]:
        """See `AnswerReader`."""
        answers: list[str | None] = [None] * len(texts)
        if self._engine is not None and is_plain_greedy(self.vlm.model.generation_config):
            answers = self._engine.generate(
                self._prompts(texts), max_new_tokens=max_new_tokens, batch_size=self.batch_size
            )
        return [
            answer
            if answer is not None
            else self.vlm.generate(
                [text.prompt], [_images(text.example)], max_new_tokens=max_new_tokens, do_sample=False
            )[0]
            for text, answer in zip(texts, answers, strict=True)
        ]

    def _prompts(self, texts: Sequence[AnswerText]) -> list[ImagePrompt]:
        return [
            ImagePrompt(
                text.prompt,
                self._image_keys[text.example.group],
                functools.partial(_images, text.example),
                text.answer,
            )
            for text in texts
        ]


def _images(example: ProbeExample) -> Sequence[Image]:
    return example.load_images() if example.load_images is not None else []
