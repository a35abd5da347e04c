"""Sequences about a few images at a time, captured together: what they share is computed once."""

from __future__ import annotations

import functools
import hashlib
import logging
import sys
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from PIL.Image import Image

from truthgate_eval.errors import ModelError, TruthGateError, reason_of, shorten
from truthgate_eval.gating.attention_layout import AttentionLayout, Site
from truthgate_eval.inference import tuning
from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.kv_cache import SharedPrefixCache
from truthgate_eval.inference.prefix_plan import PackedPrompt, plan_prefixes
from truthgate_eval.memory import is_out_of_memory
from truthgate_eval.probing.capture import LastTokenHooks, last_tokens
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_conditions import write_sequence
from truthgate_eval.probing.shared_capture import SharedCapture
from truthgate_eval.vision.image_features import image_key
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImagePrompt, ImageQuestionEngine
from truthgate_eval.vision.shared_prefix import SharedPrefixVLM

log = logging.getLogger(__name__)

# Sequences of a window, for each image that it may have: those about one image may be many.
_SEQUENCES_PER_IMAGE = 16


def load_images(example: ProbeExample) -> Sequence[Image]:
    """An answer's images, decoded; none where it has none."""
    return example.load_images() if example.load_images is not None else []


def split_into_windows(examples: Sequence[ProbeExample], batch_size: int) -> list[list[int]]:
    """Sequences that run together: those about `batch_size` images, the longest first.

    Those about one image are in one window unless they are many, and those of a question are neighbours.
    """
    by_images: dict[Hashable, list[int]] = {}
    for i, example in enumerate(examples):
        by_images.setdefault(_identity(example), []).append(i)
    for rows in by_images.values():
        rows.sort(key=lambda i: (-len(examples[i].context), examples[i].context))
    limit = _SEQUENCES_PER_IMAGE * batch_size
    windows: list[list[int]] = []
    images = batch_size
    for rows in sorted(by_images.values(), key=lambda rows: -len(examples[rows[0]].context)):
        for part in _parts(rows, limit):
            if images == batch_size or len(windows[-1]) + len(part) > limit:
                windows.append([])
                images = 0
            windows[-1] += part
            images += 1
    return windows


def _identity(example: ProbeExample) -> Hashable:
    """What answers about the same images have in common, known before any is decoded."""
    return ("loader", example.load_images) if example.image_key is None else ("key", example.image_key)


