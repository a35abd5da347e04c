"""Our tasks in lmms-eval: found by name, loaded from prepared data, parsed and measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from truthgate_eval.data.store import PREPARE_COMMANDS, write_dataset
from truthgate_eval.errors import DataError, TaskError
from truthgate_eval.harness import command_line as harness_command_line
from truthgate_eval.harness.lmms_eval import tasks as lmms_eval_tasks
from truthgate_eval.harness.lmms_eval.tasks import on_load, score_answer
from truthgate_eval.inference.deduplication import answer_distinct, request_key
from truthgate_eval.metrics.pope import METRICS, SOURCES, SPLITS, parse_answer, pope_metrics
from truthgate_eval.paths import shipped

FOLDER = shipped("tasks") / "lmms_eval"
ANSWERS = ["Yes.", "yes, there is", "No", "not sure", "", "know"]
POPE = {f"pope_{source}_{split}" for source in SOURCES for split in SPLITS}
POLL = {f"poll_{split}" for split in SPLITS}
GROUPS = {"pope_coco", "pope_aokvqa", "pope_gqa", "pope_all", "poll"}
LOG_ODDS = {f"{name}_logodds" for name in POPE | POLL}
LOG_ODDS_GROUPS = {f"{name}_logodds" for name in GROUPS}
SCENES = {f"scenes{part}_logodds" for part in ("", *(f"_{split}" for split in SPLITS))}


@pytest.fixture(scope="module")
def manager() -> Any:
    from lmms_eval.tasks import TaskManager

    return TaskManager(include_path=str(FOLDER))


def questions(folder: Path, image: str, number: int = 6) -> list[dict[str, Any]]:
    path = folder / image
    Image.new("RGB", (6, 4)).save(path)
    return [
        {
            "question_id": n + 1, "image": image, "question": f"Is there a thing {n // 2} in the image?",
            "answer": "no" if n % 2 else "yes", "image_path": str(path),
        }
        for n in range(number)
    ]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every POPE and poll file, with six questions."""
    rows = questions(tmp_path, "one.png")
    pope = {name.removeprefix("pope_"): rows for name in POPE}
    write_dataset(tmp_path / "data" / "pope", pope, source={})
    write_dataset(tmp_path / "data" / "poll", dict.fromkeys(SPLITS, rows), source={})
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def load(manager: Any, *names: str) -> dict[str, Any]:
    """Leaf tasks by name."""
    from lmms_eval.tasks import get_task_dict

    def leaves(found: dict[Any, Any]) -> dict[str, Any]:
        result = {}
        for name, task in found.items():
            result.update(leaves(task) if isinstance(task, dict) else {name: task})
        return result

    return leaves(get_task_dict(list(names), manager))


def test_all_files_are_indexed_and_do_not_replace_lmms_evals_pope(manager: Any) -> None:
    assert POPE | POLL | LOG_ODDS <= set(manager.all_subtasks)
    assert GROUPS | LOG_ODDS_GROUPS <= set(manager.all_groups)
    assert SCENES <= {*manager.all_subtasks, *manager.all_groups}
    for name in ("pope", "pope_adv", "pope_pop", "pope_random", "pope_full"):
        assert str(FOLDER) not in manager.task_index[name]["yaml_path"]
    expected = {f"{name}.yaml" for name in POPE | POLL | GROUPS | LOG_ODDS | LOG_ODDS_GROUPS | SCENES}
    assert expected <= {path.name for path in FOLDER.glob("*.yaml")}


def test_every_task_loads_from_the_data_folder(manager: Any, data: Path) -> None:
    tasks = load(manager, "pope_all", "poll")
    assert set(tasks) == POPE | POLL
    for task in tasks.values():
        doc = task.test_docs()[0]
        assert task.doc_to_text(doc) == (
            "Is there a thing 0 in the image?\nAnswer the question using a single word or phrase."
        )
        assert task.doc_to_visual(doc)[0].size == (6, 4)
        assert task.doc_to_target(doc) == "yes"
        assert task.config.metadata == {"version": 1.0, "parser": "official"}


