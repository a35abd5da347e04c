"""Our tasks in lm-eval: found by name, run, parsed and measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from truthgate_eval.data import halueval
from truthgate_eval.errors import DataError, TaskError, TruthGateError
from truthgate_eval.harness.lm_eval import request_cache
from truthgate_eval.harness.lm_eval import tasks as lm_eval_tasks
from truthgate_eval.metrics import log_odds, yes_no
from truthgate_eval.paths import shipped

GROUP = ["halueval_qa", "halueval_dialogue", "halueval_summarization"]
YES_NO_TASKS = [*GROUP, "halueval_qa_no_knowledge", "halueval_qa_official"]
LOG_ODDS_TASKS = [f"{name}_logodds" for name in YES_NO_TASKS]
LOG_ODDS_GROUP = [f"{name}_logodds" for name in GROUP]
CHOICE_TASKS = ["halueval_qa_select", "probe_halueval_qa", "probe_phd_text", "probe_scenes_text"]
FOLDER = shipped("tasks") / "lm_eval"
FILES = sorted(FOLDER.glob("*.yaml"))
DOCUMENTS = 40


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every option that a task needs, with data in the formats of HaluEval and PhD."""
    folder = tmp_path_factory.mktemp("data")
    numbers = range(DOCUMENTS)
    write_lines(folder / "qa_data.jsonl", [
        {"knowledge": f"Box {i} is red.", "question": f"Which colour is box {i}?", "right_answer": "Red",
         "hallucinated_answer": f"Box {i} is blue."} for i in numbers])  # fmt: skip
    write_lines(folder / "dialogue_data.jsonl", [
        {"knowledge": f"Box {i} is red.", "dialogue_history": f"[Human]: I want box {i}.",
         "right_response": f"The red box {i}. ", "hallucinated_response": f"The blue box {i}."}
        for i in numbers])  # fmt: skip
    write_lines(folder / "summarization_data.jsonl", [
        {"document": f"Box {i} is red and heavy.", "right_summary": f"A red box {i}.\n",
         "hallucinated_summary": f"A blue box {i}."} for i in numbers])  # fmt: skip
    (folder / "prompt.txt").write_text("K {knowledge}\nQ {question}\nA {answer}\nJudgement:")
    record = {"image_id": "1", "task": "counting", "yes_question": "Is it one?", "no_question": "Is it two?"}
    phd = [{**record, "context": {"icc": f"There are two in box {i}."}} for i in numbers]
    (folder / "phd.json").write_text(json.dumps(phd))
    return {
        "halueval_path": str(folder),
        "instruction_file": str(folder / "prompt.txt"),
        "phd_path": str(folder / "phd.json"),
    }


def only_ours(metadata: dict[str, Any]) -> TaskManager:
    """Our folder alone: indexing all of lm-eval's takes seconds, and is tested once below."""
    return TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)


def evaluate(
    tasks: list[str], metadata: dict[str, Any], *, manager: TaskManager | None = None, **options: Any
) -> dict[str, Any]:
    run = lm_eval.simple_evaluate(
        model="dummy", tasks=tasks, metadata=metadata, bootstrap_iters=10, verbosity="ERROR",
        task_manager=manager or only_ours(metadata), **options,
    )  # fmt: skip
    assert run is not None
    return run


def load(task: str, metadata: dict[str, Any]) -> Any:
    return only_ours(metadata).load([task])["tasks"][task]


def test_every_file_is_a_task_of_its_name_but_the_included_one() -> None:
    """lm-eval skips a broken file silently, so all are counted."""
    manager = TaskManager()
    ours = {e.yaml_path.stem: n for n, e in manager.task_index.items() if e.yaml_path in FILES}
    assert ours == {file.stem: file.stem for file in FILES if not file.stem.startswith("_truthgate_")}
    groups = {"halueval", "halueval_logodds"}
    assert set(ours) == {*groups, *YES_NO_TASKS, *LOG_ODDS_TASKS, *CHOICE_TASKS}
    assert not [name for name in manager.all_tasks if "_truthgate" in name]


