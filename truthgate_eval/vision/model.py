"""A loaded vision-language model: texts and pictures in, token ids, answers and losses out.

`encode` is the one place where a prompt and its pictures become model inputs, and a picture's
placeholder becomes the picture's tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from truthgate_eval.errors import DataError
from truthgate_eval.vision.chat_template import ChatTemplate

Images = Sequence[Image.Image]


@dataclass(frozen=True, eq=False)
class VisionLanguageModel:
    """A model, its processor and its chat format.

    Attributes:
        model: An image-text-to-text model of transformers, also one with an adapter.
        processor: Its processor: tokenizer and image processor.
        chat: How a question is written for it.
        name: What messages call it.
    """

    model: Any
    processor: Any
    chat: ChatTemplate
    name: str

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return self.model.device

    def prompt(self, text: str, pictures: int = 0) -> str:
        """A question in the model's chat format, up to where the answer begins.

        `<image>` in the text marks a picture's place, if there are as many as pictures; else the
        pictures come first.

        Raises:
            DataError: The text has picture placeholders that do not match the pictures.
        """
        return self.chat.prompt(text, pictures)

    def encode(self, texts: Sequence[str], pictures: Sequence[Images], *, padding_side: str = "left") -> Any:
        """Model inputs of a batch, on the model's device.

        Args:
            texts: Prompts, with or without an answer after them.
            pictures: Each text's pictures, in the order of their placeholders.
            padding_side: `left` to generate, `right` to read positions.
        """
        inputs = self.processor(
            text=list(texts),
            images=[list(some) for some in pictures] if any(pictures) else None,
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
            add_special_tokens=self._special(texts),
        )
        return inputs.to(self.device, self.model.dtype)

    def tokens(self, text: str) -> list[int]:
        """A text's token ids, every picture a placeholder of one token."""
        return self.processor.tokenizer(text, add_special_tokens=self._special([text]))["input_ids"]

    def _special(self, texts: Sequence[str]) -> bool:
        # A template that writes the first token itself must not get a second one.
        bos = self.processor.tokenizer.bos_token
        return bos is None or not all(text.startswith(bos) for text in texts)

    def generate(self, prompts: Sequence[str], pictures: Sequence[Images], **options: Any) -> list[str]:
        """Each prompt's answer; `options` are those of transformers' `generate`."""
        inputs = self.encode(prompts, pictures)
        with torch.no_grad():
            tokens = self.model.generate(**inputs, **options)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)

    def prepare_scoring(self, texts: Sequence[str], pictures: Sequence[Images]) -> tuple[Any, torch.Tensor]:
        """Inputs of whole sequences, and where each one's last token is, pictures' tokens counted.

        An end-of-sequence token that the tokenizer adds is no part of the answer.

        Returns:
            Model inputs padded to the right, and int64 [batch] positions.
        """
        inputs = self.encode(texts, pictures, padding_side="right")
        ends = inputs["attention_mask"].sum(dim=1) - 1
        last = inputs["input_ids"].gather(1, ends[:, None])[:, 0]
        return inputs, ends - (last == self.processor.tokenizer.eos_token_id).long()

    def run(self, inputs: Any) -> None:
        """Run the model for what its hooks keep; logits are computed at one position, if it can be helped."""
        with torch.no_grad():
            self._logits(inputs, 1)

    def losses(
        self, prompts: Sequence[str], answers: Sequence[str], pictures: Sequence[Images]
    ) -> list[tuple[float, bool]]:
        """Each answer's mean negative log-likelihood per token, and whether greedy decoding gives it.

        Raises:
            DataError: An answer has no token of its own.
        """
        counts = [self.new_tokens(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        inputs = self.encode(texts, pictures, padding_side="right")
        ends = inputs["attention_mask"].sum(dim=1).tolist()
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
        """How many tokens the answer adds; a picture's placeholder counts the same in both texts.

        Raises:
            DataError: It has no token of its own.
        """
        tokenizer = self.processor.tokenizer
        count = len(tokenizer(prompt + answer)["input_ids"]) - len(tokenizer(prompt)["input_ids"])
        if count < 1:
            raise DataError(f"the answer {answer!r} has no token of its own after the prompt")
        return count

    def _logits(self, inputs: Any, last: int) -> torch.Tensor:
        """Logits [batch, >= last, vocabulary] of the last positions, or of all where there is no choice."""
        options = {"logits_to_keep": last} if "logits_to_keep" in _parameters(self.model) else {}
        return self.model(**inputs, use_cache=False, **options).logits


def _parameters(model: Any) -> Any:
    # A PEFT wrapper's own signature takes anything.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(base.forward).parameters
