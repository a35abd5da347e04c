"""lmms-eval's questions about images, with images and prefixes that they share computed once.

Requests for which this could give other answers (sampling, beams, penalties), and models that cannot share,
take the model's own path: see `docs/performance.md#what-is-the-same-and-what-is-not`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, TypeVar

import torch
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from truthgate_eval.errors import TruthGateError
from truthgate_eval.harness.lmms_eval.image_sources import ImageSources
from truthgate_eval.harness.lmms_eval.requests import (
    ImageRequest,
    batches,
    bisect_on_failure,
    cut_at_stop,
    generation_options,
    log,
    try_sharing,
    unknown_settings,
)
from truthgate_eval.inference.deduplication import answer_distinct, request_key
from truthgate_eval.inference.greedy import is_plain_greedy
from truthgate_eval.inference.self_check import Engine
from truthgate_eval.vision.image_features import image_keys
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImagePrompt, ImageQuestionEngine, Progress
from truthgate_eval.vision.self_check import load_question_engine

Settings = Mapping[str, Any]
T = TypeVar("T")

# Batch size of the model's own path with `batch_size=auto`; a batch that does not fit is halved.
_OWN_PATH_BATCH_SIZE = 8
# Images whose questions are answered together, where a batch does not have more: few enough that the first
# answer does not wait for all of a run's images, and enough for batches without much padding.
_IMAGES_OF_A_PART = 64
# Settings of a search, and the values at which they change nothing.
_WITHOUT_EFFECT = {
    "num_beams": (None, 1), "min_new_tokens": (None, 0), "no_repeat_ngram_size": (None, 0),
    "repetition_penalty": (None, 1.0),
}  # fmt: skip


class SharedPrefixLmms(lmms):
    """A vision-language model whose greedy answers and losses share prefixes.

    Attributes:
        vlm: The loaded model.
        batch_size: A number, or `auto`; a batch has as many tokens as that many of the longest questions.
        engine: `auto`, or `off` for the model's own path throughout.
    """

    vlm: VisionLanguageModel
    batch_size: int | str = 1
    engine: Engine = "auto"

    @cached_property
    def question_engine(self) -> ImageQuestionEngine | None:
        """Answers with shared prefixes, checked at the first request; None where the model cannot share."""
        return None if self.engine == "off" else load_question_engine(self.vlm)

    def answer(self, questions: list[ImageRequest], settings: list[dict[str, Any]]) -> list[str]:
        """Every question's answer, up to its first stop text."""
        ignored = sorted({name for own in settings for name in unknown_settings(own)})
        if ignored:
            log.info("generation settings without effect: %s", ", ".join(ignored))
        options = [generation_options(own) for own in settings]
        by_max_new_tokens: dict[int, list[int]] = {}
        for i, (own, _) in enumerate(options):
            if self.question_engine is not None and self._is_plain_greedy(own):
                by_max_new_tokens.setdefault(own["max_new_tokens"], []).append(i)
        texts: list[str | None] = [None] * len(questions)
        with self.progress(questions) as progress:
            for max_new_tokens, group in by_max_new_tokens.items():
                generate = functools.partial(self._generate_shared, max_new_tokens, progress.update)
                answers = self._answer_in_parts([questions[i] for i in group], generate)
                for i, text in zip(group, answers, strict=True):
                    texts[i] = text
            unanswered = self._unanswered(texts)
            own_answers = self._generate_on_own_path(
                [questions[i] for i in unanswered], [settings[i] for i in unanswered], progress.update
            )
        for i, text in zip(unanswered, own_answers, strict=True):
            texts[i] = text
        return [cut_at_stop(str(text), until) for text, (_, until) in zip(texts, options, strict=True)]

    def score(self, questions: list[ImageRequest]) -> list[tuple[float, bool]]:
        """Mean loss per token of every answer, and whether it is the greedy one."""
        losses: list[tuple[float, bool] | None] = [None] * len(questions)
        with self.progress(questions) as progress:
            if self.question_engine is not None:
                score = functools.partial(self._score_shared, progress.update)
                losses = self._answer_in_parts(questions, score)
            unanswered = self._unanswered(losses)
            texts = [questions[i].text + questions[i].answer for i in unanswered]
            for batch in batches([None] * len(unanswered), texts, self._own_path_batch_size):
                found = bisect_on_failure([questions[unanswered[i]] for i in batch], self._losses)
                for i, loss in zip(batch, found, strict=True):
                    losses[unanswered[i]] = loss
                progress.update(len(batch))
        return [loss for loss in losses if loss is not None]

    def progress(self, requests: Sequence[object]) -> tqdm[Any]:
        """A progress bar over the requests, on the first process only."""
        return tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding")

    @property
    def _own_path_batch_size(self) -> int:
        return self.batch_size if isinstance(self.batch_size, int) else _OWN_PATH_BATCH_SIZE

    def _is_plain_greedy(self, options: dict[str, Any]) -> bool:
        searches = any(options.get(name) not in values for name, values in _WITHOUT_EFFECT.items())
        return not options["do_sample"] and not searches and is_plain_greedy(self.vlm.model.generation_config)

    def _answer_in_parts(
        self,
        questions: Sequence[ImageRequest],
        answer: Callable[[ImageQuestionEngine, list[ImagePrompt], list[ImageRequest]], list[T | None]],
    ) -> list[T | None]:
        """Answers with shared prefixes; None for questions that the own path must answer.

        Questions about one image are answered together, and images are decoded part by part. Where a part
        fails, those before it keep their answers.
        """
        found: list[T | None] = [None] * len(questions)
        engine = self.question_engine
        assert engine is not None
        num_images = max(_IMAGES_OF_A_PART, 2 * self._own_path_batch_size)

        def run(questions: list[ImageRequest]) -> list[T | None]:
            for part in self.image_sources.parts(questions, num_images):
                own = [questions[i] for i in part]
                prompts = [self._image_prompt(question) for question in own]
                for i, one in zip(part, answer(engine, prompts, own), strict=True):
                    found[i] = one
            return found

        try_sharing(list(questions), run)
        return found

    @cached_property
    def image_sources(self) -> ImageSources:
        """Where the images of questions are."""
        return ImageSources()

    def image_keys(self, question: ImageRequest) -> tuple[Hashable, ...]:
        """What identifies a question's images; an image of a file is decoded for it only once.

        Raises:
            DataError: As `ImageRequest.load_images`.
        """
        engine = self.question_engine
        return self.image_sources.keys(question, image_keys if engine is None else engine.register_images)

    def _image_prompt(self, question: ImageRequest) -> ImagePrompt:
        keys = self.image_keys(question)
        load_images = functools.partial(self.image_sources.load, question)
        return ImagePrompt(self._prompt(question, len(keys)), keys, load_images, question.answer)

    def _generate_shared(
        self, max_new_tokens: int, progress: Progress, engine: ImageQuestionEngine,
        prompts: list[ImagePrompt], _: list[ImageRequest],
    ) -> list[str | None]:  # fmt: skip
        return engine.generate(
            prompts, max_new_tokens=max_new_tokens, batch_size=self.batch_size, progress=progress
        )

    def _score_shared(
        self, progress: Progress, engine: ImageQuestionEngine, prompts: list[ImagePrompt],
        questions: list[ImageRequest],
    ) -> list[tuple[float, bool] | None]:  # fmt: skip
        for question, prompt in zip(questions, prompts, strict=True):
            self._check_answer(question, prompt.prompt)
        return engine.losses(prompts, batch_size=self.batch_size, progress=progress)

    def next_token_log_probs(self, questions: Sequence[ImageRequest]) -> Callable[[], torch.Tensor]:
        """Computes the log-probabilities of each answer's first token, with the model as it then is.

        Args:
            questions: The questions; their images are read once now, and again where memory lets go of them.

        Returns:
            A function that gives float32 [questions, vocabulary], on the CPU.
        """
        engine = self.question_engine
        prompts = [] if engine is None else [self._image_prompt(question) for question in questions]

        def log_probs() -> torch.Tensor:
            rows: list[torch.Tensor | None] = [None] * len(questions)
            if engine is not None:
                rows = try_sharing(
                    prompts, functools.partial(engine.next_token_log_probs, batch_size=self.batch_size)
                )
            found = [
                bisect_on_failure([one], self._log_probs)[0] if row is None else row
                for one, row in zip(questions, rows, strict=True)
            ]
            return torch.stack(found)

        return log_probs

    def _log_probs(self, questions: Sequence[ImageRequest]) -> list[torch.Tensor]:
        """By the model's own pass, one question at a time: no row has padding."""
        logits = []
        for one in questions:
            [prompt], [images] = self._prompts([one])
            logits.append(self.vlm.next_token_logits(prompt, images))
        return [torch.log_softmax(row, dim=-1).cpu() for row in logits]

    def _unanswered(self, answers: Sequence[object]) -> list[int]:
        indices = [i for i, answer in enumerate(answers) if answer is None]
        if indices and self.question_engine is not None:
            log.warning(
                "%d of %d requests take the model's own path: they ask for more than greedy decoding, "
                "or share nothing that can be computed once", len(indices), len(answers),
            )  # fmt: skip
        return indices

    def _generate_on_own_path(
        self,
        questions: list[ImageRequest],
        settings: list[dict[str, Any]],
        progress: Progress,
    ) -> list[str]:
        """Answers by the model's own `generate`; equal questions about equal images are answered once."""
        occurrences = Counter(question.text for question in questions)

        def key(request: tuple[ImageRequest, Settings]) -> Hashable | None:
            question, options = request
            if occurrences[question.text] == 1:  # no other is equal: spare decoding its images for a key
                return None
            # Not kept for the vision tower, as the engine would keep them.
            found = self.image_sources.keys(question, image_keys)
            return request_key(found, question.text, options)

        def answer(requests: list[tuple[ImageRequest, dict[str, Any]]]) -> list[str]:
            answers = [""] * len(requests)
            texts = [question.text for question, _ in requests]
            for batch in batches([own for _, own in requests], texts, self._own_path_batch_size):
                options, _ = generation_options(requests[batch[0]][1])
                found = bisect_on_failure(
                    [requests[i][0] for i in batch], functools.partial(self._answers, options=options)
                )
                for i, text in zip(batch, found, strict=True):
                    answers[i] = text
                progress(len(batch))
            return answers

        return answer_distinct(list(zip(questions, settings, strict=True)), key, answer)

    def _answers(self, questions: Sequence[ImageRequest], options: dict[str, Any]) -> list[str]:
        prompts, images = self._prompts(questions)
        return self.vlm.generate(prompts, images, **options)

    def _losses(self, questions: Sequence[ImageRequest]) -> list[tuple[float, bool]]:
        prompts, images = self._prompts(questions)
        for question, prompt in zip(questions, prompts, strict=True):
            self._check_answer(question, prompt)
        answers = [question.answer for question in questions]
        return self.vlm.losses(prompts, answers, images, scoring=self.scoring)

    def scoring(self, after_first: list[int]) -> AbstractContextManager[None]:
        """The context of a pass that scores answers: a gate of an answer's tokens must know where it begins.

        Args:
            after_first: For each row how many tokens it has from the answer's first one on, with padding.
        """
        del after_first  # without such a gate
        return nullcontext()

    def _check_answer(self, question: ImageRequest, prompt: str) -> None:
        """Raise `DataError` with the document's name where its answer has no token to score."""
        try:
            self.vlm.new_tokens(prompt, question.answer)
        except TruthGateError as error:
            raise type(error)(f"{question.where}: {error}") from error

    def _prompts(self, questions: Sequence[ImageRequest]) -> tuple[list[str], list[list[Image.Image]]]:
        images = [question.load_images() for question in questions]
        prompts = [self._prompt(question, len(own)) for question, own in zip(questions, images, strict=True)]
        return prompts, images

    def _prompt(self, question: ImageRequest, num_images: int) -> str:
        try:
            return self.vlm.prompt(question.text, num_images)
        except TruthGateError as error:
            raise type(error)(f"{question.where}: {error}") from error
