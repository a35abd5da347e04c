"""`contrast=ALPHA` of gated_hf, against log-likelihoods of two prompts written here; and lm-eval's answer cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from helpers import tiny_models as factories
from helpers.leaderboards import leaderboard
from lm_eval.api.instance import Instance
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from sqlitedict import SqliteDict

from truthgate_eval.analysis.runs.run import read_run
from truthgate_eval.errors import GateError, TaskError
from truthgate_eval.harness.contrast import Contrast
from truthgate_eval.harness.lm_eval.context_field import without_context
from truthgate_eval.harness.lm_eval.contrast import ContextContrast
from truthgate_eval.harness.lm_eval.model import GatedHF
from truthgate_eval.paths import shipped

TASK = "halueval_qa_logodds"
LIMIT = 4
WholeRun = Callable[..., dict[str, Any]]
Evaluate = Callable[..., list[dict[str, Any]]]


def task_manager(metadata: dict[str, Any]) -> TaskManager:
    """Our tasks alone: lm-eval's thousands of files take seconds."""
    return TaskManager(
        include_path=str(shipped("tasks") / "lm_eval"), include_defaults=False, metadata=metadata
    )


@pytest.fixture
def whole_run(halueval_folder: str) -> WholeRun:
    """What lm-eval returns of a run on HaluEval."""

    def run(model: Any, task: str = TASK, metadata: Any = None, **options: Any) -> dict[str, Any]:
        metadata = {"halueval_path": halueval_folder, **(metadata or {})}
        found = lm_eval.simple_evaluate(
            model=model, tasks=[task], limit=LIMIT, bootstrap_iters=0, verbosity="ERROR", metadata=metadata,
            task_manager=task_manager(metadata), **options,
        )  # fmt: skip
        assert found is not None
        return found

    return run


@pytest.fixture
def evaluate(whole_run: WholeRun) -> Evaluate:
    """Samples of a run on HaluEval, in the order of their documents."""

    def run(model: Any, task: str = TASK, metadata: Any = None, **options: Any) -> list[dict[str, Any]]:
        samples = whole_run(model, task, metadata, **options)["samples"][task]
        return sorted(samples, key=lambda sample: sample["doc_id"])

    return run


def load(folder: str, scores: str = "none", **arguments: Any) -> GatedHF:
    return GatedHF(folder, scores=scores, device="cpu", batch_size=4, **arguments)


def pairs(sample: dict[str, Any]) -> list[tuple[float, bool]]:
    return [tuple(own[0]) for own in sample["resps"]]


@pytest.mark.parametrize("options", [
    {}, {"num_fewshot": 1}, {"apply_chat_template": True, "system_instruction": "Be honest."},
])  # fmt: skip
@pytest.mark.parametrize("engine", ["auto", "off"])
def test_choices_equal_those_of_two_plain_prompts(
    engine: str, options: dict[str, Any], checkpoint: str, evaluate: Evaluate
) -> None:
    found = evaluate(load(checkpoint, contrast=0.5, engine=engine), **options)
    plain = HFLM(checkpoint, device="cpu")
    for sample in found:
        knowledge = sample["doc"]["knowledge"]
        assert sample["arguments"][0][0].count(knowledge) == 1
        for (prompt, choice), (value, is_greedy) in zip(sample["arguments"], pairs(sample), strict=True):
            requests = [
                Instance("loglikelihood", {}, (text, choice), 0)
                for text in (prompt, prompt.replace(knowledge, ""))
            ]
            (own, own_greedy), (without, _) = plain.loglikelihood(requests, disable_tqdm=True)
            assert own != pytest.approx(without, abs=1e-3)
            assert value == pytest.approx(1.5 * own - 0.5 * without, abs=1e-3)
            assert is_greedy == own_greedy
        # The log-odds that the task reads are those of the contrasted choices.
        (yes, _), (no, _) = pairs(sample)
        assert sample["auroc"]["log_odds"] == pytest.approx(yes - no)


def test_a_gate_acts_on_both_prompts(checkpoint: str, evaluate: Evaluate) -> None:
    plain = load(checkpoint, scores="random:1")
    for sample in evaluate(load(checkpoint, scores="random:1", contrast=2)):
        knowledge = sample["doc"]["knowledge"]
        requests = [
            Instance("loglikelihood", {}, (text, choice), 0)
            for prompt, choice in sample["arguments"]
            for text in (prompt, prompt.replace(knowledge, ""))
        ]
        values = [value for value, _ in plain.loglikelihood(requests, disable_tqdm=True)]
        expected = [3 * values[n] - 2 * values[n + 1] for n in (0, 2)]
        assert [value for value, _ in pairs(sample)] == pytest.approx(expected, abs=1e-3)


