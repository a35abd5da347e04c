"""Where an image is among the tokens of a prompt, and which processors write it so that it can be shared."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers.tiny_vision_models import random_image
from tokenizers import AddedToken

from truthgate_eval.vision.image_tokens import ImageMismatchError, find_image_span, find_image_token
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.model import VisionLanguageModel

Folder = Callable[[str], str]


@pytest.fixture
def vlm(vlm_checkpoint: Folder) -> VisionLanguageModel:
    return load_vlm(LoadOptions(vlm_checkpoint("idefics3"), device="cpu"))


def written(vlm: VisionLanguageModel, text: str = "Is it a cat?") -> tuple[list[int], list[int]]:
    """Token ids of a prompt about one image, as the processor makes them and with the placeholder."""
    prompt = vlm.prompt(text, 1)
    ids = vlm.encode([prompt], [[random_image(0, (80, 40))]])["input_ids"][0].tolist()
    return ids, vlm.tokens(prompt)


def test_an_image_is_all_that_stands_for_its_placeholder(vlm: VisionLanguageModel) -> None:
    """Two tiles, their names and line breaks, and the whole image between two tokens."""
    ids, unexpanded = written(vlm)
    start, end = find_image_span(vlm, ids, unexpanded)
    tokens = vlm.processor.tokenizer.convert_ids_to_tokens(ids[start:end])
    assert tokens[:2] == ["<fake_token_around_image>", "<row_1_col_1>"]
    assert tokens[-1] == "<fake_token_around_image>" and tokens.count("<image>") == 12
    assert [*ids[:start], find_image_token(vlm), *ids[end:]] == unexpanded


def test_a_placeholder_that_is_missing_or_there_twice_is_refused(vlm: VisionLanguageModel) -> None:
    ids, unexpanded = written(vlm)
    with pytest.raises(ImageMismatchError, match="a prompt has 2 placeholders, not 1"):
        find_image_span(vlm, ids, [*unexpanded, find_image_token(vlm)])
    with pytest.raises(ImageMismatchError, match="a prompt has 0 placeholders, not 1"):
        find_image_span(vlm, ids, [5, 6])


@pytest.mark.parametrize("at", ["begin", "end"])
def test_ordinary_text_at_an_images_end_is_refused(at: str, vlm: VisionLanguageModel) -> None:
    """A line break that a processor writes before an image may be one token with the prompt's own."""
    ids, unexpanded = written(vlm)
    start, end = find_image_span(vlm, ids, unexpanded)
    [line_break] = vlm.processor.tokenizer("\n", add_special_tokens=False)["input_ids"]
    ids.insert(start if at == "begin" else end, line_break)
    with pytest.raises(ImageMismatchError, match="begins or ends an image with ordinary text"):
        find_image_span(vlm, ids, unexpanded)


@pytest.mark.parametrize("where", [0, -1])
def test_another_token_around_an_image_is_refused(where: int, vlm: VisionLanguageModel) -> None:
    ids, unexpanded = written(vlm)
    ids[where] = 7
    with pytest.raises(ImageMismatchError, match="changes the text around an image"):
        find_image_span(vlm, ids, unexpanded)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip"])
def test_a_token_that_takes_spaces_out_of_the_prompt_is_refused(flag: str, vlm: VisionLanguageModel) -> None:
    token = "<fake_token_around_image>"
    ids, unexpanded = written(vlm)
    number = vlm.processor.tokenizer.convert_tokens_to_ids(token)
    vlm.processor.tokenizer.backend_tokenizer.add_special_tokens([AddedToken(token, **{flag: True})])
    assert getattr(vlm.processor.tokenizer.added_tokens_decoder[number], flag)
    with pytest.raises(ImageMismatchError, match="begins or ends an image with a token that strips spaces"):
        find_image_span(vlm, ids, unexpanded)
