from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from truthgate_eval import halueval, phd
from truthgate_eval.errors import DataError, ScoresError, TaskError
from truthgate_eval.hosts import lm_eval_tasks
from truthgate_eval.scores import TruthScores


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"knowledge": f"Fact {i}.", "question": f"What is {i}?", "right_answer": f"{i}",
         "hallucinated_answer": f"It is {i + 1}."}
        for i in range(400)
    ]  # fmt: skip
    (tmp_path / "qa_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_shown_answer_is_fixed_by_the_document_alone(folder: Path) -> None:
    documents = halueval.documents("qa", halueval_path=str(folder))
    texts = "\x1f".join(["answer", "Fact 7.", "What is 7?", "7", "It is 8."])
    odd = int.from_bytes(hashlib.sha256(texts.encode()).digest()[:8], "big") % 2 == 1
    assert documents[7]["answer"] == ("It is 8." if odd else "7")
    assert documents[7]["hallucinated"] == ("yes" if odd else "no")
    lines = (folder / "qa_data.jsonl").read_text().splitlines(keepends=True)
    (folder / "qa_data.jsonl").write_text("".join(lines[::-1]))  # another order, the same judgements
    again = {doc["question"]: doc for doc in halueval.documents("qa", halueval_path=str(folder))}
    assert all(again[doc["question"]]["answer"] == doc["answer"] for doc in documents)


def test_labels_and_orders_are_balanced_and_independent(folder: Path) -> None:
    documents = halueval.documents("qa", halueval_path=str(folder))
    yes = np.array([doc["hallucinated"] == "yes" for doc in documents])
    target = np.array([doc["target"] for doc in documents])
    selected = np.array([halueval.in_selection("qa", doc) for doc in documents])
    assert 0.4 < yes.mean() < 0.6 and 0.4 < target.mean() < 0.6 and 0.13 < selected.mean() < 0.27
    assert abs(np.corrcoef(yes, target)[0, 1]) < 0.15 and abs(np.corrcoef(yes, selected)[0, 1]) < 0.15
    assert all(doc["choices"][doc["target"]] == doc["right_answer"] for doc in documents)


def test_the_subsets_divide_the_documents(folder: Path) -> None:
    rows = {
        subset: {doc["row"] for doc in halueval.documents("qa", halueval_path=str(folder), subset=subset)}
        for subset in halueval.SUBSETS
    }
    assert not rows["selection"] & rows["evaluation"]
    assert rows["selection"] | rows["evaluation"] == rows["all"] == set(range(400))


def test_rows_that_made_an_artifact_are_left_out(folder: Path) -> None:
    scores = TruthScores(np.ones((1, 2)), metadata={"rows": {"halueval/qa": [0, 1, 399], "other": [5]}})
    path = str(scores.save(folder / "s.npz"))
    rows = [doc["row"] for doc in halueval.documents("qa", halueval_path=str(folder), exclude_rows_of=path)]
    assert rows == list(range(2, 399))


def test_mistakes_are_said_in_one_line(folder: Path) -> None:
    with pytest.raises(TaskError, match="unknown subset 'half'"):
        halueval.documents("qa", halueval_path=str(folder), subset="half")
    with pytest.raises(DataError, match=r"expected a file there, or a folder with dialogue_data\.jsonl"):
        halueval.documents("dialogue", halueval_path=str(folder))
    with pytest.raises(ScoresError, match="no scores 'nothing'"):
        halueval.documents("qa", halueval_path=str(folder), exclude_rows_of="nothing")
    TruthScores(np.ones((1, 2))).save(folder / "bare.npz")
    with pytest.raises(TaskError, match="do not record which rows"):
        halueval.documents("qa", halueval_path=str(folder), exclude_rows_of=str(folder / "bare.npz"))
    (folder / "dialogue_data.jsonl").write_text('{"knowledge": "a"}\n')
    with pytest.raises(DataError, match="line 1: no dialogue_history, right_response"):
        halueval.documents("dialogue", halueval_path=str(folder))
    (folder / "dialogue_data.jsonl").write_text('{"knowl')
    with pytest.raises(DataError, match="line 1 is not JSON"):
        halueval.documents("dialogue", halueval_path=str(folder))


def test_the_data_folder_comes_before_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(folder))
    (folder / "halueval").mkdir()
    (folder / "qa_data.jsonl").rename(folder / "halueval" / "qa_data.jsonl")
    assert halueval.locate("qa") == folder / "halueval" / "qa_data.jsonl"


@pytest.mark.real
def test_the_package_holds_all_of_halueval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    for task in halueval.ANSWERS:
        documents = halueval.documents(task)
        share = np.mean([doc["hallucinated"] == "yes" for doc in documents])
        assert len(documents) == 10_000 and 0.48 < share < 0.52
        # User reports: right summaries end with a newline, which would give them away.
        assert not any(doc["answer"].endswith("\n") for doc in documents)


def test_an_official_prompt_is_a_template_or_an_instruction(folder: Path, shared_data: Path) -> None:
    template = str(shared_data / "truthprobe" / "halueval_prompt.txt")
    instruction = str(shared_data / "halueval" / "qa_evaluation_instruction.txt")
    options = {"halueval_path": str(folder)}
    first = lm_eval_tasks.qa_official(instruction_file=template, **options)["test"][0]
    assert "#Knowledge:Fact 0." in first["prompt"] and "{" not in first["prompt"]
    second = lm_eval_tasks.qa_official(instruction_file=instruction, **options)["test"][0]
    assert second["prompt"].endswith(
        f"#Question#: What is 0?\n#Answer#: {second['answer']}\n#Your Judgement#:"
    )
    with pytest.raises(TaskError, match="needs a prompt file"):
        lm_eval_tasks.qa_official(**options)


def test_phds_labels_are_inverted_under_the_contradicting_context(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    record = {
        "image_id": "000000000001", "task": "attribute", "yes_question": "Is the bus red?",
        "no_question": "Is the bus blue?", "context": {"iac": "x", "icc": "The bus is blue."},
    }  # fmt: skip
    path.write_text(json.dumps([record]))
    first, second = phd.documents(str(path))
    # The picture shows a red bus; the context says blue, and the context is the knowledge.
    assert (first["question"], first["choices"][first["target"]]) == ("Is the bus red?", "no")
    assert (second["question"], second["choices"][second["target"]]) == ("Is the bus blue?", "yes")
    assert [first["row"], second["row"]] == [0, 1] and first["context"] == "The bus is blue."


def test_a_missing_or_foreign_phd_file_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"PhD's data\.json is not at"):
        phd.documents()
    for text, message in (("{}", "expected a list"), ("[{}]", "record 0: no image_id"), ("[", "not JSON")):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(DataError, match=message):
            phd.documents(str(tmp_path / "other.json"))
