"""Where an image stands among a prompt's token ids: its placeholder, and what a processor makes of it."""

from __future__ import annotations

from collections.abc import Sequence

from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.processor import image_token


class ImageMismatchError(Exception):
    """A model's images cannot be separated from its text; the message says why."""


def find_image_token(vlm: VisionLanguageModel) -> int:
    """Token id of an image's placeholder."""
    return int(vlm.processor.tokenizer.convert_tokens_to_ids(image_token(vlm.processor)))


def expand_images(token_ids: Sequence[int], placeholder: int, runs: Sequence[Sequence[int]]) -> list[int]:
    """Token ids with each placeholder replaced by one run of ids, in order.

    Raises:
        ImageMismatchError: There are not as many placeholders as runs.

    Example:
        >>> expand_images([1, 9, 2, 9], 9, [[20, 21], [30]])
        [1, 20, 21, 2, 30]
    """
    if token_ids.count(placeholder) != len(runs):
        raise ImageMismatchError(f"a prompt has {token_ids.count(placeholder)} placeholders, not {len(runs)}")
    remaining = iter(runs)
    return [new for token in token_ids for new in (next(remaining) if token == placeholder else (token,))]


def find_image_span(
    vlm: VisionLanguageModel, token_ids: Sequence[int], unexpanded: Sequence[int]
) -> tuple[int, int]:
    """What a processor writes in the place of one image's placeholder, as start and end in its token ids.

    That is a run of one token, or more: Idefics3 writes a name before every tile of an image and line breaks
    between their rows, Pixtral ends every row of patches with a token of its own.

    Args:
        vlm: The model.
        token_ids: What the processor made of a prompt with one image, without padding.
        unexpanded: The same prompt with its placeholder, see `VisionLanguageModel.tokens`.

    Raises:
        ImageMismatchError: The processor changes the text around the image, or what it writes there begins or
            ends in ordinary text, which could become one token with the text of another prompt.
    """
    placeholder = find_image_token(vlm)
    if unexpanded.count(placeholder) != 1:
        raise ImageMismatchError(f"a prompt has {unexpanded.count(placeholder)} placeholders, not 1")
    start = unexpanded.index(placeholder)
    after = unexpanded[start + 1 :]
    end = len(token_ids) - len(after)
    if end <= start or [*token_ids[:start], *token_ids[end:]] != [*unexpanded[:start], *after]:
        raise ImageMismatchError("its processor changes the text around an image")
    first, last = token_ids[start], token_ids[end - 1]
    if {first, last} != {placeholder}:
        tokens = vlm.processor.tokenizer.added_tokens_decoder
        if not {first, last, placeholder} <= set(tokens):
            raise ImageMismatchError("its processor begins or ends an image with ordinary text")
        # A token with these flags takes the spaces beside it out of the text.
        if (tokens[first].lstrip, tokens[last].rstrip) != (
            tokens[placeholder].lstrip,
            tokens[placeholder].rstrip,
        ):
            raise ImageMismatchError("its processor begins or ends an image with a token that strips spaces")
    return start, end
