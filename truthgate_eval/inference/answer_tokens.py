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


def last_answer_token(
    encoding: BatchEncoding, tokenizer: Any, text: str, *, row: int = 0, sequence: int = 0
) -> int:
    """Position of the token that has the answer's last character.

    Args:
        encoding: What the tokenizer returned for a text, or for a batch of them.
        tokenizer: The tokenizer. One that is not fast knows no characters: the text is tokenized up to the
            answer's end instead.
        text: What was tokenized, up to where the answer ends.
        row: Which text of the batch.
        sequence: 1 where the answer is the second text of a pair, and `text` is that second one.

    Raises:
        DataError: No token has that character.
    """
    if encoding.encodings is None:
        ids = encoding["input_ids"]
        return _last_token_of(ids[row] if ids and isinstance(ids[0], list) else ids, text, tokenizer)
    one, end = encoding.encodings[row], len(text)
    added, offsets, sequences = one.special_tokens_mask, one.offsets, one.sequence_ids
    for position in reversed(range(len(offsets))):
        start, stop = offsets[position]
        # A tokenizer may trim spaces off its offsets, so a token of spaces can be empty and end at `end`.
        if not added[position] and sequences[position] == sequence and (start < end or stop <= end):
            return position
    raise DataError("a sequence has no token of its text")


def _last_token_of(ids: Sequence[int], text: str, tokenizer: Any) -> int:
    """Position of a text's last token in a sequence that contains the text and perhaps more.

    Args:
        ids: The sequence's tokens.
        text: The text.
        tokenizer: The tokenizer that made them.

    Raises:
        DataError: The sequence does not contain the text's tokens, but for the last, which may have
            characters of what follows.
    """
    own: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if own:
        for start in range(len(ids)):
            common = 0
            while common < len(own) and start + common < len(ids) and ids[start + common] == own[common]:
                common += 1
            last = start + len(own) - 1
            if common >= len(own) - 1 and last < len(ids):
                return last
    raise DataError("a sequence has no token of its text")


def drop_added_tokens(ids: list[int], text: str, tokenizer: Any) -> list[int]:
    """Token ids of a text without those that the tokenizer added after it.

    Args:
        ids: The text's tokens, with or without special tokens.
        text: The text.
        tokenizer: The tokenizer that made them.

    Raises:
        DataError: The text's tokens are not among them.
    """
    for special in (False, True):
        encoding = tokenizer(text, add_special_tokens=special)
        if encoding["input_ids"] == ids:
            return ids[: last_answer_token(encoding, tokenizer, text) + 1]
    return ids[: _last_token_of(ids, text, tokenizer) + 1]
