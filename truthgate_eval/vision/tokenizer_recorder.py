"""Finds an answer's tokens among those that a processor makes of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import BatchEncoding

from truthgate_eval.errors import DataError
from truthgate_eval.inference.answer_tokens import last_answer_token


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a tokenizer: its texts, what it returned, and a copy of the ids (processors edit them)."""

    texts: list[str]
    encoding: BatchEncoding
    ids: list[list[int]]


class TokenizerRecorder:
    """A tokenizer that remembers what texts it was given, and what it made of them.

    A processor that has one in its tokenizer's place shows what it adds to a text, and where.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Wrap a tokenizer, which is not changed."""
        self._tokenizer = tokenizer
        self._calls: list[_Call] = []

    def __call__(self, text: str | list[str], *args: Any, **options: Any) -> BatchEncoding:
        """What the tokenizer returns."""
        encoding = self._tokenizer(text, *args, **options)
        texts, ids = [text] if isinstance(text, str) else list(text), encoding["input_ids"]
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        rows = [list(row) for row in ids] if ids and isinstance(ids[0], list) else [list(ids)]
        self._calls.append(_Call(texts, encoding, rows))
        return encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def last_token(self, row: int, tail: str, ids: Sequence[int]) -> int:
        """Position of the last token of a text that ends in an answer.

        Args:
            row: Which text of the batch.
            tail: What follows the text's last image, up to the answer's end.
            ids: What the processor returned for that text, with padding.

        Raises:
            DataError: The processor changed the text, or its tokens, so that the answer is not found.
        """
        for call, start in self._find(row, ids):
            at = call.texts[row].rfind(tail)
            if at >= 0:
                answered = call.texts[row][: at + len(tail)]
                return start + last_answer_token(call.encoding, self._tokenizer, answered, row=row)
        raise DataError(f"the processor changes the text: the tokens of {tail[-40:]!r} are not found")

    def last_pair_token(self, row: int, answer: str) -> int:
        """Position of the last token of an answer that was given as the second text of a pair.

        Raises:
            DataError: It has no token.
        """
        return last_answer_token(self._calls[-1].encoding, self._tokenizer, answer, row=row, sequence=1)

    def _find(self, row: int, ids: Sequence[int]) -> Iterator[tuple[_Call, int]]:
        """Calls whose tokens for a row are in the processor's, the last one first, and where they begin."""
        for call in reversed(self._calls):
            if row < len(call.ids):
                own = call.ids[row]
                for start in range(len(ids) - len(own) + 1):
                    if list(ids[start : start + len(own)]) == own:
                        yield call, start
                        break
