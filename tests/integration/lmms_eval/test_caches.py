"""lmms-eval's caches: of answers, `--use_cache`; of prompts, `--cache_requests`; and of data sets.

A run with a cache must equal the same run without it, whatever ran before it on that cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from helpers import lmms_eval_runs as kit
from helpers import tiny_vision_models as factories_vlm
from PIL import Image

from truthgate_eval.data.store import write_dataset
from truthgate_eval.errors import TaskError
from truthgate_eval.gating.gate import random_gate
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lmms_eval import response_cache
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.harness.lmms_eval.tasks import on_load
from truthgate_eval.paths import shipped

NUMBER = 4
Run = Callable[..., tuple[dict[str, Any], int]]


def save_scores(path: Path, seed: int) -> str:
    values = np.random.default_rng(seed).uniform(size=(3, 4))
    return str(TruthScores(values, metadata={"model": "base", "site": "post"}).save(path))


@pytest.fixture
def scores(tmp_path: Path) -> str:
    return save_scores(tmp_path / "scores.npz", 0)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "datasets"))
    return kit.save_tasks(tmp_path / "tasks", NUMBER)


@pytest.fixture
def run(
    tasks: Path, tmp_path: Path, vlm_checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Answers of a run by task, and how many requests the model answered itself."""
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    asked: list[int] = []
    for name in ("loglikelihood", "generate_until", "generate_until_multi_round"):
        original = getattr(GatedVLM, name)

        def count(lm: Any, requests: Any, original: Any = original) -> Any:
            asked.append(len(requests))
            return original(lm, requests)

        monkeypatch.setattr(GatedVLM, name, count)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)

    def run(
        *names: str, lm: Any = None, cached: bool = True, options: Any = None, **model_args: Any
    ) -> tuple[dict[str, Any], int]:
        asked.clear()
        given = {"pretrained": vlm_checkpoint("llava"), "device": "cpu", "engine": "off", **model_args}
        results = evaluator.simple_evaluate(
            model=lm or "gated_llava", model_args="" if lm else ",".join(f"{k}={v}" for k, v in given.items()),
            tasks=list(names or kit.TASKS), task_manager=manager, bootstrap_iters=0,
            use_cache=str(tmp_path / "answers") if cached else None, **(options or {}),
        )  # fmt: skip
        samples = {
            task: [(sample["doc_id"], sample["resps"]) for sample in found]
            for task, found in results["samples"].items()
        }
        return json.loads(json.dumps(samples)), sum(asked)

    return run


@pytest.mark.slow
def test_two_gates_in_one_folder_give_their_own_answers(run: Run, scores: str) -> None:
    settings: list[dict[str, Any]] = [{"scores": "none"}, {"scores": scores, "lam": 3}]
    expected = [run(cached=False, **gate)[0] for gate in settings]
    assert all(expected[0][task] != expected[1][task] for task in kit.TASKS)
    for _ in range(2):
        assert [run(**gate)[0] for gate in settings] == expected
    # Answers in rounds are not cached, nor are empty answers (by lmms-eval itself).
    assert run("tiny_choice", scores="none") == ({"tiny_choice": expected[0]["tiny_choice"]}, 0)
    assert run("tiny_rounds", scores="none")[1] == NUMBER


def interrupt(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> None:
    """Run until the second part of the requests, which are three a part from then on."""
    monkeypatch.setattr(response_cache, "_PART", 3)
    original, calls = GatedVLM.loglikelihood, list[int]()

    def second_fails(lm: Any, requests: Any) -> Any:
        calls.append(len(requests))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(lm, requests)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GatedVLM, "loglikelihood", second_fails)
        run()


