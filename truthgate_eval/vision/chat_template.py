"""How a question with pictures is written for one model: its chat template, and what that template takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from truthgate_eval.errors import DataError, ModelError

PLACEHOLDER = "<image>"
PLAIN = "plain"
_PROBE = "a text to try the template with"


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A chat template that is known to show pictures.

    Attributes:
        processor: The processor that renders it.
        template: Jinja source, or None for no template at all (`chat_template=plain`).
        takes_content_parts: Whether a message's content is a list of parts, or one string.
        picture: How a picture is written where a message is one string.
    """

    processor: Any
    template: str | None
    takes_content_parts: bool
    image_placeholder: str

    def prompt(self, text: str, pictures: int) -> str:
        """See `VisionLanguageModel.prompt`."""
        pieces = text.split(PLACEHOLDER)
        placed = len(pieces) == pictures + 1
        token = self.processor.image_token
        if not (placed and pictures) and token in text:
            raise DataError(
                f"the text has {text.count(token)} placeholders {token} and the document {pictures} pictures"
            )
        if self.takes_content_parts:
            return self._render(_parts(pieces if placed else [*[""] * pictures, text]))
        if placed:
            text = self.image_placeholder.join(pieces)
        elif pictures:
            text = " ".join([self.image_placeholder] * pictures) + "\n" + text
        return text if self.template is None else self._render(text)

    def _render(self, content: Any) -> str:
        return _render(self.processor, str(self.template), content)


def find_chat_template(processor: Any, chosen: str | None, name: str) -> ChatTemplate:
    """The processor's own chat template, or the one that the user chose.

    Args:
        processor: A processor with a tokenizer.
        chosen: None, a file with a Jinja template, or `plain`: the pictures, a line break, the text.
        name: The model, for messages.

    Raises:
        ModelError: There is no template, or it does not show pictures.
    """
    picture = _framed(processor)
    if chosen == PLAIN:
        return ChatTemplate(processor, None, takes_content_parts=False, image_placeholder=picture)
    template = _read(chosen) if chosen else _own_template(processor)
    if template is None:
        raise ModelError(
            f"{name} has no chat template: give one with chat_template=FILE (Jinja), or chat_template=plain "
            "for the pictures, a line break and the text"
        )
    try:
        if _shows(processor, template, [{"type": "image"}, {"type": "text", "text": _PROBE}]):
            return ChatTemplate(processor, template, takes_content_parts=True, image_placeholder=picture)
        if _shows(processor, template, f"{picture}\n{_PROBE}"):
            return ChatTemplate(processor, template, takes_content_parts=False, image_placeholder=picture)
    except TemplateSyntaxError as error:
        raise ModelError(f"the chat template of {name} is not valid Jinja: {error}") from error
    raise ModelError(f"the chat template of {name} shows no picture: give another with chat_template=FILE")


def _parts(pieces: list[str]) -> list[dict[str, str]]:
    """Message parts with a picture between any two pieces of text."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _render(processor: Any, template: str, content: Any) -> str:
    message = {"role": "user", "content": content}
    return processor.apply_chat_template(
        [message], chat_template=template, add_generation_prompt=True, tokenize=False
    )


def _shows(processor: Any, template: str, content: Any) -> bool:
    """Whether this kind of content comes out as a picture and a text, and not as Python's view of a list."""
    try:
        with_picture = _render(processor, template, content)
        text = content[1:] if isinstance(content, list) else _PROBE
        without = _render(processor, template, text)
    except TemplateSyntaxError:
        raise
    except (TypeError, ValueError, TemplateError):
        return False
    return _PROBE in with_picture and with_picture != without and "'type'" not in with_picture


def _own_template(processor: Any) -> str | None:
    own = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    return own.get("default") if isinstance(own, dict) else own


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"chat_template={path} cannot be read: {error}") from error


def _framed(processor: Any) -> str:
    """A picture in a text without a template: Qwen's models want it between two tokens of their own."""
    vocabulary = processor.tokenizer.get_vocab()
    for start, end in (("<|vision_start|>", "<|vision_end|>"), ("<|vision_bos|>", "<|vision_eos|>")):
        if start in vocabulary:
            return f"{start}{processor.image_token}{end}"
    return processor.image_token