def test_every_log_odds_task_has_the_data_and_the_prompt_of_its_generating_task(
    manager: Any, data: Path
) -> None:
    reading, generating = load(manager, "pope_all_logodds", "poll_logodds"), load(manager, "pope_all", "poll")
    assert set(reading) == LOG_ODDS
    for name, task in generating.items():
        other = reading[f"{name}_logodds"]
        assert other.config.dataset_kwargs["data_files"] == task.config.dataset_kwargs["data_files"]
        doc = task.test_docs()[1]
        assert other.doc_to_text(doc) == task.doc_to_text(doc)
        assert other.doc_to_visual(doc)[0].size == task.doc_to_visual(doc)[0].size
        assert other.doc_to_target(doc) == task.doc_to_target(doc) == "no"
        assert other.OUTPUT_TYPE == "multiple_choice" and other.config.generation_kwargs is None
        assert other.config.metadata["losses"] == "sum" and task.OUTPUT_TYPE == "generate_until"
        choices, half = other.doc_to_choice(doc), len(other.doc_to_choice(doc)) // 2
        assert [c.strip().lower() for c in choices] == ["yes"] * half + ["no"] * half
        assert other.config.target_delimiter == ""


def test_a_model_whose_answers_are_texts_is_told_what_is_needed() -> None:
    doc = {"question_id": 3, "image": "a.jpg", "answer": "no"}
    with pytest.raises(TaskError, match="need a gated model: --model gated_vlm --model_args scores=none"):
        lmms_eval_tasks.score_log_odds(doc, ["(0.5, True)"] * 8)


def test_a_data_set_that_is_prepared_again_is_loaded_again(manager: Any, data: Path) -> None:
    assert len(load(manager, "poll_random")["poll_random"].test_docs()) == 6
    rows = questions(data.parent, "two.png", number=4)
    write_dataset(data / "poll", dict.fromkeys(SPLITS, rows), source={})
    docs = load(manager, "poll_random")["poll_random"].test_docs()
    assert [doc["image"] for doc in docs] == ["two.png"] * 4


