"""smollm2-135m-scenes: its architecture, its training, which can be interrupted, and the shipped weights."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from training import train as training
from training import training_data
from training.evaluate import CONDITIONS, evaluate
from training.training_data import CAPTION_PROMPT, ScenesTraining, eval_set
from truthgate_eval.errors import ModelError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.harness.lmms_eval.probing import load_for_probing
from truthgate_eval.packaged import scenes_llava
from truthgate_eval.paths import shipped
from truthgate_eval.vision import self_check
from truthgate_eval.vision.loading import LoadOptions, load_vlm

WEIGHTS = shipped("packaged_weights") / scenes_llava.SCENES_LLAVA


def make_config(**settings: Any) -> ScenesTraining:
    defaults = {"seed": 0, "batch_size": 4, "steps": 6, "tower_steps": 2}
    return ScenesTraining(**{**defaults, **settings})


def test_examples_depend_on_the_seed_alone() -> None:
    one, again, other = (make_config(seed=seed).batches()(3) for seed in (0, 0, 1))
    assert [(x.question, x.answer) for x in one] == [(x.question, x.answer) for x in again]
    assert [x.image.tobytes() for x in one] == [x.image.tobytes() for x in other]
    assert [(x.question, x.answer) for x in one] != [(x.question, x.answer) for x in other]


def test_one_in_five_examples_is_a_question_at_first_and_seven_in_ten_later() -> None:
    batches = make_config(steps=256, batch_size=16).batches()
    is_question = [[example.question != CAPTION_PROMPT for example in batches(step)] for step in range(256)]
    shares = [sum(map(sum, half)) / (128 * 16) for half in (is_question[:128], is_question[128:])]
    assert shares == pytest.approx([0.2, 0.7], abs=0.04)


def test_no_image_of_the_eval_set_is_a_training_image() -> None:
    batches = make_config().batches()
    trained = {example.image.tobytes() for step in range(100) for example in batches(step)}
    evaluated = {example.image.tobytes() for example in eval_set("train", 1.0, 100)}
    assert len(evaluated) == 100 and not trained & evaluated


def test_the_conditions_change_the_images_and_keep_the_questions() -> None:
    examples = eval_set("train", 1.0, 200)
    assert Counter(example.answer for example in examples).keys() == {"Yes", "No"}
    others = CONDITIONS["other"](examples)
    assert [example.question for example in others] == [example.question for example in examples]
    assert all(a.image is not b.image for a, b in zip(others, examples, strict=True))
    assert {id(example.image) for example in others} == {id(example.image) for example in examples}
    black = CONDITIONS["black"](examples)
    assert [example.answer for example in black] == [example.answer for example in examples]
    assert all(example.image.getextrema() == ((0, 0),) * 3 for example in black)
    assert CONDITIONS["own"](examples) == examples


@pytest.fixture(scope="module")
def small_training() -> Any:
    """Two steps for the vision tower instead of two thousand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "TOWER_BATCH_SIZE", 4)
        patch.setattr(training, "CHECKPOINT_EVERY", 2)
        patch.setattr(training_data, "EVAL_SCENES", 2)
        yield


def quiet(*_: Any) -> None:
    return None


@pytest.mark.real
@pytest.mark.slow
def test_an_interrupted_training_continues_with_the_same_result(small_training: Any, tmp_path: Path) -> None:
    config = make_config(steps=4)
    training.train(config, tmp_path / "whole", quiet)

    def stop(stage: str, step: int, *_: Any) -> None:
        if stage == "whole model" and step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(config, tmp_path / "stopped", stop)
    assert not (tmp_path / "stopped" / "weights").exists()
    training.train(config, tmp_path / "stopped", quiet)
    for file in scenes_llava.WEIGHT_FILES:
        whole, stopped = (load_file(tmp_path / name / "weights" / file) for name in ("whole", "stopped"))
        assert whole.keys() == stopped.keys()
        assert all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.real
@pytest.mark.slow
def test_the_projector_learns_to_write_the_words_for_what_is_on_an_image(small_training: Any) -> None:
    torch.manual_seed(0)
    model, processor = scenes_llava.new_scenes_llava()
    before = {name: value.clone() for name, value in model.model.language_model.state_dict().items()}
    losses: list[float] = []
    config = make_config(align_steps=40)
    training.align_projector(
        model, processor, config, lambda *given: losses.append(float(given[3].split()[1]))
    )
    assert len(losses) == 40 and losses[-1] < 0.8 * losses[0]
    after = model.model.language_model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_image_tokens_take_turns_among_the_names() -> None:
    embeddings = {name: torch.full((2,), float(number)) for number, name in enumerate("abc")}
    labeled = training_data.LabeledImage(mock.Mock(), frozenset("ca"))
    assert training._turns(labeled, embeddings, 5)[:, 0].tolist() == [0, 2, 0, 2, 0]