def test_all_tasks_run_and_report_their_version(metadata: dict[str, str]) -> None:
    everything = TaskManager(metadata=metadata)
    # lm-eval refuses a group together with its members.
    members = {*GROUP, *LOG_ODDS_GROUP}
    names = [*YES_NO_TASKS, *LOG_ODDS_TASKS, *CHOICE_TASKS]
    tasks = ["halueval", "halueval_logodds", *(name for name in names if name not in members)]
    run = evaluate(tasks, metadata, manager=everything, limit=4)
    assert {"halueval", "halueval_logodds", *names} == run["results"].keys()
    assert {float(run["versions"][name]) for name in run["results"]} == {1.0}  # a group's is a string
    for name in YES_NO_TASKS:
        # The dummy model always answers "lol", which is neither yes nor no.
        assert run["results"][name]["unparsed,none"] == 1.0 and run["results"][name]["acc,none"] == 0.0
        assert run["results"][name]["acc_stderr,none"] == 0.0
        assert all(s["filtered_resps"] == [None] and s["resps"] == [["lol"]] for s in run["samples"][name])
    assert run["results"]["halueval"]["acc,none"] == 0.0 and run["results"]["halueval"]["f1,none"] == 0.0
    assert run["group_subtasks"]["halueval"] == GROUP
    assert run["group_subtasks"]["halueval_logodds"] == LOG_ODDS_GROUP
    for name in LOG_ODDS_TASKS:
        found, samples = run["results"][name], run["samples"][name]
        assert (
            run["configs"][name].get("generation_kwargs") is None and run["configs"][name]["metadata"]["data"]
        )
        assert {metric for metric in log_odds.METRICS if f"{metric},none" in found} == set(log_odds.METRICS)
        assert found["acc,none"] == log_odds.acc([sample["auroc"] for sample in samples])


