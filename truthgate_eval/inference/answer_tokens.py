"""The last token of an answer in a tokenized sequence, whatever the tokenizer adds after it.

Some tokenizers end every sequence with a token of their own, and some processors append text (PaliGemma's
a line break). Neither belongs to the answer. The answer's last token is therefore found by the characters
that tokens stand for, never by counting from the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding

from truthgate_eval.errors import DataError


def last_answer_token(encoding: BatchEncoding, tokenizer: Any, end: int, *, row: int = 0) -> int:
    """Position of the token that has the answer's last character.

    Args:
        encoding: What the tokenizer returned for a text that ends with the answer, or for a batch of them.
        tokenizer: The tokenizer. One that is not fast knows no characters: the last token that is not a
            special one is taken.
        end: Where the answer ends in the text: the index after its last character.
        row: Which text of the batch.

    Raises:
        DataError: No token comes from the text.
    """
    if encoding.encodings is None:
        ids = encoding["input_ids"]
        return last_ordinary_token(ids[row] if ids and isinstance(ids[0], list) else ids, tokenizer)
    one = encoding.encodings[row]
    added, offsets = one.special_tokens_mask, one.offsets
    for position in reversed(range(len(offsets))):
        start, stop = offsets[position]
        # A tokenizer may trim spaces off its offsets, so a token of spaces can be empty and end at `end`.
        if not added[position] and (start < end or stop <= end):
            return position
    raise DataError("a sequence has no token of its text")


def last_ordinary_token(ids: Sequence[int], tokenizer: Any) -> int:
    """Position of the last token that is no special token; the unknown token counts as an ordinary one.

    Raises:
        DataError: There is none.
    """
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for position in reversed(range(len(ids))):
        if ids[position] not in special:
            return position
    raise DataError("a sequence has no token of its text")


def drop_added_tokens(ids: list[int], text: str, tokenizer: Any) -> list[int]:
    """Token ids of a text without those that the tokenizer added after it.

    Args:
        ids: The text's tokens, with or without special tokens.
        text: The text.
        tokenizer: The tokenizer that made them.
    """
    for special in (False, True):
        encoding = tokenizer(text, add_special_tokens=special)
        if encoding["input_ids"] == ids:
            return ids[: last_answer_token(encoding, tokenizer, len(text)) + 1]
    return ids[: last_ordinary_token(ids, tokenizer) + 1]
