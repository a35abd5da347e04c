"""HaluEval: its files found and read, and the documents of its tasks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from truthgate_eval.data import halueval
from truthgate_eval.errors import DataError, ScoresError, TaskError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval import tasks as lm_eval_tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"knowledge": f"Fact {i}.", "question": f"What is {i}?", "right_answer": f"{i}",
         "hallucinated_answer": f"It is {i + 1}."}
        for i in range(400)
    ]  # fmt: skip
    (tmp_path / "qa_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_document_alone_determines_the_shown_answer(folder: Path) -> None:
    documents = halueval.documents("qa", halueval_path=str(folder))
    texts = "\x1f".join(["answer", "Fact 7.", "What is 7?", "7", "It is 8."])
    odd = int.from_bytes(hashlib.sha256(texts.encode()).digest()[:8], "big") % 2 == 1
    assert documents[7]["answer"] == ("It is 8." if odd else "7")
    assert documents[7]["hallucinated"] == ("yes" if odd else "no")
    lines = (folder / "qa_data.jsonl").read_text().splitlines(keepends=True)
    (folder / "qa_data.jsonl").write_text("".join(lines[::-1]))  # another order, the same answers
    again = {doc["question"]: doc for doc in halueval.documents("qa", halueval_path=str(folder))}
    assert all(again[doc["question"]]["answer"] == doc["answer"] for doc in documents)


def test_labels_orders_and_splits_are_balanced_and_independent(folder: Path) -> None:
    documents = halueval.documents("qa", halueval_path=str(folder))
    yes = np.array([doc["hallucinated"] == "yes" for doc in documents])
    target = np.array([doc["target"] for doc in documents])
    selected = np.array([halueval.in_selection("qa", doc) for doc in documents])
    assert 0.4 < yes.mean() < 0.6 and 0.4 < target.mean() < 0.6 and 0.13 < selected.mean() < 0.27
    assert abs(np.corrcoef(yes, target)[0, 1]) < 0.15 and abs(np.corrcoef(yes, selected)[0, 1]) < 0.15
    assert all(doc["choices"][doc["target"]] == doc["right_answer"] for doc in documents)


def test_the_subsets_are_disjoint_and_complete(folder: Path) -> None:
    rows = {
        subset: {doc["row"] for doc in halueval.documents("qa", halueval_path=str(folder), subset=subset)}
        for subset in halueval.SUBSETS
    }
    assert not rows["selection"] & rows["evaluation"]
    assert rows["selection"] | rows["evaluation"] == rows["all"] == set(range(400))


def test_the_rows_of_an_artifact_can_be_left_out(folder: Path) -> None:
    scores = TruthScores(np.ones((1, 2)), metadata={"rows": {"halueval/qa": [0, 1, 399], "other": [5]}})
    path = str(scores.save(folder / "s.npz"))
    rows = [doc["row"] for doc in halueval.documents("qa", halueval_path=str(folder), exclude_rows_of=path)]
    assert rows == list(range(2, 399))


def test_user_errors_have_one_line(folder: Path) -> None:
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
    null = {"knowledge": "a", "dialogue_history": "b", "right_response": None, "hallucinated_response": "c"}
    for content, message in (
        (b'{"knowl', "line 1 is cut off or not JSON"),
        (b"\xff\xfe\n", "line 1 is cut off or not JSON"),
        (b"5\n", "line 1: expected a JSON object, found int"),
        (json.dumps(null).encode(), "line 1: no right_response, so"),
        (b"", "no document is left"),
    ):
        (folder / "dialogue_data.jsonl").write_bytes(content)
        with pytest.raises((DataError, TaskError), match=message) as caught:
            halueval.documents("dialogue", halueval_path=str(folder))
        assert "\n" not in str(caught.value)


def test_empty_lines_are_no_documents_and_have_no_row_number(folder: Path) -> None:
    file = folder / "qa_data.jsonl"
    before = halueval.documents("qa", halueval_path=str(folder))
    file.write_text(file.read_text().replace("\n", "\n\n") + "\n")
    assert halueval.documents("qa", halueval_path=str(folder)) == before


def test_without_file_or_package_the_pinned_revision_is_fetched_from_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    calls = []

    def load_dataset(name: str, config: str, **options: str) -> datasets.Dataset:
        calls.append((name, config, options))
        return datasets.Dataset.from_json(str(folder / "qa_data.jsonl"))

    expected = halueval.documents("qa", halueval_path=str(folder))
    monkeypatch.setenv("TRUTHGATE_DATA", str(folder / "nothing"))
    monkeypatch.setattr(halueval, "packaged_file", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert halueval.documents("qa") == expected
    assert calls == [("pminervini/HaluEval", "qa", {"split": "data", "revision": halueval.HUB_REVISION})]


@pytest.mark.parametrize(
    ("reason", "expected"), [("no route\nto the hub", "no route"), ("", "ConnectionError")]
)
def test_a_hub_that_cannot_be_reached_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, expected: str
) -> None:
    import datasets

    def no_network(*args: object, **options: object) -> None:
        raise ConnectionError(reason)

    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    monkeypatch.setattr(halueval, "packaged_file", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(DataError, match=rf"cannot be fetched from the hub \({expected}\): install"):
        halueval.documents("qa")


def test_the_data_folder_has_precedence_over_the_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(folder))
    (folder / "halueval").mkdir()
    (folder / "qa_data.jsonl").rename(folder / "halueval" / "qa_data.jsonl")
    assert halueval.find_file("qa") == folder / "halueval" / "qa_data.jsonl"


@pytest.mark.real
def test_the_package_has_all_of_halueval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    for task in halueval.ANSWER_COLUMNS:
        documents = halueval.documents(task)
        share = np.mean([doc["hallucinated"] == "yes" for doc in documents])
        assert len(documents) == 10_000 and 0.48 < share < 0.52
        # Right summaries end with a newline in the file, which would give them away.
        assert not any(doc["answer"].endswith("\n") for doc in documents)


def test_an_official_prompt_is_a_template_or_an_instruction(folder: Path, shared_data: Path) -> None:
    template = str(shared_data / "truthprobe" / "halueval_prompt.txt")
    instruction = str(shared_data / "halueval" / "qa_evaluation_instruction.txt")
    options = {"halueval_path": str(folder)}
    first = lm_eval_tasks.load_halueval_qa_official(instruction_file=template, **options)["test"][0]
    assert "#Knowledge:Fact 0." in first["prompt"] and "{" not in first["prompt"]
    second = lm_eval_tasks.load_halueval_qa_official(instruction_file=instruction, **options)["test"][0]
    assert second["prompt"].endswith(
        f"#Question#: What is 0?\n#Answer#: {second['answer']}\n#Your Judgement#:"
    )
    with pytest.raises(TaskError, match="needs a prompt file"):
        lm_eval_tasks.load_halueval_qa_official(**options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"), (b"\xff\xfe", "is not a text file"),
        (b"Is {answer} right?", r"a template without \{question\}$"),
        (b"Facts: {knowledge}", r"a template without \{question\} and \{answer\}$"),
    ],
)  # fmt: skip
def test_a_prompt_file_without_a_usable_prompt_is_an_error(
    folder: Path, content: bytes, message: str
) -> None:
    (folder / "prompt.txt").write_bytes(content)
    with pytest.raises(TaskError, match=message):
        lm_eval_tasks.load_halueval_qa_official(
            halueval_path=str(folder), instruction_file=str(folder / "prompt.txt")
        )


def test_braces_in_a_document_are_not_fields() -> None:
    doc = {"knowledge": "k", "question": "What is {answer}?", "answer": "{question}"}
    assert lm_eval_tasks.official_prompt("{question} {answer} {x}", doc) == "What is {answer}? {question} {x}"


def test_the_tasks_find_halueval_after_its_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"knowledge": "k", "question": "q", "right_answer": "r", "hallucinated_answer": "h"}
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "qa_data.json").write_text(json.dumps(record) + "\n")
    prepared = halueval.prepare_halueval(tmp_path / "release", tmp_path / "data")
    assert prepared.files == {"qa_data": 1}
    assert len(prepared.notes) == 2
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path / "data"))
    assert [document["question"] for document in halueval.documents("qa")] == ["q"]


def test_line_separators_inside_a_record_do_not_split_it(folder: Path) -> None:
    record = {"knowledge": "a\u2028b", "question": "\u0085", "right_answer": "r", "hallucinated_answer": "h"}
    content = "\ufeff" + json.dumps(record, ensure_ascii=False) + "\n"
    (folder / "qa_data.jsonl").write_text(content, encoding="utf-8")
    assert [doc["knowledge"] for doc in halueval.documents("qa", halueval_path=str(folder))] == ["a\u2028b"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a"], r"is \['a'\], expected a text"),
        (True, "is True, expected a text"),
        ("\ud800", "half of a char"),
    ],
)
def test_a_column_of_another_type_is_an_error_with_file_and_line(
    folder: Path, value: object, message: str
) -> None:
    record = {"knowledge": "", "question": "q", "right_answer": value, "hallucinated_answer": 7}
    (folder / "qa_data.jsonl").write_text(json.dumps(record))
    with pytest.raises(DataError, match=rf"qa_data\.jsonl, line 1: right_answer.*{message}"):
        halueval.documents("qa", halueval_path=str(folder))


def test_a_list_of_records_gives_the_documents_of_the_lines(folder: Path) -> None:
    lines = halueval.documents("qa", halueval_path=str(folder))
    records = [json.loads(line) for line in (folder / "qa_data.jsonl").read_text().splitlines()]
    (folder / "list.json").write_text(json.dumps(records, indent=2))
    assert halueval.documents("qa", halueval_path=str(folder / "list.json")) == lines


@pytest.mark.parametrize("rows", [5, "12", [[1]], [None], {"1": 1}])
def test_an_artifacts_rows_that_are_no_numbers_are_an_error(folder: Path, rows: object) -> None:
    path = TruthScores(np.ones((1, 2)), metadata={"rows": {"halueval/qa": rows}}).save(folder / "s.npz")
    with pytest.raises(TaskError, match="its rows of halueval/qa are no list of numbers"):
        halueval.documents("qa", halueval_path=str(folder), exclude_rows_of=str(path))