def test_without_data_only_the_tasks_that_need_it_fail_with_the_command_to_run(
    manager: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    assert "pope_gqa_random" in manager.all_tasks
    with pytest.raises(DataError, match=r"pope/gqa_random is not prepared.*truthgate data pope"):
        load(manager, "pope_gqa_random")
    with pytest.raises(DataError, match=r"truthgate data poll --images DIR --annotations FILE"):
        load(manager, "poll")


def test_the_parser_comes_from_the_environment(
    manager: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lmms_eval_tasks.PARSER_VARIABLE, "strict")
    task = load(manager, "poll_random")["poll_random"]
    assert task.config.metadata["parser"] == "strict"
    scores = task.process_results(task.test_docs()[0], ["Yes."])
    assert scores["acc"]["parsed"] is None
    monkeypatch.setenv(lmms_eval_tasks.PARSER_VARIABLE, "lenient")
    with pytest.raises(TaskError, match=r"TRUTHGATE_POPE_PARSER: unknown POPE parser 'lenient'"):
        load(manager, "poll_random")


def test_a_score_has_the_parsed_answer_and_the_gold_answer() -> None:
    doc = {"question_id": 3, "image": "a.jpg", "answer": "no"}
    entries = score_answer(doc, ["not sure"])
    assert set(entries) == set(METRICS)
    expected = {"score": 1.0, "parsed": "no", "gold": "no", "image": "a.jpg", "question_id": 3}
    assert entries["acc"] == expected
    assert entries["unparsed"] == 1.0


class Recorder:
    """Builds a model that gives six fixed answers, and records how many distinct requests it gets."""

    def __init__(self) -> None:
        from lmms_eval.api.model import lmms

        self.calls: list[int] = []
        outer = self

        class Model(lmms):
            is_simple = True

            def generate_until(self, requests: list[Any]) -> list[str]:
                return answer_distinct(requests, self.key, outer.answer)

            def key(self, request: Any) -> Any:
                prompt, generation, _, doc_id, task, split = request.args
                return request_key([self.task_dict[task][split][doc_id]["image_path"]], prompt, generation)

            def loglikelihood(self, requests: list[Any]) -> list[Any]:
                raise NotImplementedError

            def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
                raise NotImplementedError

        self.model = Model()

    def answer(self, requests: list[Any]) -> list[str]:
        self.calls.append(len(requests))
        return [ANSWERS[request.args[3]] for request in requests]


@pytest.mark.slow
def test_metrics_equal_those_computed_directly_and_no_request_is_sent_twice(manager: Any, data: Path) -> None:
    from lmms_eval.evaluator import simple_evaluate

    recorder = Recorder()
    # Distinct questions, so that the answer to a question is the same in every split.
    rows = [
        {**row, "question": f"Is there a thing {n}?"} for n, row in enumerate(questions(data.parent, "a.png"))
    ]
    pope = {name.removeprefix("pope_"): rows for name in POPE}
    write_dataset(data / "pope", {**pope, "coco_random": rows[:3]}, source={})
    results = simple_evaluate(
        model=recorder.model, tasks=["pope_coco"], task_manager=manager, bootstrap_iters=0
    )
    assert recorder.calls == [6]  # 15 requests in one call
    answers_and_golds = list(zip(ANSWERS, [row["answer"] for row in rows], strict=True))
    split = pope_metrics(parse_answer(*pair) for pair in answers_and_golds)
    short = pope_metrics(parse_answer(*pair) for pair in answers_and_golds[:3])
    for metric in METRICS:
        found = {
            name: results["results"][name][f"{metric},none"] for name in ("pope_coco", *sorted(POPE)[3:6])
        }
        assert found["pope_coco_random"] == pytest.approx(short[metric])
        assert found["pope_coco_popular"] == pytest.approx(split[metric])
        assert found["pope_coco"] == pytest.approx((short[metric] + 2 * split[metric]) / 3)
    sample = results["samples"]["pope_coco_popular"][3]
    assert sample["filtered_resps"] == ["not sure"]
    assert sample["acc"]["parsed"] == "no"


@pytest.mark.slow
def test_a_group_of_groups_is_the_mean_over_the_nine_splits(manager: Any, data: Path) -> None:
    from lmms_eval.evaluator import simple_evaluate

    results = simple_evaluate(
        model=Recorder().model, tasks=["pope_all"], task_manager=manager, bootstrap_iters=0
    )
    split = results["results"]["pope_gqa_popular"]
    for metric in METRICS:
        assert results["results"]["pope_all"][f"{metric},none"] == pytest.approx(split[f"{metric},none"])
    assert set(results["groups"]) == {"pope_all", "pope_coco", "pope_aokvqa", "pope_gqa"}


def command_line(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lmms_eval", "--model", "dummy", "--include_path", str(FOLDER), *arguments],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_line_fails_with_one_line_that_has_the_command_to_run(tmp_path: Path) -> None:
    done = command_line("--tasks", "pope_coco_random", TRUTHGATE_DATA=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the data set pope/coco_random is not prepared")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_command_line_writes_results_and_parsed_answers(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = command_line("--tasks", "poll", "--output_path", str(output), "--log_samples")
    written = sorted(path.name.split("_", 2)[-1] for path in output.rglob("*") if path.is_file())
    assert written == ["results.json", *(f"samples_{name}.jsonl" for name in sorted(POLL))], done.stderr
    results = json.loads(next(output.rglob("*_results.json")).read_text())
    assert results["configs"]["poll_random"]["metadata"]["parser"] == "official"
    line = next(output.rglob("*samples_poll_random.jsonl")).read_text().splitlines()[0]
    assert set(json.loads(line)["acc"]) == {"score", "parsed", "gold", "image", "question_id"}


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("/env/bin/lmms_eval", True),
        ("/env/bin/lmms-eval", True),
        ("/env/lmms_eval/__main__.py", True),
        ("/env/bin/pytest", False),
        ("/code/lmms_eval/script.py", False),
        ("", False),
    ],
)
def test_only_lmms_evals_own_program_is_ended(
    program: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    assert harness_command_line.is_command_line() is expected
    with pytest.raises(SystemExit if expected else DataError, match="nothing there"):
        harness_command_line.exit_with_error(DataError("nothing there"))


def test_task_files_can_name_every_prepared_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    for folder in PREPARE_COMMANDS:
        write_dataset(tmp_path / folder, {"some_file": [{"x": 1}]}, source={})
        path = str(tmp_path / folder / "some_file.parquet")
        assert on_load(f"data_{folder}_some_file")["data_files"] == {"test": path}
    with pytest.raises(AttributeError):
        on_load("data_unknown_some_file")