def test_metrics_are_computed_from_the_parsed_answers(
    metadata: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.dummy import DummyLM

    answers = ["Yes.", "No", " yes", "Yes and no", "", "No, it follows.", "maybe"]
    monkeypatch.setattr(
        DummyLM, "generate_until", lambda _, requests, **__: [answers[i % 7] for i in range(len(requests))]
    )
    run = evaluate(["halueval_qa"], metadata)
    documents = halueval.documents("qa", halueval_path=metadata["halueval_path"])
    predictions = [
        (doc["hallucinated"], yes_no.parse_yes_no(answers[i % 7])) for i, doc in enumerate(documents)
    ]
    found = run["results"]["halueval_qa"]
    for name in ("f1", "precision", "recall", "yes_ratio", "unparsed"):
        assert found[f"{name},none"] == pytest.approx(getattr(yes_no, name)(predictions)), name
    assert found["acc,none"] == pytest.approx(yes_no.accuracy(predictions))
    parsed_answers = [sample["filtered_resps"][0] for sample in run["samples"]["halueval_qa"]]
    assert parsed_answers == [parsed for _, parsed in predictions] and set(parsed_answers) == {
        "yes",
        "no",
        None,
    }


@pytest.mark.parametrize("task", YES_NO_TASKS)
def test_a_prompt_has_one_answer_and_ends_before_the_judgement(task: str, metadata: dict[str, str]) -> None:
    loaded = load(task, metadata)
    for doc in list(loaded.eval_docs)[:10]:
        text = loaded.doc_to_text(doc)
        assert text.endswith("Judgement:") and doc["answer"] in text and "{" not in text
        # The other answer must not be in the prompt.
        index = doc["choices"].index(next(c for c in doc["choices"] if c.strip() == doc["answer"]))
        assert doc["choices"][1 - index].strip() not in text.replace(doc["answer"], "").splitlines()
        assert loaded.doc_to_target(doc) == doc["hallucinated"].capitalize()
        assert ("knowledge" in doc and doc["knowledge"] in text) == (
            task not in ("halueval_qa_no_knowledge", "halueval_summarization")
        )


@pytest.mark.parametrize("task", YES_NO_TASKS[:-1])
def test_an_answer_follows_its_prompt_after_one_space_and_ends_with_the_line(
    task: str, metadata: dict[str, str]
) -> None:
    run = evaluate([task], metadata, limit=1, num_fewshot=1)
    ((prompt, settings),) = run["samples"][task][0]["arguments"]
    assert re.search(r"Judgement: (Yes|No)\n\n", prompt)
    assert settings["until"] == ["\n"] and settings["do_sample"] is False


@pytest.mark.parametrize("task", [*YES_NO_TASKS, *CHOICE_TASKS])
@pytest.mark.parametrize("subset", ["all", "evaluation"])
def test_no_document_is_its_own_few_shot_example(task: str, subset: str, metadata: dict[str, str]) -> None:
    loaded = load(task, {**metadata, "subset": subset})
    loaded.set_fewshot_seed(7)
    documents = list(loaded.eval_docs)
    # As many examples as there are other documents must be all of them, without the document itself.
    for doc in documents[:5]:
        examples = loaded.sampler.sample(n=len(documents) - 1, eval_doc=doc)
        assert sorted(e["row"] for e in examples) == [d["row"] for d in documents if d["row"] != doc["row"]]
    assert loaded.fewshot_cfg.split == loaded.config.test_split, "otherwise lm-eval does not leave it out"
    text = loaded.doc_to_text(documents[0])
    assert loaded.fewshot_context(documents[0], num_fewshot=6).count(text) == 1


def test_probing_sequences_have_the_authors_format(metadata: dict[str, str]) -> None:
    task = load("probe_halueval_qa", metadata)
    doc = task.eval_docs[3]
    assert task.doc_to_text(doc) == "Context:\nBox 3 is red.\n\nQuestion: Which colour is box 3?\nAnswer:"
    assert task.doc_to_choice(doc) == ["Red", "Box 3 is blue."] and task.doc_to_target(doc) == 0
    assert task.config.target_delimiter == " "
    phd = load("probe_phd_text", metadata)
    assert [phd.doc_to_target(doc) for doc in list(phd.eval_docs)[:2]] == [1, 0]  # no, then yes
    text = phd.doc_to_text(phd.eval_docs[0])
    assert text == "Context:\nThere are two in box 0.\n\nQuestion: Is it one?\nAnswer:"


def test_choices_with_quotes_and_backslashes_pass_the_template_unchanged(tmp_path: Path) -> None:
    choices = ['it\'s "so"', "back\\slash \\n {{x}} [1]"]
    write_lines(tmp_path / "qa_data.jsonl", [
        {"knowledge": "k", "question": "q", "right_answer": choices[0], "hallucinated_answer": choices[1]}
    ])  # fmt: skip
    task = load("probe_halueval_qa", {"halueval_path": str(tmp_path)})
    assert task.doc_to_choice(task.eval_docs[0]) == choices


def test_options_reach_the_data_through_metadata(metadata: dict[str, str]) -> None:
    sizes = {
        subset: len(evaluate(["halueval_qa"], {**metadata, "subset": subset})["samples"]["halueval_qa"])
        for subset in halueval.SUBSETS
    }
    assert sizes["all"] == DOCUMENTS == sizes["selection"] + sizes["evaluation"] and sizes["selection"] > 0


def test_surface_matched_keeps_answers_of_one_length_without_their_final_punctuation(tmp_path: Path) -> None:
    texts = [("Rome", "It is Paris, of course."), ("In Rome", "Paris."), ("Rome.", "In Paris!")]
    write_lines(tmp_path / "qa_data.jsonl", [
        {"knowledge": str(n), "question": "q", "right_answer": right, "hallucinated_answer": wrong}
        for n, (right, wrong) in enumerate(texts)
    ])  # fmt: skip
    options = {"halueval_path": str(tmp_path), "surface_matched": True}
    docs = list(load("halueval_qa", options).eval_docs)
    assert [doc["row"] for doc in docs] == [1, 2]
    assert all(doc["answer"] in doc["choices"] and doc["answer"][-1].isalpha() for doc in docs)
    assert sorted(docs[1]["choices"]) == ["In Paris", "Rome"]
    write_lines(tmp_path / "qa_data.jsonl", [
        {"knowledge": "k", "question": "q", "right_answer": "Rome", "hallucinated_answer": texts[0][1]}
    ])  # fmt: skip
    with pytest.raises(TaskError, match="surface_matched leaves nothing: in all 1 documents"):
        load("halueval_qa", options)


@pytest.mark.parametrize(
    ("task", "change", "error", "message"),
    [
        ("halueval", {"halueval_path": "/no/data"}, DataError, "halueval_path=/no/data: expected a file"),
        ("halueval_qa_official", {"instruction_file": None}, TaskError, "needs a prompt file"),
        ("probe_phd_text", {"phd_path": "/no/phd.json"}, DataError, r"PhD's data\.json is not at /no/phd"),
        ("halueval_qa", {"subset": "half"}, TaskError, "unknown subset 'half'"),
        ("halueval_qa", {"exclude_rows_of": "nobody"}, TruthGateError, "no scores 'nobody'"),
        ("halueval_qa", {"surface_matched": "yes"}, TaskError, "surface_matched=yes: expected true or false"),
    ],
)
def test_missing_data_is_our_error_through_lm_eval(
    task: str, change: dict[str, Any], error: type[Exception], message: str, metadata: dict[str, str]
) -> None:
    with pytest.raises(error, match=message):
        evaluate([task], {**metadata, **change}, limit=1)


def test_every_function_a_file_names_exists() -> None:
    modules = {"tasks": lm_eval_tasks, "request_cache": request_cache}
    for file in FILES:
        text = file.read_text()
        names = re.findall(r"!function truthgate_eval\.harness\.lm_eval\.(\w+)\.(\w+)", text)
        takes_all_from_others = text.startswith(("group:", "include:\n"))
        assert len(names) == text.count("!function") and (names or takes_all_from_others), file.name
        for module, name in names:
            assert callable(getattr(modules[module], name)), (file.name, name)


@pytest.mark.real
def test_the_group_runs_on_the_packaged_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    run = evaluate(["halueval", "halueval_qa_select", "probe_halueval_qa"], {}, limit=3)
    assert all(run["n-samples"][name]["original"] == 10_000 for name in GROUP)
