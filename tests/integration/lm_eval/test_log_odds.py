"""Log-odds of Yes against No in lm-eval: read after the prompt of the generating task, and shifted by yes_offset."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import transformers as hf
from helpers import tiny_models as factories
from lm_eval.tasks import TaskManager

from truthgate_eval.data import halueval
from truthgate_eval.harness.lm_eval.model import GatedHF
from truthgate_eval.metrics import log_odds

TASKS = ["halueval_qa", "halueval_qa_logodds"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama whose tokenizer has a token for each spelling of yes and of no."""
    folder = tmp_path_factory.mktemp("words")
    factories.save_tiny_checkpoint(folder)
    tokenizer = factories.tiny_tokenizer()
    tokenizer.add_tokens([" Yes", " No", "Yes", "No"])
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@functools.cache
def task_manager(data: str) -> TaskManager:
    return TaskManager(metadata={"halueval_path": data})


def evaluate(model: GatedHF, data: str, tasks: list[str] = TASKS, **options: Any) -> dict[str, Any]:
    run = lm_eval.simple_evaluate(
        model=model, tasks=tasks, limit=options.pop("limit", 8), task_manager=task_manager(data),
        bootstrap_iters=0, **options,
    )  # fmt: skip
    assert run is not None
    return run


def load(folder: str, **arguments: Any) -> GatedHF:
    return GatedHF(folder, scores="none", device="cpu", batch_size=4, **arguments)


def entries(run: dict[str, Any]) -> list[dict[str, Any]]:
    samples = sorted(run["samples"]["halueval_qa_logodds"], key=lambda sample: sample["doc_id"])
    return [sample["auroc"] for sample in samples]


@pytest.mark.parametrize("options", [
    {}, {"num_fewshot": 1}, {"apply_chat_template": True},
    {"apply_chat_template": True, "num_fewshot": 1, "fewshot_as_multiturn": True},
    {"apply_chat_template": True, "system_instruction": "Be honest."},
])  # fmt: skip
def test_the_prompt_is_that_of_the_generating_task(
    options: dict[str, Any], words: str, halueval_folder: str
) -> None:
    run = evaluate(load(words), halueval_folder, limit=3, **options)
    generating, reading = (run["samples"][task] for task in TASKS)
    delimiter = "" if options.get("apply_chat_template") else " "
    for asked, scored in zip(generating, reading, strict=True):
        assert asked["doc"] == scored["doc"]
        ((prompt, _),) = asked["arguments"]
        assert scored["arguments"] == [(prompt, f"{delimiter}Yes"), (prompt, f"{delimiter}No")]


@pytest.mark.parametrize("engine", ["auto", "off"])
def test_log_odds_equal_transformers_own_and_are_kept_with_the_right_answer(
    engine: str, words: str, halueval_folder: str
) -> None:
    run = evaluate(load(words, engine=engine), halueval_folder, TASKS[1:])
    model = hf.AutoModelForCausalLM.from_pretrained(words).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(words)
    yes, no = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" Yes", " No"))
    assert len(yes) == len(no) == 1
    documents = halueval.documents("qa", halueval_path=halueval_folder)
    found = sorted(run["samples"]["halueval_qa_logodds"], key=lambda sample: sample["doc_id"])
    for document, sample in zip(documents, found, strict=False):
        prompt = sample["arguments"][0][0]
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        expected = float(logits[yes[0]] - logits[no[0]])
        entry = sample["auroc"]
        assert entry["log_odds"] == pytest.approx(expected, abs=1e-4)
        assert entry["gold"] == document["hallucinated"]
        assert sample["acc"] == float((expected >= 0) == (entry["gold"] == "yes"))
        assert tuple(sample["f1"]) == (entry["gold"], "yes" if expected >= 0 else "no")
    results = run["results"]["halueval_qa_logodds"]
    measured = log_odds.measure([sample["auroc"] for sample in found])
    for name in log_odds.METRICS:
        assert results[f"{name},none"] == pytest.approx(measured[name], nan_ok=True), name
    # lm-eval's own accuracy of the same choices, which takes the largest log-likelihood.
    own = [max(range(2), key=lambda i, s=sample: s["filtered_resps"][i][0]) for sample in found]
    golds = [["yes", "no"].index(sample["auroc"]["gold"]) for sample in found]
    assert results["acc,none"] == sum(a == b for a, b in zip(own, golds, strict=True)) / len(found)


def test_documents_with_one_question_are_one_cluster(words: str, tmp_path: Path) -> None:
    row = '{"knowledge": "k", "question": "q%d", "right_answer": "a%d", "hallucinated_answer": "b%d"}\n'
    text = "".join(row % (i // 2, i, i) for i in range(6))
    (tmp_path / "qa_data.jsonl").write_text(text)
    found = entries(evaluate(load(words), str(tmp_path), TASKS[1:], limit=6))
    assert len({entry["cluster"] for entry in found}) == 3


@pytest.mark.parametrize("engine", ["auto", "off"])
def test_yes_offset_shifts_all_log_odds_by_as_much_and_answers_with_them(
    engine: str, words: str, halueval_folder: str
) -> None:
    model = load(words, engine=engine)
    plain = evaluate(model, halueval_folder)
    shifted_model = load(words, engine=engine, yes_offset=2.5)
    shifted = evaluate(shifted_model, halueval_folder)
    differences = [
        b["log_odds"] - a["log_odds"] for a, b in zip(entries(plain), entries(shifted), strict=True)
    ]
    assert differences == pytest.approx([2.5] * 8, abs=1e-4)
    results, before = (run["results"]["halueval_qa_logodds"] for run in (shifted, plain))
    assert results["auroc,none"] == before["auroc,none"]
    assert results["log_loss_offset,none"] == pytest.approx(before["log_loss_offset,none"], nan_ok=True)
    assert shifted_model.get_model_info()["gate"]["yes_offset"] == 2.5
    # So large an offset decides the answer that is generated, in both paths.
    sure = evaluate(load(words, engine=engine, yes_offset=1000), halueval_folder, TASKS[:1], limit=3)
    # The tokenizer has no token for the whole of "yes": its first letter is among the tokens of yes.
    assert all(sample["resps"][0][0].strip()[:1] in ("Y", "y") for sample in sure["samples"]["halueval_qa"])
    assert not any(
        sample["resps"][0][0].strip()[:1] in ("Y", "y") for sample in plain["samples"]["halueval_qa"]
    )
