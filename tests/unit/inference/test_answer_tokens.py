"""The answer's last token, whatever stands after it."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import tiny_vision_models
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding

from truthgate_eval.errors import DataError
from truthgate_eval.inference.answer_tokens import drop_added_tokens, last_answer_token


@pytest.fixture
def tokenizer() -> Any:
    return tiny_vision_models.tokenizer([])


@pytest.fixture
def end_tokenizer() -> Any:
    made = tiny_vision_models.tokenizer([])
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return made


@pytest.mark.parametrize(
    "text", ["Is it? yes", "Is it? yes.", "ends in spaces  ", "ends in a line break\n", "in</s>side"]
)
def test_tokens_that_the_tokenizer_adds_are_not_the_answers(
    text: str, tokenizer: Any, end_tokenizer: Any
) -> None:
    plain = tokenizer(text)["input_ids"]
    assert drop_added_tokens(plain, text, tokenizer) == plain
    ended = end_tokenizer(text)["input_ids"]
    assert ended == [1, *plain, 2] and drop_added_tokens(ended, text, end_tokenizer) == [1, *plain]
    bare = end_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert drop_added_tokens(bare, text, end_tokenizer) == plain


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_text_after_the_answer_and_padding_are_not_the_answers(padding_side: str, end_tokenizer: Any) -> None:
    texts, ends = ["yes\n", "not at all\n"], [3, 10]
    encoding = end_tokenizer(texts, padding=True, padding_side=padding_side)
    for row, (text, end) in enumerate(zip(texts, ends, strict=True)):
        position = last_answer_token(encoding, end_tokenizer, text[:end], row=row)
        token = end_tokenizer.convert_ids_to_tokens(encoding["input_ids"][row])[position]
        assert text[:end].endswith(token)


def test_a_token_across_the_answers_end_is_the_answers(tokenizer: Any) -> None:
    encoding = tokenizer("a th")  # "th" is one token
    assert last_answer_token(encoding, tokenizer, "a t") == len(encoding["input_ids"]) - 1


def test_without_character_offsets_the_texts_own_tokens_are_found(end_tokenizer: Any) -> None:
    ids = end_tokenizer("yes")["input_ids"]
    for slow in (BatchEncoding({"input_ids": ids}), BatchEncoding({"input_ids": [[1, 2], ids]})):
        row = len(slow["input_ids"]) - 1 if isinstance(slow["input_ids"][0], list) else 0
        assert last_answer_token(slow, end_tokenizer, "yes", row=row) == len(ids) - 2
    foreign = [*ids[:-1], 3, 2]  # made by another call than the tokenizer's own; 3 is the unknown token
    assert drop_added_tokens(foreign, "yes!", end_tokenizer) == foreign[:-1]
    assert drop_added_tokens(foreign, "yes", end_tokenizer) == ids[:-1]
    appended = BatchEncoding({"input_ids": end_tokenizer("Is it? yes\nanswer:")["input_ids"]})
    assert last_answer_token(appended, end_tokenizer, "Is it? yes") == 10
    with pytest.raises(DataError, match="no token of its text"):
        last_answer_token(appended, end_tokenizer, "Is it? no")


def test_the_answer_may_be_the_second_text_of_a_pair(tokenizer: Any) -> None:
    encoding = tokenizer(["a", "abc"], text_pair=["yes</s>", "no</s>"], padding=True)
    assert [last_answer_token(encoding, tokenizer, "yes", sequence=1), encoding["input_ids"][0][3]] == [3, 86]
    assert last_answer_token(encoding, tokenizer, "no", row=1, sequence=1) == 4
    assert last_answer_token(encoding, tokenizer, "abc", row=1) == 2


def test_a_sequence_without_text_is_one_line(end_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no token of its text"):
        last_answer_token(end_tokenizer(""), end_tokenizer, "")
