"""Processors that add to a text, put image tokens themselves or lack settings: answers are the model's own.

The oracle is transformers' `generate` with the processor's own output.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from helpers import tiny_vision_models

from truthgate_eval.errors import DataError, ModelError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.processor import complete_from_config, image_token

Folder = Callable[[str], str]
# For each model, a question as its own processor takes it.
QUESTIONS = {
    "paligemma": "<image>\nIs it a cat?", "instructblip": "Is it a cat?", "blip_2": "Is it a cat?",
    "llava": "<image>\nIs it a cat?",
}  # fmt: skip
NEW_TOKENS = 6
NO_END = 10**6  # an id that no model gives, so that answers go on to the limit


@pytest.fixture(params=QUESTIONS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def vlm(name: str, vlm_checkpoint: Folder) -> VisionLanguageModel:
    return load(vlm_checkpoint(name))


def load(folder: str, chat_template: str | None = "plain") -> VisionLanguageModel:
    return load_vlm(LoadOptions(folder, device="cpu", chat_template=chat_template))


def generate(folder: str, text: str, image: Any) -> tuple[Any, torch.Tensor]:
    """Plain transformers: the new tokens of a greedy answer and the log-likelihoods before each of them."""
    processor = hf.AutoProcessor.from_pretrained(folder)
    model = hf.AutoModelForImageTextToText.from_pretrained(folder)
    inputs = processor(text=[text], images=[[image]], return_tensors="pt")
    made = model.generate(
        **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=NO_END,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    tokens = made.sequences[0, -NEW_TOKENS:]
    return processor.tokenizer.decode(tokens), torch.stack(made.logits)[:, 0].log_softmax(-1)


def seed_with_own_tokens(vlm: VisionLanguageModel, folder: str, text: str) -> tuple[str, torch.Tensor, Any]:
    """A generated answer that the tokenizer splits into the same tokens again, as not all can be."""
    for seed in range(40):
        image = tiny_vision_models.random_image(seed)
        answer, likelihoods = generate(folder, text, image)
        ids = vlm.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if ids == likelihoods.argmax(-1).tolist():
            return answer, likelihoods, image
    raise AssertionError("no image has such an answer")


def test_answers_are_those_of_plain_transformers(
    name: str, vlm: VisionLanguageModel, vlm_checkpoint: Folder
) -> None:
    answers = set()
    for seed in range(4):
        image = tiny_vision_models.random_image(seed)
        expected, _ = generate(vlm_checkpoint(name), QUESTIONS[name], image)
        prompt = vlm.prompt("Is it a cat?", 1)
        [found] = vlm.generate(
            [prompt], [[image]], max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=NO_END
        )
        assert found == vlm.processor.tokenizer.decode(
            vlm.processor.tokenizer(expected, add_special_tokens=False)["input_ids"], skip_special_tokens=True
        )
        answers.add(found)
    assert len(answers) > 1


def test_the_loss_of_an_answer_is_that_with_which_the_model_generates_it(
    name: str, vlm: VisionLanguageModel, vlm_checkpoint: Folder
) -> None:
    answer, likelihoods, image = seed_with_own_tokens(vlm, vlm_checkpoint(name), QUESTIONS[name])
    prompt = vlm.prompt("Is it a cat?", 1)
    expected = -likelihoods.max(-1).values.mean().item()
    other = answer[::-1] + "!"
    found = vlm.losses([prompt] * 2, [answer, other], [[image]] * 2)
    assert found[0] == (pytest.approx(expected, abs=1e-4), True)
    assert found[1][0] > found[0][0] and not found[1][1]


def test_the_activation_of_an_answers_last_token_is_that_of_generating(
    name: str, vlm: VisionLanguageModel, vlm_checkpoint: Folder
) -> None:
    """The last token that `generate` feeds back into the model is the last but one of what it returns."""
    layout = find_attention_layout(vlm.model)
    answer, _, image = seed_with_own_tokens(vlm, vlm_checkpoint(name), QUESTIONS[name])
    answer = vlm.processor.tokenizer.decode(
        vlm.processor.tokenizer(answer, add_special_tokens=False)["input_ids"][:-1]
    )
    prompt = vlm.prompt("Is it a cat?", 1)
    expected: dict[int, torch.Tensor] = {}
    inputs = vlm.encode([prompt], [[image]])
    hooks = [
        projection.module.register_forward_hook(
            lambda _m, _a, output, layer=layer: expected.update({layer: output.reshape(-1, 32)[-1]})
        )
        for layer, projection in enumerate(layout.projections)
    ]
    with torch.no_grad():
        vlm.model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=NO_END
        )
    found: dict[int, torch.Tensor] = {}
    for hook in hooks:
        hook.remove()
    scored, last = vlm.prepare_scoring([prompt] * 2, [answer, answer + " or not"], [[image]] * 2)
    hooks = [
        projection.module.register_forward_hook(
            lambda _m, _a, output, layer=layer: found.update(
                {layer: output.reshape(2, -1, 32)[0, int(last[0]) - scored["input_ids"].shape[1]]}
            )
        )
        for layer, projection in enumerate(layout.projections)
    ]
    vlm.run(scored)
    for hook in hooks:
        hook.remove()
    assert found.keys() == expected.keys() and len(found) == 3
    for layer, activation in expected.items():
        torch.testing.assert_close(found[layer], activation, atol=1e-4, rtol=1e-3)


def test_probing_reads_the_answers_last_token_in_batches(name: str, vlm: VisionLanguageModel) -> None:
    examples = [
        ProbeExample("Is it a cat?", answer, True, n, lambda n=n: [tiny_vision_models.random_image(n)])
        for n, answer in enumerate([" yes", " no way", " no", " it is"])
    ]
    dataset = ProbeDataset(examples, {}, {}, bare_questions=True)
    together = capture_with_images(vlm, dataset, batch_size=4)
    alone = capture_with_images(vlm, dataset, batch_size=1)
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(alone).max())
    inputs, last = vlm.prepare_scoring(
        [vlm.prompt("Is it?", 1)] * 2, [" yes", " no way"], [[tiny_vision_models.random_image()]] * 2
    )
    ids = inputs["input_ids"][torch.arange(2), last].tolist()
    assert vlm.processor.tokenizer.convert_ids_to_tokens(ids) == ["s", "y"]


def test_images_are_separated_from_text_or_not_shared(name: str, vlm: VisionLanguageModel) -> None:
    """Models whose processors add to the text do not share prefixes, and say so."""
    from truthgate_eval.vision import self_check

    shared = self_check.load(vlm, find_attention_layout(vlm.model).decoder)
    assert shared.supports_sharing == (name == "llava")


def test_a_processor_that_puts_image_tokens_itself_gets_a_text_without_them(vlm_checkpoint: Folder) -> None:
    for name in ("instructblip", "blip_2"):
        vlm = load(vlm_checkpoint(name))
        assert image_token(vlm.processor) == "<image>"
        assert vlm.prompt("Is it?", 1) == "Is it?" == vlm.prompt("<image>Is it?", 1)
        with pytest.raises(DataError, match="takes one picture for each text, and the document has 2"):
            vlm.prompt("Is it?", 2)


def test_a_template_for_a_processor_that_puts_image_tokens_itself(
    vlm_checkpoint: Folder, tmp_path: Path
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(tiny_vision_models.LLAVA_TEMPLATE)
    vlm = load(vlm_checkpoint("instructblip"), str(file))
    assert vlm.prompt("Is it?", 1) == "USER: Is it? ASSISTANT:"


def test_texts_with_and_without_images_are_not_one_batch_where_a_processor_mixes_them_up(
    vlm_checkpoint: Folder,
) -> None:
    image = tiny_vision_models.random_image()
    for name in ("paligemma", "instructblip"):
        vlm = load(vlm_checkpoint(name))
        with pytest.raises(ValueError, match="no batch of texts with and without pictures"):
            vlm.encode([vlm.prompt("Is it a cat?", 1), "Is it a cat?"], [[image], []])


def test_a_model_that_fails_on_a_question_is_one_line(vlm_checkpoint: Folder) -> None:
    vlm = load(vlm_checkpoint("paligemma"))
    dataset = ProbeDataset([ProbeExample("Is it?", " yes", True, n, list) for n in range(3)], {}, {})
    with pytest.raises(ModelError, match=r"fails on the question 'Is it\?': ValueError: `images` are"):
        capture_with_images(vlm, dataset, batch_size=4)


def test_a_template_that_fails_on_a_question_is_one_line(vlm_checkpoint: Folder, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    check = "{% if 'bad' in messages[0]['content']|string %}{{ raise_exception('not this') }}{% endif %}"
    file.write_text(check + tiny_vision_models.LLAVA_TEMPLATE)
    vlm = load(vlm_checkpoint("llava"), str(file))
    with pytest.raises(DataError, match="the chat template fails on a question: TemplateError: not this"):
        vlm.prompt("a bad one", 1)


class UpperCaseProcessor(hf.LlavaProcessor):
    """A processor that rewrites the answer."""

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        return super().__call__(images=images, text=[one.replace("yes", "YES") for one in text], **options)


def test_an_answer_that_the_processor_rewrites_is_refused_and_not_guessed(vlm_checkpoint: Folder) -> None:
    vlm = load(vlm_checkpoint("llava"))
    vlm.processor.__class__ = UpperCaseProcessor
    with pytest.raises(DataError, match=r"the tokens of .*yes.* are not found"):
        vlm.losses(["Is it?"], [" yes"], [[]])


# What each processor's file may lack, and the value that the model's config gives.
LACKING: list[tuple[str, dict[str, Any]]] = [
    (
        "llava",
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    ("llava", {"num_additional_image_tokens": 1}),
    (
        "llava_next",
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    ("llava_onevision", {"vision_feature_select_strategy": "full", "num_image_tokens": 4}),
    ("instructblip", {"num_query_tokens": 4}),
    ("blip_2", {"num_query_tokens": 4}),
]


@pytest.mark.parametrize(("name", "lacking"), LACKING)
def test_settings_that_a_processor_lacks_are_the_models(
    name: str,
    lacking: dict[str, Any],
    vlm_checkpoint: Folder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = Path(shutil.copytree(vlm_checkpoint(name), tmp_path / name))
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    assert {key: settings.pop(key) for key in lacking} == lacking
    file.write_text(json.dumps(settings))
    image = tiny_vision_models.random_image(1, (60, 60))
    with caplog.at_level(logging.INFO, logger="truthgate_eval"):
        vlm = load(str(folder))
    [line] = [record.getMessage() for record in caplog.records if "lacks settings" in record.getMessage()]
    assert line.endswith(", ".join(f"{key}={value}" for key, value in lacking.items()))
    assert {key: getattr(vlm.processor, key) for key in lacking} == lacking
    whole = load(vlm_checkpoint(name))
    prompt = whole.prompt("Is it a cat?", 1)
    assert vlm.prompt("Is it a cat?", 1) == prompt
    assert vlm.encode([prompt], [[image]])["input_ids"].tolist() == whole.encode([prompt], [[image]])["input_ids"].tolist()  # fmt: skip
    assert vlm.losses([prompt], [" yes"], [[image]]) == whole.losses([prompt], [" yes"], [[image]])


def tiny_clip() -> hf.CLIPVisionConfig:
    return hf.CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14,
        intermediate_size=32,
    )  # fmt: skip


def tiny_siglip() -> hf.SiglipVisionConfig:
    return hf.SiglipVisionConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14,
        intermediate_size=32,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config_class", "vision", "settings"),
    [
        (hf.LlavaConfig, tiny_clip, {"vision_feature_select_strategy": "full"}),
        (hf.LlavaConfig, tiny_siglip, {"vision_feature_select_strategy": "full"}),
        (hf.VipLlavaConfig, tiny_clip, {"vision_feature_layers": [-2, -1]}),
    ],
)
def test_as_many_image_tokens_are_written_as_the_vision_tower_makes(
    config_class: type[Any], vision: Callable[[], Any], settings: dict[str, Any]
) -> None:
    words = tiny_vision_models.tokenizer(["<image>"])
    text = hf.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        vocab_size=len(words),
    )
    token = words.convert_tokens_to_ids("<image>")
    config = config_class(vision_config=vision(), text_config=text, image_token_index=token, **settings)
    images = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = hf.LlavaProcessor(images, words)
    complete_from_config(processor, config, {}, "a model")
    model = hf.AutoModelForImageTextToText.from_config(config)
    inputs = processor(text=["<image> a"], images=[[tiny_vision_models.random_image()]], return_tensors="pt")
    with torch.no_grad():
        model(**inputs)  # refuses another number of image tokens than there are features
    expected = 5 if vision is tiny_clip and config_class is hf.LlavaConfig else 4
    assert int((inputs["input_ids"] == token).sum()) == expected


def test_a_processor_that_has_its_settings_keeps_them(
    vlm_checkpoint: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="truthgate_eval"):
        vlm = load(vlm_checkpoint("llava"))
        saved = {"patch_size": 7, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}
        for setting, value in saved.items():
            setattr(vlm.processor, setting, value)
        complete_from_config(vlm.processor, vlm.model.config, saved, "a model")
    assert "lacks settings" not in caplog.text
    assert {setting: getattr(vlm.processor, setting) for setting in saved} == saved


def test_a_processor_that_fails_on_an_image_is_named_before_the_weights(
    vlm_checkpoint: Folder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(vlm_checkpoint("llava"), tmp_path / "llava"))
    (folder / "model.safetensors").unlink()
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "patch_size": 0}))
    with pytest.raises(ModelError, match="fails on a picture: ZeroDivisionError"):
        load(str(folder))
