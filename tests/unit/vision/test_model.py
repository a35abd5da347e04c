"""Vision-language models loaded from checkpoints: what goes in, what comes out, against plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from helpers import tiny_vision_models as factories_vlm

from truthgate_eval.errors import DataError
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.model import VisionLanguageModel

Folder = Callable[[str], str]
GREEDY = {"max_new_tokens": 10, "do_sample": False}
IMAGE_TOKENS = {"llava": "<image>", "llava_next": "<image>", "qwen2_5_vl": "<|image_pad|>", "qwen2_5_omni": "<|IMAGE|>"}  # fmt: skip


@pytest.fixture(params=factories_vlm.NAMES, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def vlm(vlm_checkpoint: Folder, name: str) -> VisionLanguageModel:
    return load_vlm(LoadOptions(vlm_checkpoint(name), device="cpu"))


def questions() -> tuple[list[str], list[list[Any]]]:
    """Eight texts of different lengths; with no image, one of several shapes, or two."""
    texts = [f"Is there a {'very ' * (5 * n % 7)}small dog number {n}?" for n in range(8)]
    images = [
        [
            factories_vlm.random_image(10 * n + k, (30 + 20 * n, 90))
            for k in range((1, 0, 2, 1, 1, 0, 1, 1)[n])
        ]
        for n in range(8)
    ]
    return texts, images


def test_weights_are_the_checkpoints(vlm: VisionLanguageModel, name: str) -> None:
    made, _ = factories_vlm.make(name)
    expected = getattr(made, "thinker", made).state_dict()
    found = vlm.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_answers_are_those_of_plain_transformers(
    vlm: VisionLanguageModel, name: str, vlm_checkpoint: Folder
) -> None:
    made, _ = factories_vlm.make(name)
    model = getattr(made, "thinker", made)
    processor = hf.AutoProcessor.from_pretrained(vlm_checkpoint(name))
    answers = set()
    for text, images in zip(*questions(), strict=True):
        parts = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": text}]
        inputs = processor.apply_chat_template(
            [[{"role": "user", "content": parts}]],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        tokens = model.generate(**inputs, **GREEDY, pad_token_id=0, eos_token_id=2)
        expected = processor.tokenizer.decode(
            tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert vlm.generate([vlm.prompt(text, len(images))], [images], **GREEDY) == [expected]
        answers.add(expected)
    assert len(answers) > 3  # a model that always says the same would prove nothing


def test_a_batch_of_eight_equals_batches_of_one(vlm: VisionLanguageModel) -> None:
    texts, images = questions()
    prompts = [vlm.prompt(text, len(found)) for text, found in zip(texts, images, strict=True)]
    alone = [vlm.generate([p], [f], **GREEDY)[0] for p, f in zip(prompts, images, strict=True)]
    assert vlm.generate(prompts, images, **GREEDY) == alone
    endings = [" Yes", " No, not at all", "no", " Y", "x", " There", "N", " no dog"]
    together = vlm.losses(prompts, endings, images)
    for row, (loss, greedy) in enumerate(together):
        expected = vlm.losses([prompts[row]], [endings[row]], [images[row]])[0]
        assert (loss, greedy) == (pytest.approx(expected[0], abs=1e-5), expected[1])


def test_a_loss_is_the_answers_mean_negative_log_likelihood(vlm: VisionLanguageModel) -> None:
    prompt, image, answer = vlm.prompt("What is it?", 1), factories_vlm.random_image(3), " No dog"
    whole = vlm.encode([prompt + answer], [[image]])
    count = len(vlm.processor.tokenizer(answer)["input_ids"])
    with torch.no_grad():
        likelihoods = vlm.model(**whole).logits[0].log_softmax(-1)
    tokens = whole["input_ids"][0, -count:]
    expected = -sum(likelihoods[-count - 1 + k, token] for k, token in enumerate(tokens)) / count
    assert vlm.losses([prompt], [answer], [[image]])[0] == (pytest.approx(expected.item(), abs=1e-5), False)


def test_the_answer_that_generation_gives_is_the_greedy_one(vlm: VisionLanguageModel) -> None:
    prompt, image = vlm.prompt("What is it?", 1), factories_vlm.random_image(3)
    [answer] = vlm.generate([prompt], [[image]], max_new_tokens=1, do_sample=False)
    (first, greedy), (other, not_greedy) = vlm.losses([prompt] * 2, [answer, "~"], [[image]] * 2)
    assert greedy and not not_greedy and first < other


def test_the_last_token_is_the_answers_after_the_image_has_become_tokens(
    vlm: VisionLanguageModel, name: str
) -> None:
    texts = [vlm.prompt("Is it a dog?", 1) + " No!", vlm.prompt("Is it?", 0) + " Yes."]
    inputs = vlm.encode(texts, [[factories_vlm.random_image(0, (90, 30))], []], padding_side="right")
    last = inputs["attention_mask"].sum(1) - 1
    ids = inputs["input_ids"][torch.arange(2), last]
    assert vlm.processor.tokenizer.convert_ids_to_tokens(ids.tolist()) == ["!", "."]
    token = vlm.processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKENS[name])
    per_row = (inputs["input_ids"] == token).sum(1).tolist()
    assert per_row[0] > 1 and per_row[1] == 0


def test_llava_next_sees_several_tiles(vlm_checkpoint: Folder) -> None:
    vlm = load_vlm(LoadOptions(vlm_checkpoint("llava_next"), device="cpu"))
    inputs = vlm.encode([vlm.prompt("a", 1)], [[factories_vlm.random_image(0, (60, 60))]])
    assert inputs["pixel_values"].shape[1] == 5


def test_a_template_that_writes_the_first_token_gets_no_second(
    vlm_checkpoint: Folder, tmp_path: Path
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ bos_token }}" + factories_vlm.LLAVA_TEMPLATE)
    vlm = load_vlm(LoadOptions(vlm_checkpoint("llava"), device="cpu", chat_template=str(file)))
    from tokenizers.processors import TemplateProcessing

    tokenizer = vlm.processor.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    assert tokenizer("hello")["input_ids"][0] == 1
    first, second = vlm.encode([vlm.prompt("hello")], [[]])["input_ids"][0, :2].tolist()
    assert first == 1 and second != 1


def test_images_go_where_the_text_marks_them(vlm_checkpoint: Folder) -> None:
    vlm = load_vlm(LoadOptions(vlm_checkpoint("qwen2_5_vl"), device="cpu"))
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    assert f"from {mark} to {mark}?" in vlm.prompt("from <image> to <image>?", 2)
    assert f"{mark}{mark}which?" in vlm.prompt("which?", 2)
    assert "a literal <image> tag" in vlm.prompt("a literal <image> tag", 0)  # not Qwen's token: just text
    with pytest.raises(DataError, match=r"1 placeholders .* 2 pictures"):
        vlm.prompt("one <|image_pad|>", 2)


def test_placeholders_that_do_not_match_the_images_are_refused(vlm_checkpoint: Folder) -> None:
    vlm = load_vlm(LoadOptions(vlm_checkpoint("llava"), device="cpu"))
    with pytest.raises(DataError, match="2 placeholders <image> and the document 1 pictures"):
        vlm.prompt("<image> and <image>", 1)


def test_an_answer_without_tokens_is_refused(vlm_checkpoint: Folder) -> None:
    vlm = load_vlm(LoadOptions(vlm_checkpoint("llava"), device="cpu"))
    with pytest.raises(DataError, match="no token of its own"):
        vlm.losses([vlm.prompt("a")], [""], [[]])
