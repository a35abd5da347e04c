"""Reading runs back: both harnesses' formats, and files that are damaged or missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import result_files, tiny_vision_models

from truthgate_eval.analysis.runs.results_files import RunError
from truthgate_eval.analysis.runs.run import read_run
from truthgate_eval.data.store import write_dataset
from truthgate_eval.errors import DataError
from truthgate_eval.metrics import yes_no

PARSED = ["yes", "yes", None, "no", "no", "no"]


def test_a_run_of_lm_eval_is_read_back(tmp_path: Path) -> None:
    folder = result_files.lm_eval_run(tmp_path / "run", {"halueval_qa": PARSED}, gate=result_files.LLM)
    run = read_run(folder)
    assert (run.harness, run.model, run.gate) == ("lm-eval", "lmsys/vicuna-7b-v1.5", result_files.LLM)
    assert run.environment["torch version"] == "2.15.0+cu132" and run.environment["dtype"] == "torch.float32"
    samples = list(run.tasks["halueval_qa"].samples.values())
    assert [sample.parsed for sample in samples] == PARSED
    assert [sample.correct for sample in samples] == [True, False, False, True, False, True]
    assert [sample.unparsed for sample in samples] == [False, False, True, False, False, False]
    assert [sample.gold for sample in samples] == result_files.golds(6)
    assert {sample.cluster_kind for sample in samples} == {"question"}
    assert (samples[3].question, samples[3].answer) == ("halueval_qa: how much is 3?", " No")
    assert read_run(result_files.only_file(folder, "results_*.json")).tasks == run.tasks


def test_a_run_of_lmms_eval_is_read_back(tmp_path: Path) -> None:
    folder = result_files.lmms_eval_run(tmp_path / "run", {"poll_random": PARSED}, per_image=4)
    run = read_run(folder)
    assert (run.harness, run.model) == ("lmms-eval", "llava-hf/llava-1.5-7b-hf")
    assert run.environment["dtype"] == "torch.float16" and run.environment["lmms-eval version"] == "0.7.3"
    samples = list(run.tasks["poll_random"].samples.values())
    # The official parser reads an answer without yes or no as yes; the sample is marked as unparsed.
    assert [sample.parsed for sample in samples] == ["yes", "yes", "yes", "no", "no", "no"]
    assert [sample.unparsed for sample in samples] == [False, False, True, False, False, False]
    assert [sample.cluster for sample in samples] == ["000.jpg"] * 4 + ["001.jpg"] * 2
    assert {sample.cluster_kind for sample in samples} == {"image"}
    assert samples[0].question == "Is there a thing 0 in the image?"
    assert samples[0].image == "/pictures/000.jpg"


def test_lmms_evals_own_pope_is_understood(tmp_path: Path) -> None:
    folder = result_files.lmms_eval_run(tmp_path / "run", {"pope": PARSED})
    file = result_files.only_file(folder, "*_samples_pope.jsonl")
    lines = []
    for line in file.read_text().splitlines():
        sample = json.loads(line)
        acc, answer = sample.pop("acc"), sample["filtered_resps"]
        for name in ("f1", "unparsed"):
            sample.pop(name)
        verdict = {"question_id": 1, "score": float(answer == acc["gold"]), "prediction": answer}
        sample["pope_accuracy"] = {**verdict, "ground_truth": acc["gold"]}
        lines.append(json.dumps(sample))
    file.write_text("\n".join(lines) + "\n")
    samples = list(read_run(folder).tasks["pope"].samples.values())
    assert [sample.parsed for sample in samples] == PARSED
    assert [sample.unparsed for sample in samples] == [said is None for said in PARSED]
    assert {sample.cluster_kind for sample in samples} == {"document"}


def test_the_newest_run_in_a_folder_is_read_with_a_note(tmp_path: Path) -> None:
    result_files.lm_eval_run(tmp_path, {"halueval_qa": PARSED})
    newer = "2026-01-03T00-00-00.000001"
    result_files.lm_eval_run(tmp_path, {"halueval_qa": PARSED[:4]}, stamp=newer)
    run = read_run(tmp_path)
    assert len(run.tasks["halueval_qa"].samples) == 4
    assert run.notes == (f"{tmp_path} has 2 runs: only the newest, results_{newer}.json, is read",)


def test_each_filter_of_a_task_is_a_task_run(tmp_path: Path) -> None:
    folder = result_files.lm_eval_run(tmp_path, {"sums": {"strict": PARSED, "loose": PARSED}})
    tasks = read_run(folder).tasks
    assert {name: len(task.samples) for name, task in tasks.items()} == {"sums,strict": 6, "sums,loose": 6}
    assert [(task.task, task.filter) for task in tasks.values()] == [("sums", "strict"), ("sums", "loose")]
    assert read_run(folder).task_run_names("sums") == ("sums,strict", "sums,loose")


def test_a_truncated_sample_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = result_files.only_file(result_files.lm_eval_run(tmp_path, {"halueval_qa": PARSED}), "samples_*")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]) + lines[4][:50])
    with pytest.raises(DataError, match=r"samples_halueval_qa_.*\.jsonl, line 5 is cut off or not JSON"):
        read_run(tmp_path)


@pytest.mark.parametrize("make", [result_files.lm_eval_run, result_files.lmms_eval_run])
def test_a_sample_file_cut_between_lines_is_noticed(tmp_path: Path, make: Callable[..., Path]) -> None:
    make(tmp_path, {"poll_random": PARSED})
    file = result_files.only_file(tmp_path, "*samples_*")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]))
    with pytest.raises(DataError, match="ends at line 4 with 4 documents, but the results file counts 6"):
        read_run(tmp_path)
    file.write_text("")
    with pytest.raises(DataError, match="is empty, but the results file counts 6 documents"):
        read_run(tmp_path)


def test_two_runs_in_one_sample_file_are_noticed(tmp_path: Path) -> None:
    file = result_files.only_file(result_files.lmms_eval_run(tmp_path, {"poll_random": PARSED}), "*samples_*")
    file.write_text(file.read_text() * 2)
    with pytest.raises(DataError, match=r"line 7: document 0 occurs a second time \(first in line 1\)"):
        read_run(tmp_path)


def test_without_samples_the_flag_is_named(tmp_path: Path) -> None:
    result_files.only_file(result_files.lm_eval_run(tmp_path, {"halueval_qa": PARSED}), "samples_*").unlink()
    with pytest.raises(RunError, match="run again with --log_samples"):
        read_run(tmp_path)


def test_no_run_no_results_and_damaged_results(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run at"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match="there is no results file below"):
        read_run(tmp_path)
    file = tmp_path / "results_1.json"
    for text in ("{", "[]", '{"results": {}}'):
        file.write_text(text)
        with pytest.raises(DataError, match="is not a results file"):
            read_run(tmp_path)


def test_a_task_without_verdicts_is_left_out_with_a_note(tmp_path: Path) -> None:
    folder = result_files.lm_eval_run(tmp_path, {"halueval_qa": PARSED, "essays": PARSED})
    file = result_files.only_file(folder, "samples_essays_*")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**line, "acc": 0.37}) + "\n" for line in lines))
    run = read_run(folder)
    assert (
        list(run.tasks) == ["halueval_qa"]
        and "essays does not mark each document right or wrong" in run.notes[0]
    )


@pytest.mark.parametrize("error", [OSError(), ValueError(), OSError("a disk\nand more")])
def test_an_unreadable_results_file_is_one_line_even_if_the_error_has_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    file = result_files.only_file(result_files.lm_eval_run(tmp_path, {"sums": PARSED}), "results_*")

    def fail(path: Path, flags: int) -> int:
        raise error

    monkeypatch.setattr(os, "open", fail)
    reason = "a disk" if str(error) else type(error).__name__
    with pytest.raises(DataError) as caught:
        read_run(file)
    assert str(caught.value) == f"{file} is not a results file ({reason}); run again"


@pytest.mark.slow
def test_what_lm_eval_writes_today_is_read_with_its_own_figures(
    tmp_path: Path, checkpoint: str, halueval_folder: str
) -> None:
    command = [
        sys.executable, "-m", "lm_eval", "--model", "gated_hf", "--model_args",
        f"pretrained={checkpoint},scores=random:1", "--tasks", "halueval_qa,halueval_qa_select", "--limit", "12",
        "--metadata", json.dumps({"halueval_path": halueval_folder}), "--device", "cpu", "--log_samples",
        "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = read_run(tmp_path / "out")
    results = json.loads(run.file.read_text())["results"]
    for name, task in run.tasks.items():
        right = [sample.correct for sample in task.samples.values()]
        assert len(right) == 12 and sum(right) / 12 == pytest.approx(results[name]["acc,none"])
    assert run.gate is not None and run.gate["scores"] == "random:1"
    assert all(
        run.environment[name]
        for name in ("dtype", "lm-eval version", "transformers version", "torch version")
    )


@pytest.mark.slow
def test_what_lmms_eval_writes_today_is_read_with_its_own_figures(
    tmp_path: Path, vlm_checkpoint: Callable[[str], str]
) -> None:
    image = tmp_path / "one.png"
    tiny_vision_models.random_image(0).save(image)
    rows = [
        {"question_id": n, "image": "one.png", "question": f"Is there a thing {n}?", "answer": ("no", "yes")[n % 2],
         "image_path": str(image)}
        for n in range(6)
    ]  # fmt: skip
    write_dataset(
        tmp_path / "data" / "poll", dict.fromkeys(("random", "popular", "adversarial"), rows), source={}
    )
    command = [
        sys.executable, "-m", "lmms_eval", "--model", "gated_llava", "--model_args",
        f"pretrained={vlm_checkpoint('llava')},scores=random:1,device=cpu", "--tasks", "poll", "--batch_size", "2",
        "--log_samples", "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    environment = {"OMP_NUM_THREADS": "1", "TRUTHGATE_DATA": str(tmp_path / "data")}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    run = read_run(tmp_path / "out")
    assert done.returncode == 0 and run.harness == "lmms-eval" and len(run.groups["poll"]) == 3, done.stderr[
        -2000:
    ]
    results = json.loads(run.file.read_text())["results"]
    for name, task in run.tasks.items():
        samples = list(task.samples.values())
        assert [sample.question for sample in samples] == [row["question"] for row in rows]
        assert {(sample.cluster_kind, sample.cluster, sample.image) for sample in samples} == {
            ("image", "one.png", str(image))
        }
        pairs = [(sample.gold, sample.parsed) for sample in samples]
        assert yes_no.f1(pairs) == pytest.approx(results[name]["f1,none"])
        assert sum(sample.correct for sample in samples) / 6 == pytest.approx(results[name]["acc,none"])
        assert sum(sample.unparsed for sample in samples) / 6 == pytest.approx(results[name]["unparsed,none"])
    assert run.gate is not None and run.gate["scores"] == "random:1"


def test_lmms_evals_documents_are_the_same_after_a_system_instruction(tmp_path: Path) -> None:
    """lmms-eval's own models have the instruction in front of the question, before the task's description."""
    plain = result_files.lmms_eval_run(tmp_path / "plain", {"poll_random": PARSED})
    for description, between in ((None, ""), ("Look at the image. ", "\n\n")):
        folder = result_files.lmms_eval_run(tmp_path / f"instructed{len(between)}", {"poll_random": PARSED})
        before = result_files.lmms_eval_run(tmp_path / f"plain{len(between)}", {"poll_random": PARSED})
        for run, text in ((before, ""), (folder, f"Be brief.{between}")):
            file = result_files.only_file(run, "*_samples_*")
            prefix = f"{text}{description or ''}"
            lines = result_files.read_lines(file)
            result_files.write_lines(file, [{**line, "input": prefix + line["input"]} for line in lines])
            file = result_files.only_file(run, "*_results.json")
            results = json.loads(file.read_text())
            results["configs"]["poll_random"]["description"] = description
            results["system_instruction"] = "Be brief." if text else None
            file.write_text(json.dumps(results))
        ours, theirs = (read_run(run).tasks["poll_random"].samples for run in (before, folder))
        assert list(ours) == list(theirs)
        if description is None:
            assert list(ours) == list(read_run(plain).tasks["poll_random"].samples)
        assert all(ours[key].prompt != theirs[key].prompt for key in ours)
