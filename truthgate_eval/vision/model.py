"""A loaded vision-language model: texts and images in; token ids, answers and losses out.

`encode` is the one place where a prompt and its images become model inputs, and an image's placeholder
becomes the image's tokens.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image

from truthgate_eval.errors import DataError
from truthgate_eval.inference.adapters import forward_parameters
from truthgate_eval.inference.answer_tokens import drop_added_tokens
from truthgate_eval.inference.not_finite import check_answers
from truthgate_eval.vision.chat_template import ChatTemplate
from truthgate_eval.vision.processor import image_token, supports_suffix
from truthgate_eval.vision.tokenizer_recorder import TokenizerRecorder

Images = Sequence[Image.Image]
PaddingSide = Literal["left", "right"]
# What the names of a second text encoder's inputs begin with.
_INSTRUCTION = "qformer_"


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

    @property
    def supports_suffix(self) -> bool:
        """Whether an answer is apart from the prompt, after text that the processor appends (PaliGemma)."""
        return supports_suffix(self.processor)

    def encode(
        self,
        texts: Sequence[str],
        images: Sequence[Images],
        *,
        suffixes: Sequence[str] | None = None,
        padding_side: PaddingSide = "left",
    ) -> Any:
        """Model inputs of a batch, on the model's device.

        Args:
            texts: Prompts, with or without an answer after them.
            images: Each text's images, in the order of their placeholders.
            suffixes: Each text's answer, for models with `supports_suffix`.
            padding_side: `left` to generate, `right` to read logits at known positions.

        Raises:
            ValueError: The processor wants an image with every text of a batch, or fails for another reason.
        """
        if any(images) and not all(images) and (self.supports_suffix or not self.chat.has_placeholders):
            raise ValueError("its processor takes no batch of texts with and without pictures")
        inputs = self.processor(
            text=list(texts),
            images=[list(own) for own in images] if any(images) else None,
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
            add_special_tokens=self._special(texts),
            **({} if suffixes is None else {"suffix": list(suffixes)}),
        )
        inputs.pop("labels", None)  # for training: a model would compute a loss, and all logits for it
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

    def prepare_scoring(
        self, prompts: Sequence[str], answers: Sequence[str], images: Sequence[Images]
    ) -> tuple[Any, torch.Tensor]:
        """Inputs of prompts with answers, and the position of each answer's last token, image tokens counted.

        An end-of-sequence token is no part of the answer, and neither is text that the processor appends.

        Returns:
            Model inputs padded to the right, and int64 [batch] positions.

        Raises:
            DataError: An answer's tokens are not found among the processor's.
        """
        eos = self.processor.tokenizer.eos_token or ""
        inputs, last = self._encode_answers(
            prompts, answers, images, [answer.removesuffix(eos) for answer in answers]
        )
        return inputs, torch.tensor(last, device=self.device)

    def _encode_answers(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        images: Sequence[Images],
        parts: Sequence[str],
    ) -> tuple[Any, list[int]]:
        """Model inputs padded to the right, and the position of each answer's last token.

        Args:
            prompts: Prompts.
            answers: What follows each of them.
            images: Each prompt's images.
            parts: Each answer, or its beginning, whose last token is wanted.
        """
        recorder = TokenizerRecorder(self.processor.tokenizer)
        # The processor expands placeholders and may append text: only its tokenizer sees the result.
        processor = copy.copy(self.processor)
        processor.tokenizer = recorder
        recorded = dataclasses.replace(self, processor=processor)
        if self.supports_suffix:
            inputs = recorded.encode(prompts, images, suffixes=answers, padding_side="right")
            found = [recorder.last_pair_token(row, part) for row, part in enumerate(parts)]
            return inputs, found
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        inputs = recorded.encode(texts, images, padding_side="right")
        self._read_prompts_only(inputs, prompts)
        last, token = [], image_token(self.processor)
        for row, (prompt, part) in enumerate(zip(prompts, parts, strict=True)):
            tail = (prompt + part).rsplit(token, 1)[-1]
            last.append(recorder.last_token(row, tail, inputs["input_ids"][row].tolist()))
        return inputs, last

    def _read_prompts_only(self, inputs: Any, prompts: Sequence[str]) -> None:
        """Give InstructBLIP's second text encoder the prompts only, as where the model generates the answer.

        Its output is part of the image's features: the answer would be in them.
        """
        if any(name.startswith(_INSTRUCTION) for name in inputs):
            of_prompts = self.encode(prompts, [[]] * len(prompts), padding_side="right")
            inputs.update({name: of_prompts[name] for name in of_prompts if name.startswith(_INSTRUCTION)})

    def run(self, inputs: Any) -> None:
        """Run the model for the caller's hooks, with logits at one position only if it allows that."""
        with torch.no_grad():
            self._logits(inputs, 1)

    def next_token_logits(self, prompt: str, images: Images) -> torch.Tensor:
        """Logits of an answer's first token, float32 [vocabulary]."""
        inputs = self.encode([prompt], [images])
        with torch.no_grad():
            return self._logits(inputs, 1)[0, -1].float()

    def losses(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        images: Sequence[Images],
        *,
        scoring: Callable[[list[int]], AbstractContextManager[None]] | None = None,
    ) -> list[tuple[float, bool]]:
        """Mean negative log-likelihood per token of each answer, and whether greedy decoding gives it.

        Args:
            prompts: The prompts.
            answers: Their answers.
            images: Each prompt's images.
            scoring: Makes the context of the pass, of how many tokens each row has from its answer's first
                one on, with padding.

        Raises:
            DataError: An answer has no token of its own.
            ModelError: A loss is NaN; the message names the first module that gives such values.
        """
        counts = [self.new_tokens(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        inputs, last = self._encode_answers(prompts, answers, images, answers)
        ends = [position + 1 for position in last]
        kept = inputs["input_ids"].shape[1] - min(end - n for end, n in zip(ends, counts, strict=True)) + 1
        width = inputs["input_ids"].shape[1]
        after_first = [width - end + n for end, n in zip(ends, counts, strict=True)]
        with torch.no_grad(), nullcontext() if scoring is None else scoring(after_first):
            logits = self._logits(inputs, kept)
        offset = inputs["input_ids"].shape[1] - logits.shape[1]
        results = []
        for row, (end, count) in enumerate(zip(ends, counts, strict=True)):
            targets = inputs["input_ids"][row, end - count : end].to(logits.device)
            scores = logits[row, end - count - 1 - offset : end - 1 - offset].float()
            loss = torch.nn.functional.cross_entropy(scores, targets)
            results.append((loss.item(), bool((scores.argmax(dim=-1) == targets).all())))
        check_answers(self.model, results, lambda _: self._logits(inputs, kept))
        return results

    def new_tokens(self, prompt: str, answer: str) -> int:
        """How many tokens the answer adds to the prompt; image placeholders count the same in both.

        Raises:
            DataError: The answer has no token of its own.
        """
        tokenizer = self.processor.tokenizer
        if self.supports_suffix:
            count = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
        else:
            count = len(tokenizer(prompt + answer)["input_ids"]) - len(tokenizer(prompt)["input_ids"])
        if count < 1:
            raise DataError(f"the answer {answer!r} has no token of its own after the prompt")
        return count

    def _logits(self, inputs: Any, last: int) -> torch.Tensor:
        """Logits of the last positions, [batch, >= last, vocabulary]; of all if the model has no choice."""
        options = {"logits_to_keep": last} if "logits_to_keep" in forward_parameters(self.model) else {}
        return self.model(**inputs, use_cache=False, **options).logits