def _parts(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


class ImageWindows:
    """Captures windows of sequences, with shared prefixes or on the model's own path.

    Attributes:
        limit: The largest batch that memory held, in tokens; in sequences where the model shares nothing.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        dataset: ProbeDataset,
        layout: AttentionLayout,
        site: Site,
        engine: ImageQuestionEngine | None,
        batch_size: int,
        found: SharedCapture,
    ) -> None:
        self._vlm, self._dataset, self._layout, self._site = vlm, dataset, layout, site
        self._engine, self._batch_size, self._found = engine, batch_size, found
        self._shares, self._own_path = engine is not None, 0
        self.limit = sys.maxsize if self._shares else batch_size
        self._images: dict[Hashable, Sequence[Image]] = {}

    def content(self, window: Sequence[int]) -> str:
        """Digest of a window's images."""
        digest = hashlib.sha256()
        for images in self._load(window).values():
            digest.update(repr([image_key(image) for image in images]).encode())
        return digest.hexdigest()

    def capture(self, window: Sequence[int]) -> None:
        """Run a window's sequences."""
        images = self._load(window)
        own = [images[_identity(self._dataset.examples[i])] for i in window]
        sequences = [
            write_sequence(
                self._vlm, self._dataset.examples[i], len(images), bare_question=self._dataset.bare_questions
            )
            for i, images in zip(window, own, strict=True)
        ]
        left = list(range(len(window)))
        if self._engine is not None:
            done = self._run_shared(self._engine, window, sequences, own)
            left = [place for place in left if place not in done]
            self._own_path += len(left)
        waiting = sorted(left, key=lambda place: -len("".join(sequences[place])))
        self._run_plain(
            [window[place] for place in waiting],
            [sequences[place] for place in waiting],
            [own[place] for place in waiting],
        )

    def continue_with(self, limit: int) -> None:
        """Run batches no larger than an interrupted run's last ones, whose `limit` it was."""
        self.limit = limit
        if not self._shares:
            self._batch_size = limit

    def log_own_path(self) -> None:
        """Say in one line how many sequences shared nothing, if the model could."""
        if self._own_path:
            log.warning(
                "%d of %d sequences ran through the whole model: they share nothing that can be computed "
                "once", self._own_path, len(self._dataset),
            )  # fmt: skip

    def _load(self, window: Sequence[int]) -> dict[Hashable, Sequence[Image]]:
        """A window's images, decoded unless the one before had them, too."""
        before, self._images = self._images, {}
        for i in window:
            example = self._dataset.examples[i]
            key = _identity(example)
            if key not in self._images:
                self._images[key] = before[key] if key in before else load_images(example)
        return self._images

    def _run_shared(
        self,
        engine: ImageQuestionEngine,
        window: Sequence[int],
        sequences: Sequence[tuple[str, str]],
        images: Sequence[Sequence[Image]],
    ) -> set[int]:
        """Places in a window of the sequences that could be written with their images' features."""
        eos = self._vlm.processor.tokenizer.eos_token or ""
        distinct, done = {id(own): own for own in images}, set[int]()
        try:
            keys = {number: engine.register_images(own) for number, own in distinct.items()}
            prompts = [
                ImagePrompt(prompt, keys[id(own)], functools.partial(list, own), answer.removesuffix(eos))
                for (prompt, answer), own in zip(sequences, images, strict=True)
            ]
            for model, token_ids in engine.sequences(prompts, batch_size=self._batch_size):
                self._run_packed(model, token_ids, window, done)
        except TruthGateError:
            raise
        except Exception as error:  # models fail in many ways: their own path says where
            log.warning("capturing without shared prefixes, which failed: %s", reason_of(error))
            self._engine = None
        return done

    def _run_packed(
        self, model: SharedPrefixVLM, token_ids: dict[int, list[int]], window: Sequence[int], done: set[int]
    ) -> None:
        """Run sequences, given by their places in a window, after what they share."""
        places, sequences = list(token_ids), list(token_ids.values())
        budget = TokenBudget.for_batch_size(self._batch_size, sequences, model.device)
        if model.device.type == "cpu":
            budget.tokens = min(budget.tokens, tuning.CAPTURE_TOKENS_PER_THREAD * torch.get_num_threads())
        budget.tokens = fitting = min(budget.tokens, self.limit)
        plan = plan_prefixes(
            sequences, max_shared_length=model.max_shared_length, prefix_pass_cost=model.prefix_pass_cost
        )
        equal = [[places[i] for i in indices] for indices in plan.indices_by_distinct()]
        for group in plan.groups:
            prefix = model.compute_prefix(group)

            def run(prompts: list[PackedPrompt], prefix: SharedPrefixCache | None = prefix) -> None:
                activations = last_tokens(model, self._layout, prompts, prefix, self._site)
                ids = [i for prompt in prompts for i in prompt.sequence_ids]
                for values, i in zip(activations, ids, strict=True):
                    self._found.put([window[place] for place in equal[i]], values)
                    done.update(equal[i])

            budget.run_batches(group.prompts, run)
        if budget.tokens < fitting:
            self.limit = budget.tokens

    def _run_plain(
        self,
        rows: list[int],
        sequences: Sequence[tuple[str, str]],
        images: Sequence[Sequence[Image]],
    ) -> None:
        """Run each sequence through the whole model, in batches that are halved where they fail."""
        start = 0
        while start < len(rows):
            part = slice(start, start + self._batch_size)
            try:
                activations = self._whole_model(sequences[part], images[part])
            except TruthGateError:
                raise
            except Exception as error:  # processors and models fail in many ways, and some only on a batch
                count = len(rows[part])
                if count == 1:
                    where = shorten(self._dataset.examples[rows[start]].context)
                    message = f"{self._vlm.name} fails on the question {where}: {reason_of(error)}"
                    raise ModelError(message) from error
                self._batch_size = count // 2
                if not self._shares:
                    self.limit = self._batch_size
                if is_out_of_memory(error):
                    torch.cuda.empty_cache()
                log.warning("%s: continuing with batches of %d", reason_of(error), self._batch_size)
                continue
            self._found.put(rows[part], activations)
            start += len(rows[part])

    def _whole_model(
        self, sequences: Sequence[tuple[str, str]], images: Sequence[Sequence[Image]]
    ) -> NDArray[np.float32]:
        """[sequences, layers, heads, width] at the last token of each answer."""
        prompts, answers = zip(*sequences, strict=True)
        inputs, last = self._vlm.prepare_scoring(prompts, answers, images)
        length = inputs["input_ids"].shape[1]
        # See `LastTokenHooks`: a pass that does not end leaves PEFT's wrapper in a wrong state.
        stop = not isinstance(self._vlm.model, PeftModel)
        with LastTokenHooks(self._layout, last, self._site, length, stop=stop) as kept:
            self._vlm.run(inputs)
        return kept.stacked()
