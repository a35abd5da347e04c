"""lmms-eval's questions, on the forward pass that computes shared pictures and prefixes once.

What it cannot honour exactly (sampling, beams, penalties, models it does not fit) takes the plain path.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

from lmms_eval.api.model import lmms
from tqdm import tqdm

from truthgate_eval.errors import ModelError, TruthGateError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.harness.lmms_eval.requests import (
    ImageRequest,
    batches,
    bisect_on_failure,
    cut_at_stop,
    generation_options,
    log,
    reason_of,
    unknown_settings,
)
from truthgate_eval.inference.deduplication import answer_distinct, request_key
from truthgate_eval.inference.greedy import is_plain_greedy
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImagePrompt, ImageQuestionEngine
from truthgate_eval.vision.shared_prefix import SharedPrefixVLM

Settings = Mapping[str, Any]
T = TypeVar("T")

# On the plain path, where `batch_size=auto` says nothing else; a batch that does not fit is halved.
_PLAIN_BATCH = 8
# The settings of a search, and the values at which they change nothing.
_WITHOUT_EFFECT = {
    "num_beams": (None, 1), "min_new_tokens": (None, 0), "no_repeat_ngram_size": (None, 0),
    "repetition_penalty": (None, 1.0),
}  # fmt: skip


class SharedPrefixLmms(lmms):
    """A vision-language model whose greedy answers and losses share prefixes.

    Attributes:
        vlm: The loaded model.
        batch_size: A number, or `auto`; a batch has as many tokens as so many of the longest questions.
        engine: `auto`, or `off` for the plain path throughout.
    """

    vlm: VisionLanguageModel
    batch_size: int | str = 1
    engine = "auto"

    @cached_property
    def shared(self) -> ImageQuestionEngine | None:
        """The shared forward pass, tried on the model at the first request; None where it does not fit."""
        if self.engine == "off":
            return None
        try:
            forward = SharedPrefixVLM(self.vlm, find_attention_layout(self.vlm.model).decoder)
        except Exception as error:  # as on the plain path, a processor or model may fail in any way
            log.warning("%s shares no prefixes: %s", self.vlm.name, reason_of(error))
            return None
        return ImageQuestionEngine(self.vlm, forward) if forward.supports_sharing else None

    def answer(self, questions: list[ImageRequest], settings: list[dict[str, Any]]) -> list[str]:
        """Every question's answer, cut at its stop texts."""
        ignored = sorted({name for some in settings for name in unknown_settings(some)})
        if ignored:
            log.info("generation settings without effect: %s", ", ".join(ignored))
        options = [generation_options(some) for some in settings]
        groups: dict[int, list[int]] = {}
        for i, (own, _) in enumerate(options):
            if self.shared is not None and self._is_plain_greedy(own):
                groups.setdefault(own["max_new_tokens"], []).append(i)
        texts: list[str | None] = [None] * len(questions)
        with self.progress(questions) as progress:
            for most, group in groups.items():
                work = functools.partial(self._generate_shared, most=most, progress=progress.update)
                for i, text in zip(group, self._try([questions[i] for i in group], work), strict=True):
                    texts[i] = text
            rest = self._rest(texts)
            answered = self._answer_plainly(
                [questions[i] for i in rest], [settings[i] for i in rest], progress.update
            )
        for i, text in zip(rest, answered, strict=True):
            texts[i] = text
        return [cut_at_stop(str(text), until) for text, (_, until) in zip(texts, options, strict=True)]

    def score(self, questions: list[ImageRequest]) -> list[tuple[float, bool]]:
        """Every answer's mean loss per token, and whether it is the greedy one."""
        losses: list[tuple[float, bool] | None] = [None] * len(questions)
        with self.progress(questions) as progress:
            if self.shared is not None:
                losses = self._try(questions, functools.partial(self._score_shared, progress=progress.update))
            rest = self._rest(losses)
            texts = [questions[i].text + questions[i].answer for i in rest]
            for batch in batches([None] * len(rest), texts, self._plain_batch):
                found = bisect_on_failure([questions[rest[i]] for i in batch], self._losses)
                for i, loss in zip(batch, found, strict=True):
                    losses[rest[i]] = loss
                progress.update(len(batch))
        return [loss for loss in losses if loss is not None]

    def progress(self, requests: Sequence[Any]) -> Any:
        """A progress bar."""
        return tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding")

    @property
    def _plain_batch(self) -> int:
        return self.batch_size if isinstance(self.batch_size, int) else _PLAIN_BATCH

    def _is_plain_greedy(self, options: dict[str, Any]) -> bool:
        searched = any(options.get(name) not in values for name, values in _WITHOUT_EFFECT.items())
        return not options["do_sample"] and not searched and is_plain_greedy(self.vlm.model.generation_config)

    def _try(
        self, questions: list[ImageRequest], work: Callable[[list[ImagePrompt]], list[T | None]]
    ) -> list[T | None]:
        """What the shared pass says; None throughout where it fails: the plain path names the document."""
        asked = [self._image_prompts(question) for question in questions]
        try:
            return work(asked)
        except TruthGateError:
            raise
        except Exception as error:
            log.warning("asking without shared prefixes, which failed: %s", reason_of(error))
            return [None] * len(questions)

    def _image_prompts(self, question: ImageRequest) -> ImagePrompt:
        assert self.shared is not None
        pictures = question.load_images()
        prompt = self._prompt(question, len(pictures))
        return ImagePrompt(
            prompt, self.shared.register_images(pictures), question.load_images, question.answer
        )

    def _generate_shared(
        self, asked: list[ImagePrompt], most: int, progress: Callable[[int], None]
    ) -> list[str | None]:
        assert self.shared is not None
        return self.shared.generate(asked, max_new_tokens=most, batch_size=self.batch_size, progress=progress)

    def _score_shared(
        self, asked: list[ImagePrompt], progress: Callable[[int], None]
    ) -> list[tuple[float, bool] | None]:
        assert self.shared is not None
        return self.shared.losses(asked, batch_size=self.batch_size, progress=progress)

    def _rest(self, found: Sequence[object]) -> list[int]:
        rest = [i for i, one in enumerate(found) if one is None]
        if rest and self.shared is not None:
            log.warning(
                "%d of %d requests take the model's plain path: they ask for more than greedy decoding, "
                "or share nothing that can be computed once", len(rest), len(found),
            )  # fmt: skip
        return rest

    def _answer_plainly(
        self, questions: list[ImageRequest], settings: list[dict[str, Any]], progress: Callable[[int], None]
    ) -> list[str]:
        """Answers; a question that several tasks ask about one picture is asked once."""
        times = Counter(question.text for question in questions)

        def key(asked: tuple[ImageRequest, Settings]) -> Hashable | None:
            question, options = asked
            if times[question.text] == 1:  # no other can be the same: its picture need not be read now
                return None
            return request_key(question.image_count(), question.text, options)

        def ask(asked: list[tuple[ImageRequest, dict[str, Any]]]) -> list[str]:
            results = [""] * len(asked)
            texts = [question.text for question, _ in asked]
            for batch in batches([options for _, options in asked], texts, self._plain_batch):
                options, _ = generation_options(asked[batch[0]][1])
                answers = bisect_on_failure(
                    [asked[i][0] for i in batch], functools.partial(self._answers, options=options)
                )
                for i, text in zip(batch, answers, strict=True):
                    results[i] = text
                progress(len(batch))
            return results

        return answer_distinct(list(zip(questions, settings, strict=True)), key, ask)

    def _answers(self, questions: Sequence[ImageRequest], options: dict[str, Any]) -> list[str]:
        prompts, pictures = self._prompts(questions)
        return self.vlm.generate(prompts, pictures, **options)

    def _losses(self, questions: Sequence[ImageRequest]) -> list[tuple[float, bool]]:
        prompts, pictures = self._prompts(questions)
        return self.vlm.losses(prompts, [question.answer for question in questions], pictures)

    def _prompts(self, questions: Sequence[ImageRequest]) -> tuple[list[str], list[Any]]:
        pictures = [question.load_images() for question in questions]
        pairs = zip(questions, pictures, strict=True)
        return [self._prompt(question, len(found)) for question, found in pairs], pictures

    def _prompt(self, question: ImageRequest, pictures: int) -> str:
        try:
            return self.vlm.prompt(question.text, pictures)
        except TruthGateError as error:
            raise type(error)(f"{question.where}: {error}") from error


def read_batch_size(value: Any) -> int | str:
    """A whole number, or `auto`.

    Raises:
        ModelError: It is neither.
    """
    text = str(value)
    if text == "auto":
        return text
    if not text.isdigit() or int(text) < 1:
        raise ModelError(f"batch_size={value} is neither a whole number above 0 nor auto")
    return int(text)
