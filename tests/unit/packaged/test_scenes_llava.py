"""The small child: its shape, its lessons, a training that can be stopped, and what the shipped weights see."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from training import train as training
from training.evaluate import CONDITIONS, evaluate
from training.training_data import CAPTION, TrainingConfig, eval_set
from truthgate_eval.errors import ModelError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.harness.lmms_eval.probing import load_for_probing
from truthgate_eval.packaged import scenes_llava as child
from truthgate_eval.paths import shipped
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.shared_prefix import SharedPrefixVLM

WEIGHTS = shipped("packaged_weights") / child.SCENES_LLAVA
REAL = (pytest.mark.real, pytest.mark.slow)


def course(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"part": "train", "tail": 1.0, "seed": 0, "batch": 4, "steps": 6, **settings})


def test_lessons_are_the_same_each_time_and_depend_on_the_seed() -> None:
    one, again, other = (course(seed=seed).batches()(3) for seed in (0, 0, 1))
    assert [(x.question, x.answer) for x in one] == [(x.question, x.answer) for x in again]
    assert [x.image.tobytes() for x in one] == [x.image.tobytes() for x in other]
    assert [(x.question, x.answer) for x in one] != [(x.question, x.answer) for x in other]


def test_polls_are_one_in_five_at_first_and_seven_in_ten_later() -> None:
    some = course(steps=256, batch=16)
    lessons = some.batches()
    asked = [[lesson.question != CAPTION for lesson in lessons(step)] for step in range(256)]
    shares = [sum(map(sum, half)) / (128 * 16) for half in (asked[:128], asked[128:])]
    assert shares == pytest.approx([0.2, 0.7], abs=0.04)


def test_an_exams_pictures_are_none_of_the_lessons() -> None:
    taught = {lesson.image.tobytes() for step in range(100) for lesson in course().batches()(step)}
    examined = {lesson.image.tobytes() for lesson in eval_set("train", 1.0, 100)}
    assert len(examined) == 100 and not taught & examined


def test_every_answer_of_an_exam_is_right_about_its_own_picture_only() -> None:
    polls = eval_set("train", 1.0, 200)
    assert Counter(poll.answer for poll in polls).keys() == {"Yes", "No"}
    moved = CONDITIONS["other"](polls)
    assert [poll.question for poll in moved] == [poll.question for poll in polls]
    assert all(a.image is not b.image for a, b in zip(moved, polls, strict=True))
    assert {id(poll.image) for poll in moved} == {id(poll.image) for poll in polls}


@pytest.fixture(scope="module")
def small_training() -> Any:
    """Two steps of naming instead of two thousand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "TOWER_STEPS", 2)
        patch.setattr(training, "TOWER_BATCH", 4)
        patch.setattr(training, "KEEP_EVERY", 2)
        patch.setattr(training, "EXAM_SCENES", 2)
        yield


def quiet(*_: Any) -> None:
    return None


@pytest.mark.real
@pytest.mark.slow
def test_a_stopped_training_goes_on_where_it_was(small_training: Any, tmp_path: Path) -> None:
    lessons = course(steps=4)
    training.train(lessons, tmp_path / "whole", quiet)

    def stop(stage: str, step: int, *_: Any) -> None:
        if stage.startswith("describing") and step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(lessons, tmp_path / "stopped", stop)
    assert not (tmp_path / "stopped" / "weights").exists()
    training.train(lessons, tmp_path / "stopped", quiet)
    for file in child.FILES:
        whole, stopped = (load_file(tmp_path / name / "weights" / file) for name in ("whole", "stopped"))
        assert whole.keys() == stopped.keys()
        assert all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.real
@pytest.mark.slow
def test_the_loss_is_that_of_the_answers_alone(tmp_path: Path) -> None:
    """Against a from-scratch loss over whole logits, one lesson at a time."""
    torch.manual_seed(0)
    model, processor = child.new_scenes_llava()
    model = child.add_adapter(model)
    lessons = course(batch=5).batches()(0)
    with torch.no_grad():
        ours = training.example_loss(model, processor, lessons).item()
        losses, count = 0.0, 0
        for lesson in lessons:
            text = training.prompt(processor, lesson.question)
            before = len(processor(text=text, images=lesson.image)["input_ids"][0])
            inputs = processor(
                text=f"{text}{lesson.answer}<|im_end|>", images=lesson.image, return_tensors="pt"
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
def test_weights_that_lack_a_part_are_refused_and_leave_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no folder of a child's weights: adapter.safetensors is missing"):
        child.assemble(tmp_path, tmp_path / "model")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in child.FILES:
        save_file({"strange": torch.zeros(1)}, broken / file)
    with pytest.raises(ModelError, match="do not fit"):
        child.assemble(broken, tmp_path / "model")
    assert not (tmp_path / "model").exists() and len(list(tmp_path.iterdir())) == 1


def test_the_shipped_weights_are_small_and_have_a_card() -> None:
    size = sum((WEIGHTS / file).stat().st_size for file in child.FILES)
    assert 5e6 < size <= 15e6
    card = (WEIGHTS / "README.md").read_text()
    assert "random" in card and "photographs" in card


@pytest.fixture(scope="module")
def shipped_child() -> Any:
    return load_vlm(LoadOptions(child.SCENES_LLAVA, device="cpu", dtype="bfloat16"))


@pytest.mark.real
@pytest.mark.slow
def test_the_child_is_a_llava_with_the_bases_heads(shipped_child: Any) -> None:
    assert type(shipped_child.model).__name__ == "LlavaForConditionalGeneration"
    assert find_attention_layout(shipped_child.model).shape == (30, 9)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("lam", [0.3, -0.5])
def test_a_gates_rounding_in_half_precision_is_not_taken_for_a_wrong_mask(
    shipped_child: Any, lam: float
) -> None:
    """Both were refused where a tenth of what tells two questions apart was all that was allowed."""
    gate = GateConfig.parse("smollm2-135m-instruct__halueval-qa", lam=lam, norm="minmax")
    handle = gate.apply(shipped_child.model, child.SCENES_LLAVA)
    assert handle is not None
    with handle:
        forward = SharedPrefixVLM(shipped_child, handle.anatomy.decoder)
    assert forward.supports_sharing and forward.supports_multi_image


@pytest.mark.real
@pytest.mark.slow
def test_it_is_what_probing_loads_where_no_model_is_named() -> None:
    assert load_for_probing("vlm", {}, device="cpu", chat=False).name == child.SCENES_LLAVA


@pytest.mark.real
@pytest.mark.slow
def test_the_picture_matters(shipped_child: Any) -> None:
    """With its own pictures far above a blind guess; with black or others' pictures not above it."""
    table = evaluate(shipped_child, "test", 24)
    for split, found in table.items():
        assert found["own"] >= 0.88, (split, found)
        for condition in ("black", "other"):
            assert found[condition] <= found["blind"] + 0.1, (split, condition, found)


@pytest.mark.real
@pytest.mark.slow
def test_a_caption_names_what_is_there(shipped_child: Any) -> None:
    from truthgate_eval.packaged.scenes import make_scene

    numbers = random.Random(0).sample(range(50_000_000, 60_000_000), 10)
    scenes = [make_scene("test", number) for number in numbers]
    prompts = [shipped_child.prompt(CAPTION, 1)] * len(scenes)
    said = shipped_child.generate(prompts, [[s.image] for s in scenes], max_new_tokens=40, do_sample=False)
    named = [name in text for scene, text in zip(scenes, said, strict=True) for name in scene.objects]
    assert sum(named) / len(named) > 0.8
