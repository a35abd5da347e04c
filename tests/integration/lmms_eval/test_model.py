"""`gated_vlm` and its relatives, called as lmms-eval calls them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import lmms_eval_runs as kit
from helpers import tiny_vision_models as factories_vlm
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model, get_model_manifest

from truthgate_eval.errors import GateError, ModelError, ScoresError, TruthGateError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lmms_eval import model as models
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.harness.lmms_eval.registry import MODELS
from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA

Folder = Callable[[str], str]


def load(folder: str, **arguments: Any) -> GatedVLM:
    return GatedVLM(folder, device="cpu", **{"scores": "none", **arguments})


@pytest.fixture(scope="module")
def llava(vlm_checkpoint: Folder) -> GatedVLM:
    return load(vlm_checkpoint("llava"))


def test_models_are_found_by_their_names_with_their_defaults() -> None:
    for name, cls in MODELS.items():
        assert get_model_manifest(name).chat_class_path is None
        found = get_model(name)
        assert found is getattr(models, cls)
        assert (found.model_id, found.is_simple) == (name, True)
    assert models.GatedLlavaNext.default_pretrained == "llava-hf/llava-v1.6-vicuna-7b-hf"
    assert models.GatedQwen25Omni.default_pretrained == "Qwen/Qwen2.5-Omni-7B"
    assert models.GatedVLM.default_pretrained == SCENES_LLAVA


@pytest.mark.parametrize("name", factories_vlm.NAMES)
def test_answers_come_in_order_and_batch_eight_equals_batch_one(
    name: str, vlm_checkpoint: Folder, tmp_path: Path
) -> None:
    docs = kit.documents(tmp_path)
    model = load(vlm_checkpoint(name), batch_size=8)
    together = kit.generate(model, docs)
    expected = []
    for doc in docs:
        images = kit.open_images(doc)
        prompt = model.vlm.prompt(doc["question"], len(images))
        expected += model.vlm.generate([prompt], [images], max_new_tokens=8, do_sample=False)
    assert together == expected
    assert kit.generate(load(vlm_checkpoint(name), batch_size=1), docs) == expected
    assert len(set(expected)) > 3


def test_the_vanilla_model_answers_as_lmms_evals_own_llava_hf(vlm_checkpoint: Folder, tmp_path: Path) -> None:
    pytest.importorskip("decord", reason="lmms-eval's llava_hf imports decord")
    theirs = get_model("llava_hf", force_simple=True)(
        vlm_checkpoint("llava"), device="cpu", device_map="cpu", dtype="float32", batch_size=1
    )
    docs = [doc for doc in kit.documents(tmp_path, 12) if len(doc["pictures"]) == 1]
    expected = kit.generate(theirs, docs)
    assert kit.generate(load(vlm_checkpoint("llava"), batch_size=4), docs) == expected
    assert len(set(expected)) > 2 and "" not in expected


def test_a_gate_changes_the_answers(llava: GatedVLM, vlm_checkpoint: Folder, tmp_path: Path) -> None:
    docs = kit.documents(tmp_path)
    gated = load(vlm_checkpoint("llava"), scores="random:1")
    assert kit.generate(gated, docs) != kit.generate(llava, docs)
    assert gated.gate_handle is not None
    gated.gate_handle.remove()
    assert kit.generate(gated, docs) == kit.generate(llava, docs)


def test_loglikelihood_returns_losses_the_smallest_for_the_likeliest_choice(
    llava: GatedVLM, tmp_path: Path
) -> None:
    docs = kit.documents(tmp_path)
    llava.task_dict[kit.TASK] = {kit.SPLIT: docs}
    choices = [" yes", " no", "maybe"]
    requests = [
        kit.instance("loglikelihood", n, doc["question"], choice, kit.open_images)
        for n, doc in enumerate(docs)
        for choice in choices
    ]
    found = llava.loglikelihood(requests)
    expected = []
    for doc in docs:
        images = kit.open_images(doc)
        prompt = llava.vlm.prompt(doc["question"], len(images))
        expected += [llava.vlm.losses([prompt], [choice], [images])[0] for choice in choices]
    assert np.allclose([loss for loss, _ in found], [loss for loss, _ in expected], atol=1e-5)
    assert min(loss for loss, _ in found) > 0  # losses, which lmms-eval ranks by argmin


@pytest.mark.parametrize("name", ["paligemma", "instructblip"])
def test_multiple_choice_where_a_processor_adds_to_the_text(
    name: str, vlm_checkpoint: Folder, tmp_path: Path
) -> None:
    """The loss of what the model generates is the least, and each is that of the answer alone."""
    docs = [doc for doc in kit.documents(tmp_path) if len(kit.open_images(doc)) == 1]
    model = load(vlm_checkpoint(name), chat_template="plain", batch_size=8)
    model.task_dict[kit.TASK] = {kit.SPLIT: docs}
    requests, expected = [], []
    for n, doc in enumerate(docs):
        images, prompt = kit.open_images(doc), model.vlm.prompt(doc["question"], 1)
        [generated] = model.vlm.generate([prompt], [images], max_new_tokens=1, do_sample=False)
        for choice in (" yes", "no, not at all", generated or "~"):
            requests.append(kit.instance("loglikelihood", n, doc["question"], choice, kit.open_images))
            expected += model.vlm.losses([prompt], [choice], [images])
        assert expected[-1][1] == bool(generated)
    found = model.loglikelihood(requests)
    assert len(found) >= 6
    assert np.allclose([loss for loss, _ in found], [loss for loss, _ in expected], atol=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_loglikelihood_takes_a_target_function_and_a_request_without_document(
    llava: GatedVLM, tmp_path: Path
) -> None:
    docs = kit.documents(tmp_path, 1)
    llava.task_dict[kit.TASK] = {kit.SPLIT: docs}
    about_document = kit.instance(
        "loglikelihood", 0, docs[0]["question"], lambda doc: f" {doc['answer']}", kit.open_images
    )
    alone = Instance("loglikelihood", ("", "yes"), 0, {"task": kit.TASK, "doc_id": 0, "repeats": 1})
    (loss, _), (other, _) = llava.loglikelihood([about_document, alone])
    assert loss > 0 and other > 0 and loss != other


def test_multi_round_goes_on_until_the_task_ends_it(llava: GatedVLM, tmp_path: Path) -> None:
    docs = kit.documents(tmp_path, 2)
    llava.task_dict[kit.TASK] = {kit.SPLIT: docs}
    calls = []

    def next_round(doc: Any, previous_output: Any, round_idx: int, previous_round_info: Any) -> Any:
        calls.append((round_idx, list(previous_output), previous_round_info))
        if round_idx == 2:
            return None, None, True, [*previous_output, "the end"], None
        return [factories_vlm.random_image(9)], "and now?", False, previous_output, {"round": round_idx}

    requests = [
        kit.instance(
            "generate_until_multi_round", n, doc["question"], kit.SETTINGS, kit.open_images, next_round
        )
        for n, doc in enumerate(docs)
    ]
    first, second = llava.generate_until_multi_round(requests)
    assert [first[0], second[0]] == kit.generate(llava, docs)
    assert first[1] == kit.generate(llava, [{"question": "and now?", "visual": lambda _: [factories_vlm.random_image(9)]}])[0]  # fmt: skip
    assert first[2] == second[2] == "the end"
    assert calls[1] == (2, first[:2], {"round": 1})


def test_model_args_are_parsed_and_win_over_flags(vlm_checkpoint: Folder) -> None:
    text = f"pretrained={vlm_checkpoint('llava')},scores=none,batch_size=3,peft=None,dtype=float32,device=cpu"
    model = models.GatedLlava.create_from_arg_string(text, {"batch_size": "1", "max_batch_size": None})
    assert (model.batch_size, model.options.dtype, model.options.peft) == (3, "float32", None)
    same = models.GatedLlava.create_from_arg_string({"pretrained": vlm_checkpoint("llava"), "scores": "none"})
    assert same.batch_size == 1


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ("pretrained=x", GateError, "gated_vlm needs scores: scores=FILE.npz"),
        (
            "pretrained=x,scores=none,dtipe=4",
            ModelError,
            "unknown argument 'dtipe': gated_vlm takes pretrained, ",
        ),
        ("pretrained=x,scores=none,batch_size=0", ModelError, "batch_size=0 is neither a whole number"),
        (
            "pretrained=x,scores=none,engine=fast",
            GateError,
            "unknown engine 'fast': expected one of auto, off",
        ),
        ("pretrained=x,scores=/nowhere.npz", ScoresError, "/nowhere.npz"),
        ("pretrained=x,scores=random:1,norm=mean", GateError, "unknown norm 'mean'"),
        ("pretrained=x,scores", ModelError, "not NAME=VALUE"),
    ],
)
def test_bad_arguments_are_one_line(arguments: str, kind: type[TruthGateError], message: str) -> None:
    with pytest.raises(kind) as error:
        GatedVLM.create_from_arg_string(arguments, {"batch_size": 1})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_on_the_command_line_a_mistake_ends_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/lmms_eval"])
    with pytest.raises(SystemExit, match="error: gated_vlm needs scores"):
        GatedVLM("somewhere")
    monkeypatch.setenv("VERBOSITY", "DEBUG")
    with pytest.raises(GateError):
        GatedVLM("somewhere")


def test_applying_the_template_twice_is_refused(llava: GatedVLM) -> None:
    assert "ASSISTANT" in str(llava.chat_template)
    with pytest.raises(ModelError, match="leave --apply_chat_template out"):
        llava.apply_chat_template([])


def test_results_carry_the_gate(vlm_checkpoint: Folder, tmp_path: Path) -> None:
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    values = np.random.default_rng(0).uniform(0.5, 1.0, (3, 4))
    artifact = TruthScores(values, metadata={"model": "base", "site": "post"})
    file = artifact.save(tmp_path / "base.npz")
    tasks = kit.save_tasks(tmp_path / "tasks")
    arguments = f"pretrained={vlm_checkpoint('llava')},device=cpu,scores={file},lam=0.3"
    results = evaluator.simple_evaluate(
        model="gated_llava", model_args=arguments, tasks=list(kit.TASKS), batch_size=4, limit=4,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False), bootstrap_iters=0,
    )  # fmt: skip
    gate = results["gate"]
    assert (gate["lam"], gate["norm"], gate["sha256"]) == (0.3, "minmax", artifact.fingerprint)
    assert results["model_info"]["class"] == "LlavaForConditionalGeneration"
    assert results["results"]["tiny_pictures"]["letters,none"] > 0
    chosen = []
    for sample in results["samples"]["tiny_choice"]:
        losses = [loss for ((loss, _),) in sample["resps"]]
        chosen.append(float(np.argmin(losses) == sample["doc"]["answer"]))
    assert results["results"]["tiny_choice"]["acc,none"] == np.mean(chosen)
    assert len(results["samples"]["tiny_rounds"][0]["resps"][0][0]) == 2