def test_answers_in_the_cache_are_those_of_their_contrast(
    checkpoint: str, evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    original = GatedHF.loglikelihood

    def count(lm: GatedHF, requests: Any, **options: Any) -> Any:
        asked.append(len(requests))
        return original(lm, requests, **options)

    monkeypatch.setattr(GatedHF, "loglikelihood", count)
    cache = {"use_cache": str(tmp_path / "answers")}
    settings: list[tuple[dict[str, Any], Any]] = [
        ({}, None), ({"contrast": 0.5}, None), ({"contrast": 1}, None),
        ({"contrast": 1}, {"context_field": "question"}),
    ]  # fmt: skip

    def run(**options: Any) -> list[list[Any]]:
        return [
            [pairs(sample) for sample in evaluate(load(checkpoint, **own), metadata=metadata, **options)]
            for own, metadata in settings
        ]

    expected = run()
    assert len({str(samples) for samples in expected}) == len(settings)
    assert run(**cache) == expected
    # Each contrasted choice has one entry; those without the context have none.
    with SqliteDict(f"{cache['use_cache']}_rank0.db") as entries:
        assert len(entries) == len(settings) * 2 * LIMIT
    asked.clear()
    assert run(**cache) == expected and not asked


def test_what_has_no_context_or_no_log_likelihood_is_refused_before_it_runs(
    checkpoint: str, evaluate: Evaluate
) -> None:
    model = load(checkpoint, contrast=0.5)
    with pytest.raises(TaskError, match="use halueval_qa_logodds"):
        evaluate(model, "halueval_qa")
    with pytest.raises(TaskError, match=r"'halueval_qa_no_knowledge_logodds' does not say which field .* or leave contrast out"):  # fmt: skip
        evaluate(model, "halueval_qa_no_knowledge_logodds")
    with pytest.raises(TaskError, match=r"context_field=knowledge: .* does not show it"):
        evaluate(model, "halueval_qa_no_knowledge_logodds", {"context_field": "knowledge"})
    metadata = ("another task", 0, 1)
    with pytest.raises(GateError, match="must know the tasks of its requests"):
        load(checkpoint, contrast=0.5).loglikelihood([Instance("loglikelihood", {}, ("a", "b"), 0, metadata)])
    with pytest.raises(TaskError, match="'another task' generates text"):
        model.generate_until([Instance("generate_until", {}, ("a", {}), 0, metadata)])
    with pytest.raises(TaskError, match="'another task' is of type loglikelihood_rolling"):
        model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("a",), 0, metadata)])
    with pytest.raises(GateError, match="contrast=-1"):
        load(checkpoint, contrast=-1)


def test_a_prompt_that_does_not_have_the_documents_text_is_refused(
    checkpoint: str, evaluate: Evaluate
) -> None:
    tokenizer = factories.tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[-1].content | upper }}"
    model = load(checkpoint, contrast=0.5, tokenizer=tokenizer)
    with pytest.raises(
        TaskError, match=r"'halueval_qa_logodds', document 0: the prompt does not have the question"
    ):
        evaluate(model, apply_chat_template=True)


def test_an_answer_scored_after_no_prompt_has_no_context_to_lose(
    checkpoint: str, halueval_folder: str
) -> None:
    contrast = ContextContrast(Contrast(1.0))
    [name] = tasks = task_manager({"halueval_path": halueval_folder}).load([TASK])["tasks"]
    contrast.start_run(tasks.values())
    document = tasks[name].eval_docs[0]
    prompts = (tasks[name].doc_to_text(document), "")
    requests = [
        Instance("loglikelihood", document, (prompt, " Yes"), n, (name, 0, 1))
        for n, prompt in enumerate(prompts)
    ]
    plain = load(checkpoint).loglikelihood(requests, disable_tqdm=True)
    model = load(checkpoint, contrast=1)
    model.contrast = contrast
    found = model.loglikelihood(requests, disable_tqdm=True)
    assert found[1] == pytest.approx(plain[1]) and found[0] != pytest.approx(plain[0], abs=1e-3)


def test_only_the_document_at_hand_loses_its_context(halueval_folder: str) -> None:
    task = task_manager({"halueval_path": halueval_folder}).load([TASK])["tasks"][TASK]
    document = task.eval_docs[3]
    text = task.doc_to_text(document)
    without = text.replace(document["knowledge"], "")
    assert without_context(f"{text} Yes\n\n{text}", task, document, "knowledge") == f"{text} Yes\n\n{without}"


def test_results_files_name_the_contrast_and_leaderboards_show_it(
    checkpoint: str, whole_run: WholeRun, tmp_path: Path
) -> None:
    for name, arguments in {"plain": {}, "contrast": {"contrast": 0.5}}.items():
        tracker = EvaluationTracker(output_path=str(tmp_path / name))
        run = whole_run(load(checkpoint, **arguments), evaluation_tracker=tracker)
        samples = run.pop("samples")
        tracker.save_results_aggregated(results=run, samples=samples)
        tracker.save_results_samples(task_name=TASK, samples=samples[TASK])
    contrasted = read_run(tmp_path / "contrast")
    assert (contrasted.gate or {})["contrast"] == {"alpha": 0.5, "field": "knowledge"}
    made = leaderboard(tmp_path / "plain", tmp_path / "contrast")
    rows = [(row.label, row.method, row.gate) for row in made.task_leaderboards[0].rows]
    assert rows == [
        ("vanilla", "vanilla", ""),
        ("contrast (alpha=0.5)", "contrast", "contrast=0.5 against no knowledge"),
    ]
    assert not [warning for warning in made.warnings if "prompt" in warning or "different" in warning]
