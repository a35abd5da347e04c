"""Baselines in lmms-eval: `contrast=ALPHA` against two plain runs, and system instructions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import lmms_eval_runs as kit
from helpers import tiny_vision_models as factories_vlm
from helpers.leaderboards import leaderboard
from lmms_eval.api.instance import Instance
from PIL import Image

from truthgate_eval.errors import GateError, ModelError, TaskError
from truthgate_eval.harness.lmms_eval.model import GatedVLM

Folder = Callable[[str], str]
INSTRUCTION = "Say yes only where you are sure."


def load(folder: str, scores: str = "none", **arguments: Any) -> GatedVLM:
    return GatedVLM(folder, device="cpu", scores=scores, batch_size=4, **arguments)


def score(
    model: GatedVLM, images: list[list[Any]], *, losses: str = "sum", text: str = "Is there a cat?"
) -> list[tuple[float, bool]]:
    """Losses of two answers to a question about the images of each document."""
    model.task_dict[kit.TASK] = {kit.SPLIT: [{"images": own} for own in images]}
    requests = []
    for n in range(len(images)):
        metadata = {"task": kit.TASK, "doc_id": n, "repeats": 1, "losses": losses}
        for answer in ("Yes", "not at all"):
            arguments = (text, answer, lambda doc: doc["images"], n, kit.TASK, kit.SPLIT)
            requests.append(Instance("loglikelihood", arguments, 0, metadata))
    return model.loglikelihood(requests)


@pytest.fixture
def images() -> list[list[Any]]:
    """For each document one, two and one images, of different sizes."""
    return [
        [factories_vlm.random_image(10 * n + k, (30 + 10 * n, 60)) for k in range(number)]
        for n, number in enumerate((1, 2, 1))
    ]


def in_black(images: list[list[Any]]) -> list[list[Any]]:
    return [[Image.new("RGB", image.size) for image in own] for own in images]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "off"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("image", ["black", "none"])
def test_losses_equal_those_of_two_plain_runs(
    image: str, name: str, engine: str, vlm_checkpoint: Folder, images: list[list[Any]]
) -> None:
    plain = load(vlm_checkpoint(name), engine="off")
    others = in_black(images) if image == "black" else [[] for _ in images]
    model = load(vlm_checkpoint(name), engine=engine, contrast="0.5", contrast_image=image)
    for losses in ("sum", "mean"):
        own, without = (score(plain, shown, losses=losses) for shown in (images, others))
        found = score(model, images, losses=losses)
        assert [loss for loss, _ in own] != pytest.approx([loss for loss, _ in without], abs=1e-3)
        expected = [1.5 * a - 0.5 * b for (a, _), (b, _) in zip(own, without, strict=True)]
        assert [loss for loss, _ in found] == pytest.approx(expected, abs=2e-3)
        assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in own]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_place_of_an_image_goes_with_it(
    name: str, vlm_checkpoint: Folder, images: list[list[Any]]
) -> None:
    alone = images[:1]
    marked, unmarked = "Look at <image>. Is there a cat?", "Look at . Is there a cat?"
    plain = load(vlm_checkpoint(name), engine="off")
    own, without = score(plain, alone, text=marked), score(plain, [[]], text=unmarked)
    found = score(load(vlm_checkpoint(name), contrast=1, contrast_image="none"), alone, text=marked)
    expected = [2 * a - b for (a, _), (b, _) in zip(own, without, strict=True)]
    assert [loss for loss, _ in found] == pytest.approx(expected, abs=2e-3)


def test_a_gate_acts_with_and_without_the_image(vlm_checkpoint: Folder, images: list[list[Any]]) -> None:
    gated = load(vlm_checkpoint("llava"), scores="random:1")
    own, without = (score(gated, shown) for shown in (images, in_black(images)))
    found = score(load(vlm_checkpoint("llava"), scores="random:1", contrast=1), images)
    expected = [2 * a - b for (a, _), (b, _) in zip(own, without, strict=True)]
    assert [loss for loss, _ in found] == pytest.approx(expected, abs=2e-3)


def test_contrasts_are_recorded_and_in_the_key_of_the_cache(vlm_checkpoint: Folder) -> None:
    settings: list[dict[str, Any]] = [
        {}, {"contrast": 0.5}, {"contrast": 1}, {"contrast": 1, "contrast_image": "none"},
        {"system_instruction": INSTRUCTION}, {"system_instruction": "Be brief."},
    ]  # fmt: skip
    models = [load(vlm_checkpoint("llava"), **own) for own in settings]
    assert len({model.fingerprint() for model in models}) == len(settings)
    gates = [model.get_model_info()["gate"].get("contrast") for model in models[:4]]
    assert gates == [None, {"alpha": 0.5, "image": "black"}, {"alpha": 1.0, "image": "black"},
                     {"alpha": 1.0, "image": "none"}]  # fmt: skip


def test_what_has_no_image_or_no_log_likelihood_is_refused(
    vlm_checkpoint: Folder, tmp_path: Path, images: list[list[Any]]
) -> None:
    model = load(vlm_checkpoint("llava"), contrast=0.5)
    with pytest.raises(TaskError, match=r"'tiny_pictures', document 0 has no picture to take away"):
        score(model, [[]])
    with pytest.raises(TaskError, match="'tiny_pictures' generates text: use a task"):
        kit.generate(model, kit.documents(tmp_path, 1))
    with pytest.raises(TaskError, match="'tiny_pictures' generates text"):
        evaluate(model, tmp_path, kit.TASK)
    with pytest.raises(GateError, match="contrast=-2"):
        load(vlm_checkpoint("llava"), contrast=-2)


def evaluate(model: GatedVLM, folder: Path, task: str, output: Path | None = None, **options: Any) -> Any:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.loggers import EvaluationTracker
    from lmms_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(output)) if output else None
    tasks = kit.save_tasks(folder / "tasks", 4)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    run = simple_evaluate(
        model=model, model_args="", tasks=[task], task_manager=manager, bootstrap_iters=0,
        evaluation_tracker=tracker, **options,
    )  # fmt: skip
    if tracker is not None:
        samples = run.pop("samples")
        tracker.save_results_aggregated(results=run, samples=samples, datetime_str="20260102_030405")
        tracker.save_results_samples(task_name=task, samples=samples[task])
        run["samples"] = samples
    return run


@pytest.mark.slow
@pytest.mark.parametrize("by", ["flag", "argument"])
def test_a_system_instruction_is_a_message_of_its_own_and_a_row_of_its_own(
    by: str, vlm_checkpoint: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = vlm_checkpoint("qwen2_5_vl")
    plain = load(folder)
    evaluate(plain, tmp_path, "tiny_choice", tmp_path / "plain")
    flag = {"system_instruction": INSTRUCTION} if by == "flag" else {}
    model = plain if by == "flag" else load(folder, system_instruction=INSTRUCTION)
    prompts: list[str] = []
    original = type(model.vlm).prompt

    def listen(vlm: Any, *arguments: Any) -> str:
        prompts.append(original(vlm, *arguments))
        return prompts[-1]

    monkeypatch.setattr(type(model.vlm), "prompt", listen)
    evaluate(model, tmp_path, "tiny_choice", tmp_path / "instructed", **flag)
    assert prompts and all(
        prompt.startswith(f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n<|im_start|>user\n")
        for prompt in prompts
    )
    made = leaderboard(tmp_path / "plain", tmp_path / "instructed")
    rows = [(row.label, row.method) for row in made.task_leaderboards[0].rows]
    assert rows == [("vanilla", "vanilla"), ('system instruction "Say yes only where yo..."', "prompt")]
    assert not [warning for warning in made.warnings if "prompt" in warning or "instruction" in warning]
    # The flag was that of one run.
    if by == "flag":
        assert model.options.system_instruction is None and INSTRUCTION not in model.vlm.prompt("a", 0)


def test_two_different_system_instructions_are_refused(vlm_checkpoint: Folder, tmp_path: Path) -> None:
    model = load(vlm_checkpoint("qwen2_5_vl"), system_instruction=INSTRUCTION)
    with pytest.raises(ModelError, match="differ: give one"):
        evaluate(model, tmp_path, "tiny_choice", system_instruction="Be brief.")


def test_a_template_without_a_system_role_is_refused(vlm_checkpoint: Folder, tmp_path: Path) -> None:
    silent = tmp_path / "silent.jinja"
    silent.write_text(
        "{% for m in messages if m.role != 'system' %}{% for c in m.content %}"
        "{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}{% endfor %}"
    )
    raising = tmp_path / "raising.jinja"
    raising.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + silent.read_text()
    )
    folder = vlm_checkpoint("llava")
    for template in (silent, raising):
        with pytest.raises(ModelError, match="has no system role: leave system_instruction out"):
            load(folder, chat_template=str(template), system_instruction=INSTRUCTION)
    model = load(folder, chat_template=str(silent))
    for _ in range(2):  # the run that was refused leaves nothing behind
        with pytest.raises(ModelError, match="has no system role"):
            evaluate(model, tmp_path, "tiny_choice", system_instruction=INSTRUCTION)
        assert model.get_model_info()["model_info"]["system_instruction"] is None
    with pytest.raises(ModelError, match="runs with chat_template=plain"):
        load(folder, chat_template="plain", system_instruction=INSTRUCTION)
    with pytest.raises(ModelError, match="system_instruction has <image>"):
        load(folder, system_instruction="Look at <image> first.")
    as_string = tmp_path / "string.jinja"
    as_string.write_text(factories_vlm.STRING_TEMPLATE)
    model = load(folder, chat_template=str(as_string), system_instruction=f" {INSTRUCTION} ")
    assert model.vlm.prompt("Is it?", 1).startswith(f"system> {INSTRUCTION}\nuser> ")
    assert json.dumps(model.get_model_info()["model_info"]["system_instruction"])
