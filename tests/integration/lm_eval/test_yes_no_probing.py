"""Tasks of lm-eval that have yes or no written, as documents with a right and a wrong answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers.command_line import truthgate
from lm_eval.tasks import TaskManager

from truthgate_eval.attribution.gradient import gate_gradients
from truthgate_eval.cli.attribution_jobs import answer_set
from truthgate_eval.data import halueval
from truthgate_eval.errors import TaskError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval.probing import load_dataset, load_lm, tokenize
from truthgate_eval.inference import self_check
from truthgate_eval.paths import shipped
from truthgate_eval.probing.dataset import ProbeDataset

TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: {output_type}
test_split: test
doc_to_text: "Image {{{{image}}}}: {{{{question}}}}"
doc_to_target: answer
"""


@pytest.fixture(scope="module", autouse=True)
def own_tasks_only() -> Iterator[None]:
    """lm-eval's task manager without its own thousands of files, which take it seconds to look through."""
    folder = str(shipped("tasks") / "lm_eval")

    def manager(*, metadata: dict[str, Any] | None = None, include_path: str | None = None) -> TaskManager:
        paths = [folder, include_path] if include_path else [folder]
        return TaskManager(metadata=metadata, include_path=paths, include_defaults=False)

    with mock.patch("truthgate_eval.harness.lm_eval.task_index.TaskManager", manager):
        yield


def write_task(folder: Path, answers: list[str], *, output_type: str = "generate_until") -> None:
    """A task `own`: question i is about image i // 2, and its right answer is `answers[i]`."""
    docs = [{"image": f"{i // 2}.png", "question": f"Is it {i}?", "answer": a} for i, a in enumerate(answers)]
    file = folder / "own.json"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "own.yaml").write_text(TASK.format(name="own", file=file, output_type=output_type))


def load(data: str, task: str, **options: Any) -> ProbeDataset:
    return load_dataset([task], limit=6, metadata={"halueval_path": data}, **options)


@pytest.mark.parametrize("options", [{}, {"num_fewshot": 1}, {"apply_chat_template": True}])
def test_the_sequences_are_those_of_the_task_that_reads_log_odds(
    options: dict[str, Any], checkpoint: str, halueval_folder: str
) -> None:
    lm = load_lm("hf", {"pretrained": checkpoint}, batch_size=4, device="cpu")
    generating, reading = (
        load(halueval_folder, task, lm=lm, **options) for task in ("halueval_qa", "halueval_qa_logodds")
    )
    assert generating.examples == reading.examples and generating.rows == reading.rows
    documents = halueval.documents("qa", halueval_path=halueval_folder)[:6]
    right = [example.answer.strip().lower() for example in generating.examples if example.truthful]
    assert right == [doc["hallucinated"] for doc in documents]
    assert generating.settings["yes_no_answers"] == {"halueval_qa": ["Yes", "No"]}
    assert "yes_no_answers" not in reading.settings


def test_answers_in_lower_case_have_capitalized_ones_beside_them(tmp_path: Path) -> None:
    write_task(tmp_path, ["yes", "no", "no", "yes"])
    found = load_dataset(["own"], include_path=str(tmp_path))
    assert [example.answer for example in found.examples[:4]] == [" yes", " Yes", " no", " No"]
    assert found.labels.tolist() == [1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0]
    assert found.settings["yes_no_answers"] == {"own": ["yes", "Yes", "no", "No"]}


@pytest.mark.parametrize("limit", [None, 1])
def test_a_task_with_another_answer_is_refused_whatever_the_limit(limit: int | None, tmp_path: Path) -> None:
    write_task(tmp_path, ["yes", "no", "perhaps"])
    with pytest.raises(
        TaskError,
        match="'own' is of type generate_until: probing needs a multiple-choice task, or one that generates "
        "yes or no; the right answer to document 2 is 'perhaps'",
    ):
        load_dataset(["own"], limit=limit, include_path=str(tmp_path))
    write_task(tmp_path, ["yes", "no"], output_type="loglikelihood_rolling")
    with pytest.raises(TaskError, match="of type loglikelihood_rolling: probing needs"):
        load_dataset(["own"], include_path=str(tmp_path))


def test_the_gradient_of_a_yes_no_task_is_balanced_and_clustered_by_image(
    checkpoint: str, tmp_path: Path
) -> None:
    write_task(tmp_path, ["Yes", "No", "No", "No", "No", "Yes"])
    done = truthgate(
        "probe", "--score", "gradient", "--model_args", f"pretrained={checkpoint}", "--tasks", "own",
        "--include_path", str(tmp_path), "--device", "cpu", "--output", "a.npz", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scores = TruthScores.load(tmp_path / "a.npz")
    assert scores.metadata["yes_no_answers"] == {"own": ["Yes", "No"]}
    assert (scores.metadata["compared_documents"], scores.metadata["clusters"]) == (6, 3)
    lm = load_lm("hf", {"pretrained": checkpoint}, batch_size=4, device="cpu")
    dataset = load_dataset(["own"], include_path=str(tmp_path))
    answers = answer_set(tokenize(lm, dataset).tokens, dataset)
    assert answers.strata == ["yes", "no", "no", "no", "no", "yes"]
    layout = find_attention_layout(lm.model)
    values, _ = gate_gradients(self_check.load(lm.model, layout.decoder), layout, answers.documents)
    expected = (values[[0, 5]].mean(axis=0) + values[1:5].mean(axis=0)) / 2
    np.testing.assert_allclose(scores.scores, expected, rtol=1e-4, atol=1e-6)


def test_a_probe_takes_them_too(checkpoint: str, halueval_folder: str, tmp_path: Path) -> None:
    done = truthgate(
        "probe", "--model_args", f"pretrained={checkpoint}", "--tasks", "halueval_qa", "--limit", "20",
        "--solver", "newton", "--metadata", json.dumps({"halueval_path": halueval_folder}),
        "--device", "cpu", "--output", "a.npz", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metadata = TruthScores.load(tmp_path / "a.npz").metadata
    assert (metadata["documents"], metadata["sequences"], metadata["truthful"]) == (20, 40, 20)
