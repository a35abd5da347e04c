"""A loaded vision-language model: texts and images in; token ids, answers and losses out.

`encode` is the one place where a prompt and its images become model inputs, and an image's placeholder
becomes the image's tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from transformers import BatchEncoding

from truthgate_eval.errors import DataError
from truthgate_eval.inference.answer_tokens import drop_added_tokens, last_answer_token, last_ordinary_token
from truthgate_eval.vision.chat_template import ChatTemplate

Images = Sequence[Image.Image]
PaddingSide = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class VisionLanguageModel:
    """A model, its processor and its chat template.

    Attributes:
        model: An image-text-to-text model of transformers, also one with an adapter.
        processor: Its processor: tokenizer and image processor.
        chat: Writes a question for it.
        name: Its name in messages.
    """

    model: Any
    processor: Any
    chat: ChatTemplate
    name: str

    @property
    def device(self) -> torch.device:
        """The device of the model's inputs."""
        return self.model.device

    def prompt(self, text: str, num_images: int = 0) -> str:
        """A question in the model's chat format, up to where the answer begins.

        Args:
            text: The question. If it contains `<image>` once for each image, the images are put there; else
                they come first.
            num_images: How many images it is about.

        Raises:
            DataError: The text contains the model's own image placeholder, but not once for each image.
        """
        return self.chat.prompt(text, num_images)

    def encode(
        self, texts: Sequence[str], images: Sequence[Images], *, padding_side: PaddingSide = "left"
    ) -> Any:
        """Model inputs of a batch, on the model's device.

        Args:
            texts: Prompts, with or without an answer after them.
            images: Each text's images, in the order of their placeholders.
            padding_side: `left` to generate, `right` to read logits at known positions.
        """
        inputs = self.processor(
            text=list(texts),
            images=[list(own) for own in images] if any(images) else None,
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
            add_special_tokens=self._special(texts),
        )
        return inputs.to(self.device, self.model.dtype)

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, with one placeholder token for each image."""
        return self.processor.tokenizer(text, add_special_tokens=self._special([text]))["input_ids"]

    def answer_tokens(self, text: str) -> list[int]:
        """`tokens` of a prompt with its answer, up to the answer's last token."""
        return drop_added_tokens(self.tokens(text), text, self.processor.tokenizer)

    def _special(self, texts: Sequence[str]) -> bool:
        # A template that writes the first token itself must not get a second one.
        bos = self.processor.tokenizer.bos_token
        return bos is None or not all(text.startswith(bos) for text in texts)

    def generate(self, prompts: Sequence[str], images: Sequence[Images], **options: Any) -> list[str]:
        """Each prompt's answer; `options` are those of transformers' `generate`."""
        inputs = self.encode(prompts, images)
        with torch.no_grad():
            tokens = self.model.generate(**inputs, **options)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)

    def prepare_scoring(self, texts: Sequence[str], images: Sequence[Images]) -> tuple[Any, torch.Tensor]:
        """Inputs of whole sequences, and the position of each answer's last token, image tokens counted.

        An end-of-sequence token is no part of the answer, and neither is text that the processor appends.

        Returns:
            Model inputs padded to the right, and int64 [batch] positions.
        """
        eos = self.processor.tokenizer.eos_token or ""
        inputs, last = self._encode_answers(texts, images, [text.removesuffix(eos) for text in texts])
        return inputs, torch.tensor(last, device=self.device)

    def _encode_answers(
        self, texts: Sequence[str], images: Sequence[Images], answered: Sequence[str]
    ) -> tuple[Any, list[int]]:
        """Model inputs padded to the right, and the position of the last token of each of `answered`.

        Args:
            texts: Prompts with answers.
            images: Each text's images.
            answered: Each text, or as much of it as belongs to prompt and answer.
        """
        tokenizer = self.processor.tokenizer
        recorder = _TokenizerRecorder(tokenizer)
        # The processor expands placeholders and may append text: only its tokenizer sees the result.
        processor = copy.copy(self.processor)
        processor.tokenizer = recorder
        inputs = dataclasses.replace(self, processor=processor).encode(texts, images, padding_side="right")
        ids, encoding = inputs["input_ids"].tolist(), recorder.encoding
        if encoding is None or _lists(encoding["input_ids"]) != ids:  # a processor that rewrites the ids
            return inputs, [last_ordinary_token(row, tokenizer) for row in ids]
        last = []
        for row, (text, whole) in enumerate(zip(answered, recorder.texts, strict=True)):
            tail = text.rsplit(self.processor.image_token, 1)[-1]
            start = whole.rfind(tail)
            end = len(whole) if start < 0 else start + len(tail)
            last.append(last_answer_token(encoding, tokenizer, end, row=row))
        return inputs, last

    def run(self, inputs: Any) -> None:
        """Run the model for the caller's hooks, with logits at one position only if it allows that."""
        with torch.no_grad():
            self._logits(inputs, 1)

    def losses(
        self, prompts: Sequence[str], answers: Sequence[str], images: Sequence[Images]
    ) -> list[tuple[float, bool]]:
        """Mean negative log-likelihood per token of each answer, and whether greedy decoding gives it.

        Raises:
            DataError: An answer has no token of its own.
        """
        counts = [self.new_tokens(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        inputs, last = self._encode_answers(texts, images, texts)
        ends = [position + 1 for position in last]
        kept = inputs["input_ids"].shape[1] - min(end - n for end, n in zip(ends, counts, strict=True)) + 1
        with torch.no_grad():
            logits = self._logits(inputs, kept)
        offset = inputs["input_ids"].shape[1] - logits.shape[1]
        results = []
        for row, (end, count) in enumerate(zip(ends, counts, strict=True)):
            targets = inputs["input_ids"][row, end - count : end].to(logits.device)
            scores = logits[row, end - count - 1 - offset : end - 1 - offset].float()
            loss = torch.nn.functional.cross_entropy(scores, targets)
            results.append((loss.item(), bool((scores.argmax(dim=-1) == targets).all())))
        return results

    def new_tokens(self, prompt: str, answer: str) -> int:
        """How many tokens the answer adds to the prompt; image placeholders count the same in both.

        Raises:
            DataError: The answer has no token of its own.
        """
        tokenizer = self.processor.tokenizer
        count = len(tokenizer(prompt + answer)["input_ids"]) - len(tokenizer(prompt)["input_ids"])
        if count < 1:
            raise DataError(f"the answer {answer!r} has no token of its own after the prompt")
        return count

    def _logits(self, inputs: Any, last: int) -> torch.Tensor:
        """Logits of the last positions, [batch, >= last, vocabulary]; of all if the model has no choice."""
        options = {"logits_to_keep": last} if "logits_to_keep" in _parameters(self.model) else {}
        return self.model(**inputs, use_cache=False, **options).logits


def _lists(ids: Any) -> Any:
    return ids.tolist() if hasattr(ids, "tolist") else ids


class _TokenizerRecorder:
    """A tokenizer that remembers the last texts that it was given, and their encoding."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []
        self.encoding: BatchEncoding | None = None

    def __call__(self, text: str | list[str], *args: Any, **options: Any) -> BatchEncoding:
        self.encoding = self._tokenizer(text, *args, **options)
        self.texts = [text] if isinstance(text, str) else list(text)
        return self.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _parameters(model: Any) -> Any:
    # A PEFT wrapper's own signature takes anything.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(base.forward).parameters
