"""Every task file of ours for lmms-eval is loaded and asks its first question.

scripts/version_matrix.py runs this in each version; for lm-eval it runs `tests/integration/lm_eval/test_tasks.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.images import save_image

from truthgate_eval.data.chair import prepare_chair, prepare_chair_poll
from truthgate_eval.data.store import write_dataset
from truthgate_eval.metrics.pope import SOURCES, SPLITS
from truthgate_eval.packaged.scenes_dataset import prepare_scenes
from truthgate_eval.paths import shipped

FOLDER = shipped("tasks") / "lmms_eval"
NAMES = {file.stem for file in FOLDER.glob("*.yaml") if not file.stem.startswith("_truthgate_")}
GROUPS = {"pope_all", "pope_coco", "pope_aokvqa", "pope_gqa", "poll", "scenes"}
GROUPS |= {f"{name}_logodds" for name in GROUPS}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every data set that a task reads, in small; easy-VQA's is in its package."""
    out, image = tmp_path / "data", tmp_path / "images" / "a.png"
    save_image(image)
    yes_no = {
        "row": 0,
        "question_id": 1,
        "image": "a.png",
        "question": "Is there a dog?",
        "image_path": str(image),
    }
    asked = [{**yes_no, "answer": "yes", "choices": ["yes", "no"], "target": 0}]
    pairs = [{**yes_no, "choices": ["A dog.", "A cat."], "target": 0}]
    write_dataset(out / "pope", {f"{a}_{b}": asked for a in SOURCES for b in SPLITS}, source={})
    write_dataset(out / "poll", dict.fromkeys((*SPLITS, "probe"), asked), source={})
    write_dataset(out / "phd", {"image": asked}, source={})
    write_dataset(out / "rlhf_v", {"qa": pairs}, source={})
    write_dataset(out / "minimal_pairs", {"pairs": pairs}, source={})
    prepare_scenes(out, {"probe": 6, "selection": 4, "test": 8})
    coco = {
        "images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 18, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 18}],
    }  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    (tmp_path / "synonyms.txt").write_text("dog, puppy\n")
    (tmp_path / "poll.jsonl").write_text(json.dumps({"image": "a.png", "objects": ["dog"]}) + "\n")
    images = [tmp_path / "images"]
    prepare_chair(tmp_path / "coco.json", images, out, synonyms=tmp_path / "synonyms.txt")
    prepare_chair_poll(tmp_path / "poll.jsonl", images, out)
    monkeypatch.setenv("TRUTHGATE_DATA", str(out))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def leaves(found: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, task in found.items():
        if isinstance(task, dict):
            yield from leaves(task)
        else:
            yield name, task


@pytest.mark.slow
def test_every_task_is_loaded_and_asks_its_first_question(data: None) -> None:
    from lmms_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager()  # as the command line makes it: our folder is found without --include_path
    assert NAMES <= {*manager.all_subtasks, *manager.all_groups}
    tasks = dict(leaves(get_task_dict(sorted(NAMES), manager)))
    assert set(tasks) == NAMES - GROUPS
    for name, task in tasks.items():
        doc = task.test_docs()[0]
        [image] = task.doc_to_visual(doc)
        text, choices = task.doc_to_text(doc), []
        assert image.mode == "RGB" and text.strip(), name
        if task.OUTPUT_TYPE == "multiple_choice":
            choices = task.doc_to_choice(doc)
            assert len(choices) >= 2 and all(choices), name
        else:
            assert task.OUTPUT_TYPE == "generate_until" and task.config.generation_kwargs["max_new_tokens"], (
                name
            )
        target = task.doc_to_target(doc)
        assert (
            target in ("yes", "no") or target in range(len(choices)) or "captions" in name or "chair" in name
        ), name
        assert set(task.aggregation()) >= {metric["metric"] for metric in task.config.metric_list}, name
