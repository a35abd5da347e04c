"""How a question about images is written for one model: its chat template, and what that template accepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from truthgate_eval.errors import DataError, ModelError, first_line, reason_of
from truthgate_eval.files import read_text
from truthgate_eval.vision.processor import image_token

# Marks the place of an image in a task's question, for every model.
PLACEHOLDER = "<image>"
# The value of `chat_template` that means no template.
PLAIN = "plain"
_TEST_TEXT = "a text to try the template with"

# A message's content: a list of parts, or one string.
_Content = str | list[dict[str, str]]


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A chat template that was found to write images.

    Attributes:
        processor: The processor that renders it.
        template: Jinja source, or None for no template (`chat_template=plain`).
        takes_content_parts: Whether a message's content is a list of parts, or one string.
        image_placeholder: How an image is written where the content is one string.
        has_placeholders: Whether a prompt has image placeholders. A processor that puts image tokens before
            the text by itself wants none.
        system: Content of the system message before the question; None for none.
    """

    processor: Any
    template: str | None
    takes_content_parts: bool
    image_placeholder: str
    has_placeholders: bool = True
    system: _Content | None = None

    def with_system(self, text: str, name: str) -> ChatTemplate:
        """The same template with a system message before each question.

        Args:
            text: The system message.
            name: The model's name in messages.

        Raises:
            ModelError: The template has no system role, there is no template, or the text has the model's
                placeholder of an image.
        """
        text = text.strip()
        if self.template is None:
            raise ModelError(
                f"system_instruction needs a chat template with a system role, and {name} runs with "
                f"chat_template={PLAIN}"
            )
        if image_token(self.processor) in text:
            raise ModelError(
                f"system_instruction has {image_token(self.processor)}, but no picture to put there"
            )
        # Some templates take a system message in parts, some as one string, some in both forms.
        for system in ([{"type": "text", "text": text}], text):
            changed = replace(self, system=system)
            try:
                shown = changed.prompt(_TEST_TEXT, 1)
            except DataError:  # a template may raise on the role, or on the content
                continue
            if text in shown and _TEST_TEXT in shown and "'type'" not in shown:
                return changed
        raise ModelError(
            f"the chat template of {name} has no system role: leave system_instruction out, or give another "
            "template with chat_template=FILE"
        )

    def prompt(self, text: str, num_images: int) -> str:
        """See `VisionLanguageModel.prompt`."""
        if self.has_placeholders:
            return self._marked_prompt(text, num_images)
        if num_images > 1:
            name = type(self.processor).__name__
            raise DataError(f"{name} takes one picture for each text, and the document has {num_images}")
        prompt, token = self._marked_prompt(text, num_images), image_token(self.processor)
        return prompt.replace(f"{token}\n", "").replace(token, "")

    def _marked_prompt(self, text: str, num_images: int) -> str:
        pieces = text.split(PLACEHOLDER)
        are_marked = len(pieces) == num_images + 1
        token = image_token(self.processor)
        if not (are_marked and num_images) and token in text:
            raise DataError(
                f"the text has {text.count(token)} placeholders {token} "
                f"and the document {num_images} pictures"
            )
        if self.takes_content_parts:
            return self._render(_content_parts(pieces if are_marked else [*[""] * num_images, text]))
        if are_marked:
            text = self.image_placeholder.join(pieces)
        elif num_images:
            text = " ".join([self.image_placeholder] * num_images) + "\n" + text
        return text if self.template is None else self._render(text)

    def _render(self, content: _Content) -> str:
        try:
            return _render(self.processor, str(self.template), content, self.system)
        except Exception as error:  # a template is a program of its own
            raise DataError(f"the chat template fails on a question: {reason_of(error)}") from error


def find_chat_template(processor: Any, chosen: str | None, name: str) -> ChatTemplate:
    """The processor's own chat template, or the one that the user chose.

    Args:
        processor: A processor with a tokenizer.
        chosen: None; a file with a Jinja template; or `plain`: the images, a line break, the text.
        name: The model's name in messages.

    Raises:
        ModelError: There is no template, or it does not write images.
    """
    image = _plain_image_placeholder(processor)
    if chosen == PLAIN:
        return ChatTemplate(processor, None, takes_content_parts=False, image_placeholder=image)
    template = _read_template(chosen) if chosen else _own_template(processor)
    if template is None:
        raise ModelError(
            f"{name} has no chat template: give one with chat_template=FILE (Jinja), or chat_template=plain "
            "for the pictures, a line break and the text"
        )
    try:
        if _writes_images(processor, template, [{"type": "image"}, {"type": "text", "text": _TEST_TEXT}]):
            return ChatTemplate(processor, template, takes_content_parts=True, image_placeholder=image)
        if _writes_images(processor, template, f"{image}\n{_TEST_TEXT}"):
            return ChatTemplate(processor, template, takes_content_parts=False, image_placeholder=image)
    except TemplateSyntaxError as error:
        raise ModelError(f"the chat template of {name} is not valid Jinja: {first_line(error)}") from error
    raise ModelError(f"the chat template of {name} shows no picture: give another with chat_template=FILE")


def _content_parts(pieces: Sequence[str]) -> list[dict[str, str]]:
    """Message parts with an image between any two pieces of text."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _render(processor: Any, template: str, content: _Content, system: _Content | None = None) -> str:
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return processor.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=False
    )


def _writes_images(processor: Any, template: str, content: _Content) -> bool:
    """Whether a template writes this content as an image and a text, and not as Python's repr of a list."""
    try:
        with_image = _render(processor, template, content)
        text = content[1:] if isinstance(content, list) else _TEST_TEXT
        without_image = _render(processor, template, text)
    except TemplateSyntaxError:
        raise
    except Exception:  # a template may do anything with content that it does not expect
        return False
    return _TEST_TEXT in with_image and with_image != without_image and "'type'" not in with_image


def _own_template(processor: Any) -> str | None:
    own = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    return own.get("default") if isinstance(own, dict) else own


def _read_template(path: str) -> str:
    try:
        return read_text(Path(path))
    except DataError as error:
        raise ModelError(f"chat_template={path} cannot be read: {first_line(error)}") from error


def _plain_image_placeholder(processor: Any) -> str:
    """An image in a text without a template: Qwen's models want it between two tokens of their own."""
    vocabulary = processor.tokenizer.get_vocab()
    for start, end in (("<|vision_start|>", "<|vision_end|>"), ("<|vision_bos|>", "<|vision_eos|>")):
        if start in vocabulary:
            return f"{start}{image_token(processor)}{end}"
    return image_token(processor)