@pytest.mark.slow
def test_a_run_that_is_interrupted_goes_on_after_its_last_part(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, total = run("tiny_choice", cached=False, scores="none")
    interrupt(monkeypatch, lambda: run("tiny_choice", scores="none"))
    other, _ = run("tiny_choice", cached=False, scores="random:1", lam=3)
    assert run("tiny_choice", scores="random:1", lam=3) == (other, total)  # another gate finds nothing
    assert run("tiny_choice", scores="none") == (expected, total - 3)
    assert run("tiny_choice", scores="none") == (expected, 0)


@pytest.mark.slow
def test_a_damaged_file_of_an_interrupted_run_is_passed_over(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, total = run("tiny_choice", cached=False, scores="none")
    interrupt(monkeypatch, lambda: run("tiny_choice", scores="none"))
    [file] = (tmp_path / "answers").glob("runs/*/rank_0.db")
    file.write_bytes(b"no database" * 500)
    assert run("tiny_choice", scores="none") == (expected, total)
    assert "its answers are computed again" in caplog.text


def test_scores_that_changed_under_one_path(run: Run, scores: str) -> None:
    gate = {"scores": scores, "lam": 3}
    first, _ = run("tiny_choice", **gate)
    save_scores(Path(scores), 7)
    expected, _ = run("tiny_choice", cached=False, **gate)
    assert run("tiny_choice", **gate)[0] == expected != first
    save_scores(Path(scores), 0)
    assert run("tiny_choice", **gate) == (first, 0)


@pytest.mark.slow
def test_images_that_changed_under_one_path(run: Run, tasks: Path) -> None:
    first, _ = run(scores="none")
    for path in tasks.glob("*.png"):
        state = path.stat()
        image = Image.open(path)
        Image.new("RGB", image.size, "red").save(path)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    expected, _ = run(cached=False, scores="none")
    found, _ = run(scores="none")
    assert found == expected
    for task in kit.TASKS:
        changed = {n for (n, old), (_, new) in zip(first[task], found[task], strict=True) if old != new}
        assert changed and 1 not in changed  # document 1 has no image
    assert run("tiny_choice", scores="none")[1] == 0


@pytest.mark.slow
def test_weights_that_changed_under_one_path(
    run: Run, tmp_path: Path, vlm_checkpoint: Callable[[str], str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(vlm_checkpoint("llava"), folder)
    settings = {"pretrained": str(folder), "scores": "none"}
    first, _ = run("tiny_choice", **settings)
    model = hf.LlavaForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight.add_(0.5)
    model.save_pretrained(folder)
    expected, _ = run("tiny_choice", cached=False, **settings)
    assert run("tiny_choice", **settings)[0] == expected != first


def test_the_gate_of_a_loaded_model_that_is_replaced_and_removed(
    run: Run, scores: str, vlm_checkpoint: Callable[[str], str]
) -> None:
    lm = GatedVLM(vlm_checkpoint("llava"), scores=scores, lam=3, device="cpu", engine="off")
    gated, _ = run("tiny_choice", lm=lm)
    lm.gate_handle.set(random_gate((3, 4), seed=1))
    other, _ = run("tiny_choice", lm=lm)
    lm.gate_handle.remove()
    plain, _ = run("tiny_choice", lm=lm)
    assert plain == run("tiny_choice", cached=False, scores="none")[0]
    assert len({str(answers) for answers in (gated, other, plain)}) == 3


def test_every_setting_that_decides_an_answer_is_in_the_fingerprint(
    vlm_checkpoint: Callable[[str], str], scores: str
) -> None:
    settings: list[dict[str, Any]] = [
        {}, {"lam": 2}, {"norm": "centered"}, {"site": "pre"}, {"layers": "0-1"}, {"mode": "folded"},
        {"scores": "random:1"}, {"scores": "random:2"}, {"scores": "none"}, {"engine": "off"},
        {"dtype": "bfloat16"}, {"chat_template": "plain"},
    ]  # fmt: skip

    def fingerprint(**arguments: Any) -> str:
        given = {"scores": scores, "lam": 1, "device": "cpu", **arguments}
        return GatedVLM(vlm_checkpoint("llava"), **given).fingerprint()

    found = [fingerprint(**own) for own in settings]
    assert len(set(found)) == len(settings)
    assert fingerprint(batch_size=4) == found[0]


@pytest.mark.slow
def test_two_generation_settings_give_their_own_answers(run: Run) -> None:
    """`min_new_tokens` is in no key of lmms-eval's own, but in the task's settings."""
    for value in (2, 5):
        options = {"gen_kwargs": f"min_new_tokens={value},max_new_tokens=5"}
        expected, _ = run(kit.TASK, cached=False, scores="none", options=options)
        assert run(kit.TASK, scores="none", options=options)[0] == expected


@pytest.mark.parametrize("rewrite", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_cached_prompts_keep_their_images_and_documents(
    run: Run, tasks: Path, tmp_path: Path, rewrite: bool, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("lmms_eval.caching.cache.PATH", str(tmp_path / "prompts"))
    options = {"cache_requests": True, "rewrite_requests_cache": rewrite}
    expected, _ = run(cached=False, scores="none")
    for _ in range(2):
        assert run(cached=False, scores="none", options=options)[0] == expected
    assert "all requests are built anew" in caplog.text
    run(cached=False, scores="none", options={"delete_requests_cache": True})


def test_a_request_that_has_lost_its_images_is_refused(vlm_checkpoint: Callable[[str], str]) -> None:
    lm = GatedVLM(vlm_checkpoint("llava"), scores="none", device="cpu")
    lm.task_dict[kit.TASK] = {kit.SPLIT: [{"question": "Is it?"}]}
    with pytest.raises(TaskError, match=r"task 'tiny_pictures', document 0: the request has lost its images"):
        lm.generate_until([kit.instance("generate_until", 0, "Is it?", {}, None)])
    with pytest.raises(TaskError, match="has lost its images"):
        lm.loglikelihood([kit.instance("loglikelihood", 0, "Is it?", "yes", None)])


def test_lmms_eval_itself_still_loses_images_in_its_cache(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this fails, lmms-eval keeps the images of cached prompts; see `patches.install_evaluate_patch`."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    monkeypatch.setattr("lmms_eval.caching.cache.PATH", str(tmp_path / "prompts"))
    (tmp_path / "prompts").mkdir()
    for expected in (False, True):
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        task = get_task_dict([kit.TASK], manager)[kit.TASK]
        task.build_all_requests(cache_requests=True)
        assert (task.instances[0].args[2] is None) is expected


def test_a_data_set_that_changed_with_its_date_kept_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """datasets takes a file that it has read by path and date, so a copy that keeps dates would be stale."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "datasets"))
    manager = TaskManager(include_path=str(shipped("tasks") / "lmms_eval"), include_defaults=False)
    factories_vlm.random_image().save(tmp_path / "a.png")
    fingerprints = []
    for question in ("Is there a dog?", "Is there a cat?"):
        row = {
            "question_id": 1, "image": "a.png", "question": question, "answer": "no",
            "image_path": str(tmp_path / "a.png"),
        }  # fmt: skip
        write_dataset(tmp_path / "data" / "pope", {"coco_random": [row]}, source={})
        os.utime(tmp_path / "data" / "pope" / "coco_random.parquet", (1, 1))
        task = get_task_dict(["pope_coco_random"], manager)["pope_coco_random"]
        assert [doc["question"] for doc in task.test_docs()] == [question]
        fingerprints.append(json.dumps(task.dump_config()["dataset_kwargs"]))
    # lmms-eval's response cache sees the task's settings, for models that are not ours.
    assert fingerprints[0] != fingerprints[1]
    factories_vlm.random_image(1, (50, 50)).save(tmp_path / "a.png")
    assert json.dumps(on_load("data_pope_coco_random")) not in fingerprints
    (tmp_path / "a.png").unlink()
    assert on_load("data_pope_coco_random")["data_files"]


@pytest.mark.slow
def test_the_command_line_with_both_caches_gives_the_answers_without_them(
    tasks: Path, tmp_path: Path, scores: str, vlm_checkpoint: Callable[[str], str]
) -> None:
    def run(name: str, seed: int, *caches: str) -> list[Any]:
        save_scores(Path(scores), seed)
        done = subprocess.run(
            [sys.executable, "-m", "lmms_eval", "--model", "gated_llava", "--model_args",
             f"pretrained={vlm_checkpoint('llava')},scores={scores},lam=3,device=cpu", "--tasks", "tiny_choice",
             "--include_path", str(tasks), "--output_path", name, "--log_samples", *caches],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1", "LM_HARNESS_CACHE_PATH": str(tmp_path / "prompts")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        [file] = (tmp_path / name).glob("*/*_samples_tiny_choice.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return [(row["doc_id"], row["filtered_resps"]) for row in rows]

    caches = ("--use_cache", "answers", "--cache_requests", "true")
    first = run("first", 0, *caches)
    found = run("cached", 7, *caches)
    assert found == run("plain", 7) != first


KILLED = """
import os, runpy, signal, sys
from truthgate_eval.harness.lmms_eval import response_cache
from truthgate_eval.harness.lmms_eval.model import GatedVLM

response_cache._PART, original, calls = 3, GatedVLM.loglikelihood, []

def second_kills(lm, requests):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(lm, requests)

GatedVLM.loglikelihood = second_kills
runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_the_same_command_line_goes_on_after_a_kill(
    run: Run, tasks: Path, tmp_path: Path, vlm_checkpoint: Callable[[str], str]
) -> None:
    expected, total = run("tiny_choice", cached=False, scores="none")
    status, logs = [], ""
    for start in (["-c", KILLED], ["-m", "lmms_eval"]):
        done = subprocess.run(
            [sys.executable, *start, "--model", "gated_llava", "--model_args",
             f"pretrained={vlm_checkpoint('llava')},scores=none,device=cpu,engine=off", "--tasks", "tiny_choice",
             "--include_path", str(tasks), "--output_path", "out", "--log_samples", "--use_cache", "answers"],
            cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        status.append(done.returncode)
        logs = done.stdout + done.stderr
    assert status == [-9, 0], logs[-2000:]
    assert f"3/{total} cache hits" in logs
    [file] = (tmp_path / "out").glob("*/*_samples_tiny_choice.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == len(expected["tiny_choice"])
