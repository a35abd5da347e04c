"""The answers of a study's tasks: the tasks of several roles as one data set, and what their documents ask."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from pathlib import Path

import pytest
from PIL import Image

from truthgate_eval.attribution.study_documents import Prompt
from truthgate_eval.attribution.study_gates import StudyGates
from truthgate_eval.cli import study_run
from truthgate_eval.cli.probe_data import DataOptions
from truthgate_eval.cli.study_jobs import _load_roles, document_prompts
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample

OPTIONS = DataOptions(("a",), None, 0, None, False, None, {}, None, False)


def document(text: str, group: int, colour: str | None = None, key: Hashable = None) -> list[ProbeExample]:
    """Its two answers; it has an image of one colour."""

    def images() -> list[Image.Image]:
        return [] if colour is None else [Image.new("RGB", (4, 4), colour)]

    return [
        ProbeExample(text, answer, answer == " yes", group, images, key, f"{text} {group}")
        for answer in (" yes", " no")
    ]


def test_an_image_is_recognised_under_another_name() -> None:
    examples = [
        *document("Is it round?", 0, "red", "task 1, 000.jpg"), *document("Is it round?", 1, "red", "000.png"),
        *document("Is it round?", 2, "blue", "001.png"), *document("Is it round?", 3),
    ]  # fmt: skip
    prompts = document_prompts(ProbeDataset(examples, {}, {}))
    assert prompts[0] == prompts[1] and len({prompts[group] for group in (0, 2, 3)}) == 3
    assert prompts[3] == Prompt("Is it round?") and len(prompts[0].images) == 1


def test_images_without_a_key_are_not_taken_for_one_another() -> None:
    examples = [*document("Is it round?", 0, "red"), *document("Is it round?", 1, "blue")]
    prompts = document_prompts(ProbeDataset(examples, {}, {}))
    assert prompts[0] != prompts[1]


def test_images_that_differ_in_their_palette_only_are_not_taken_for_one_another(tmp_path: Path) -> None:
    examples = []
    for group, palette in enumerate(([255, 0, 0], [0, 0, 255])):
        image = Image.new("P", (4, 4))
        image.putpalette(palette)
        image.save(tmp_path / f"{group}.png")
        loaded = Image.open(tmp_path / f"{group}.png")
        examples += [
            dataclasses.replace(example, load_images=lambda loaded=loaded: [loaded])
            for example in document("Is it red?", group)
        ]
    prompts = document_prompts(ProbeDataset(examples, {}, {}))
    assert prompts[0].text == prompts[1].text and prompts[0] != prompts[1]


def test_the_documents_of_all_tasks_are_one_data_set() -> None:
    tasks = {
        ("a",): ProbeDataset([*document("one", 0), *document("two", 1)], {"data": [3, 4]}, {"task": "a"}),
        ("b", "c"): ProbeDataset(document("three", 0), {"data": [4, 5], "other": [1]}, {"task": "b,c"}),
    }
    loaded: list[DataOptions] = []

    def load(options: DataOptions) -> ProbeDataset:
        loaded.append(options)
        return tasks[options.tasks]

    dataset, groups = _load_roles(load, OPTIONS, {"test": ("b", "c")})
    assert loaded == [OPTIONS, dataclasses.replace(OPTIONS, tasks=("b", "c"))]
    assert groups == {"scoring": {0, 1}, "test": {2}}
    assert [(example.context, example.group) for example in dataset.examples[::2]] == [
        ("one", 0), ("two", 1), ("three", 2),
    ]  # fmt: skip
    assert dataset.rows == {"data": [3, 4, 5], "other": [1]} and dataset.settings == {"task": "a"}


@pytest.mark.parametrize(("base", "format"), [("hf", "task"), ("vlm", "authors")])
def test_the_format_of_image_tasks_is_not_asked_of_a_text_base(
    base: str, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[DataOptions] = []

    def load(_model: str, _arguments: object, options: DataOptions, **_: object) -> None:
        loaded.append(options)
        raise InterruptedError

    monkeypatch.setattr(study_run, "load_study_model", load)
    options = dataclasses.replace(OPTIONS, format="authors")
    settings = study_run.StudySettings(options, {}, StudyGates(), (0.01,), 1, 8, None, tmp_path)
    with pytest.raises(InterruptedError):
        study_run.score_base(settings, base, {}, "b,c", ["gradient"])
    assert [(own.tasks, own.format) for own in loaded] == [(("b", "c"), format)]
