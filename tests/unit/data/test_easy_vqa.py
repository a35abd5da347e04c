"""The questions of easy-VQA, on the real package."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from training.easy_vqa import COLORS, FIRST_EVAL_IMAGE, SHAPES, EasyVqaTraining, names_told
from truthgate_eval.data import easy_vqa
from truthgate_eval.data.store import read_rows
from truthgate_eval.errors import DataError


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))


def test_the_parts_are_all_yes_no_questions_of_the_package_and_share_no_image() -> None:
    parts = {name: easy_vqa.questions(name) for name in ("test", "probe", "train")}
    # The package's README counts 28,407 training and 7,136 test questions.
    assert len(parts["test"]) == 7136
    assert len(parts["probe"]) + len(parts["train"]) == 28407
    pictures = {name: {row["image"] for row in rows} for name, rows in parts.items()}
    assert not pictures["probe"] & pictures["train"] and len(pictures["probe"]) == 1000
    assert all(Path(row["image_path"]).is_file() for row in parts["test"][:50])
    assert Counter(row["answer"] for row in parts["test"]) == {"yes": 3611, "no": 3525}


def test_the_words_of_a_question_alone_are_right_for_82_percent() -> None:
    test, train = easy_vqa.questions("test"), easy_vqa.questions("train")
    assert easy_vqa.question_only_accuracy(train, test) == pytest.approx(0.825, abs=0.001)
    assert easy_vqa.question_only_accuracy([], test) == pytest.approx(3525 / 7136)


def test_the_files_are_written_once_and_again_when_the_package_has_moved(tmp_path: Path) -> None:
    file = easy_vqa.easy_vqa_file("probe")
    assert read_rows(file) == easy_vqa.questions("probe")
    written = file.stat().st_mtime_ns
    assert easy_vqa.easy_vqa_file("test").is_file() and file.stat().st_mtime_ns == written
    provenance = tmp_path / "easy_vqa" / "prepared.json"
    content = json.loads(provenance.read_text())
    content["source"]["package"] = "/elsewhere"
    provenance.write_text(json.dumps(content))
    easy_vqa.easy_vqa_file("probe")
    assert file.stat().st_mtime_ns != written
    assert json.loads(provenance.read_text())["source"]["package"] != "/elsewhere"


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(easy_vqa, "packaged_file", lambda *_: None)
    with pytest.raises(DataError, match=r"^the package easy-vqa is not installed: `pip install easy-vqa`"):
        easy_vqa.easy_vqa_file("test")


@pytest.mark.parametrize("content", ["[[1, 2]]", "[" * 2000, "5"])
def test_another_package_of_that_name_is_an_error_of_one_line(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(easy_vqa, "packaged_file", lambda *_: tmp_path)
    (tmp_path / "data" / "test").mkdir(parents=True)
    (tmp_path / "data" / "test" / "questions.json").write_text(content)
    with pytest.raises(DataError, match="is not easy-VQA's"):
        easy_vqa.questions("test")


def test_training_uses_no_image_that_is_probed_evaluated_or_measures_progress() -> None:
    config = EasyVqaTraining(seed=0, batch_size=16, steps=1)
    trained = {int(row["image"].rsplit("-", 1)[1]) for row in config._rows}
    assert max(trained) < FIRST_EVAL_IMAGE < easy_vqa.FIRST_PROBE_IMAGE
    first = [(example.question, example.answer) for example in config.batches()(0)]
    again = [(x.question, x.answer) for x in EasyVqaTraining(seed=0, batch_size=16, steps=9).batches()(0)]
    assert first == again
    assert {answer for _, answer in first} - {"Yes", "No"} <= {n.capitalize() for n in (*SHAPES, *COLORS)}


@pytest.mark.parametrize(
    ("question", "answer", "told"),
    [
        ("what color is the circle?", "blue", {"circle", "blue"}),
        ("is there a red shape?", "yes", {"red"}),
        ("is there a red shape?", "no", set()),
        ("does the image not contain a gray shape?", "no", {"gray"}),
        ("is no circle present?", "yes", set()),
    ],
)
def test_what_an_answer_tells_about_an_image(question: str, answer: str, told: set[str]) -> None:
    assert names_told(question, answer) == told


def test_the_towers_labels_are_one_shape_and_one_colour() -> None:
    for labeled in EasyVqaTraining(seed=0, batch_size=16, steps=1).tower_batch(3, 40):
        assert len(labeled.names & set(SHAPES)) == len(labeled.names & set(COLORS)) == 1
