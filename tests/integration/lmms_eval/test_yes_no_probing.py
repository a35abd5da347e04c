"""Tasks of lmms-eval that have yes or no written, as documents with right and wrong answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_vision_models as factories_vlm
from helpers.command_line import truthgate

from truthgate_eval.data.store import write_dataset
from truthgate_eval.errors import TaskError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.metrics.pope import SPLITS

TASK = """task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_visual: !function truthgate_eval.harness.lmms_eval.tasks.doc_to_visual
doc_to_text: question
doc_to_target: answer
"""


def question(folder: Path, number: int, answer: str) -> dict[str, Any]:
    image = folder / f"{number // 2}.png"
    return {
        "question_id": number, "image": image.name, "question": f"Is there a thing {number} in the image?",
        "answer": answer, "image_path": str(image), "row": number,
    }  # fmt: skip


@pytest.fixture
def polls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Polls of six questions about three images; four right answers are no."""
    for number in range(3):
        factories_vlm.random_image(number).save(tmp_path / f"{number}.png")
    rows = [
        question(tmp_path, number, answer)
        for number, answer in enumerate(["yes", "no", "no", "no", "no", "yes"])
    ]
    write_dataset(tmp_path / "data" / "poll", dict.fromkeys(SPLITS, rows), source={})
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def load(*tasks: str, **options: Any) -> Any:
    from truthgate_eval.harness.lmms_eval.probing import load_dataset

    return load_dataset(list(tasks), **options)


def test_every_spelling_of_the_right_answer_is_right(polls: Path) -> None:
    generating = load("poll_random")
    assert [example.answer for example in generating.examples[:4]] == [" yes", " Yes", " no", " No"]
    assert generating.labels.reshape(6, 4).tolist() == [
        [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]
    ]  # fmt: skip
    assert generating.groups.tolist() == [n // 4 for n in range(24)]
    assert len({example.image_key for example in generating.examples}) == 3
    assert generating.settings["yes_no_answers"] == {"poll_random": ["yes", "Yes", "no", "No"]}
    # The twin that reads log-odds has each spelling twice, with and without a space, which is one answer here.
    reading = load("poll_random_logodds")
    for one in (generating, reading):
        found = {
            (example.context, example.answer, example.truthful, example.group) for example in one.examples
        }
        assert len(found) == len(one.examples) == 24
    assert found == {(e.context, e.answer, e.truthful, e.group) for e in generating.examples}


@pytest.mark.slow
def test_the_command_takes_a_poll(polls: Path, vlm_checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    done = truthgate(
        "probe", "--model", "vlm", "--model_args", f"pretrained={vlm_checkpoint('llava')},dtype=float32",
        "--score", "gradient", "--tasks", "poll_random", "--device", "cpu", "--output", "a.npz",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scores = TruthScores.load(tmp_path / "a.npz")
    metadata = scores.metadata
    assert metadata["yes_no_answers"] == {"poll_random": ["yes", "Yes", "no", "No"]}
    assert (metadata["documents"], metadata["compared_documents"], metadata["clusters"]) == (6, 6, 3)
    assert np.abs(scores.scores).max() > 0 and scores.stderr is not None


@pytest.mark.slow
@pytest.mark.parametrize("output_type", ["generate_until", "loglikelihood"])
def test_a_task_with_another_answer_is_refused_in_one_line(output_type: str, polls: Path) -> None:
    file = polls / "own.json"
    rows = [question(polls, 0, "yes"), question(polls, 1, "a dog")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (polls / "own").mkdir()
    text = TASK.format(file=file).replace("generate_until", output_type)
    (polls / "own" / "own.yaml").write_text(text)
    with pytest.raises(TaskError, match=f"'own' is of type {output_type}: probing needs a multiple") as error:
        load("own", include_path=str(polls / "own"))
    assert ("document 1 is 'a dog'" in str(error.value)) == (output_type == "generate_until")