@pytest.mark.real
@pytest.mark.slow
def test_the_loss_covers_the_tokens_of_the_answers_only(tmp_path: Path) -> None:
    """Compared with a loss over all logits, one example at a time."""
    torch.manual_seed(0)
    model, processor = scenes_llava.new_scenes_llava()
    model = scenes_llava.add_adapter(model)
    examples = make_config(batch_size=5).batches()(0)
    with torch.no_grad():
        ours = training.example_loss(model, processor, examples).item()
        losses, count = 0.0, 0
        for example in examples:
            text = training.prompt(processor, example.question)
            before = len(processor(text=text, images=example.image)["input_ids"][0])
            inputs = processor(
                text=f"{text}{example.answer}<|im_end|>", images=example.image, return_tensors="pt"
            )
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(**inputs).logits[0].float()
            targets = inputs["input_ids"][0, before:]
            losses += torch.nn.functional.cross_entropy(
                logits[before - 1 : -1], targets, reduction="sum"
            ).item()
            count += len(targets)
    assert ours == pytest.approx(losses / count, rel=0.01)


@pytest.mark.real
@pytest.mark.slow
def test_incomplete_or_wrong_weights_are_an_error_and_leave_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no trained weights: adapter\.safetensors is missing"):
        scenes_llava.assemble(tmp_path, tmp_path / "model")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in scenes_llava.WEIGHT_FILES:
        save_file({"strange": torch.zeros(1)}, broken / file)
    with pytest.raises(ModelError, match="do not fit"):
        scenes_llava.assemble(broken, tmp_path / "model")
    assert not (tmp_path / "model").exists() and len(list(tmp_path.iterdir())) == 1


def test_weights_that_fail_without_a_message_are_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(peft, "set_peft_model_state_dict", fail)
    with pytest.raises(ModelError, match=r"do not fit: RuntimeError$"):
        scenes_llava.load_weights(mock.MagicMock(), WEIGHTS)


def test_the_shipped_weights_are_small_and_have_a_model_card() -> None:
    size = sum((WEIGHTS / file).stat().st_size for file in scenes_llava.WEIGHT_FILES)
    assert 5e6 < size <= 15e6
    card = (WEIGHTS / "README.md").read_text()
    assert "random" in card and "photographs" in card


@pytest.fixture(scope="module")
def shipped_model() -> Any:
    return load_vlm(LoadOptions(scenes_llava.SCENES_LLAVA, device="cpu", dtype="bfloat16"))


@pytest.mark.real
@pytest.mark.slow
def test_the_model_is_a_llava_with_the_attention_heads_of_smollm2(shipped_model: Any) -> None:
    assert type(shipped_model.model).__name__ == "LlavaForConditionalGeneration"
    assert find_attention_layout(shipped_model.model).shape == (30, 9)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("lam", [0.3, -0.5])
def test_rounding_under_a_gate_in_half_precision_is_not_taken_for_a_wrong_mask(
    shipped_model: Any, lam: float
) -> None:
    """A tolerance of a tenth of the difference between two prompts refused both."""
    gate = GateConfig.parse("smollm2-135m-instruct__halueval-qa", lam=lam, norm="minmax")
    handle = gate.apply(shipped_model.model, scenes_llava.SCENES_LLAVA)
    assert handle is not None
    with handle:
        shared = self_check.load(shipped_model, handle.layout.decoder)
    assert shared.supports_sharing and shared.supports_multi_image


@pytest.mark.real
@pytest.mark.slow
def test_probing_loads_it_by_default() -> None:
    assert load_for_probing("vlm", {}, device="cpu", chat=False).name == scenes_llava.SCENES_LLAVA


@pytest.mark.real
@pytest.mark.slow
def test_answers_depend_on_the_image(shipped_model: Any) -> None:
    """With its own images far above a blind guess; with black or other images not above it."""
    table = evaluate(shipped_model, "test", 24)
    for split, found in table.items():
        assert found["own"] >= 0.88, (split, found)
        for condition in ("black", "other"):
            assert found[condition] <= found["blind"] + 0.1, (split, condition, found)


@pytest.mark.real
@pytest.mark.slow
def test_captions_name_the_objects(shipped_model: Any) -> None:
    from truthgate_eval.packaged.scenes import make_scene

    numbers = random.Random(0).sample(range(50_000_000, 60_000_000), 10)
    scenes = [make_scene("test", number) for number in numbers]
    prompts = [shipped_model.prompt(CAPTION_PROMPT, 1)] * len(scenes)
    captions = shipped_model.generate(
        prompts, [[scene.image] for scene in scenes], max_new_tokens=40, do_sample=False
    )
    named = [name in text for scene, text in zip(scenes, captions, strict=True) for name in scene.objects]
    assert sum(named) / len(named) > 0.8
