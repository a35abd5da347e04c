"""Log-odds of yes against no in lmms-eval, against transformers' own logits, on both paths of the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_vision_models as factories_vlm
from scipy.special import logsumexp

from truthgate_eval.data.store import write_dataset
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.metrics import log_odds
from truthgate_eval.metrics.pope import SPLITS
from truthgate_eval.paths import shipped

SPELLINGS = [space + word for word in ("Yes", "yes", "No", "no") for space in ("", " ")]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """lmms-eval's tasks, with polls of eight questions about four images."""
    from lmms_eval.tasks import TaskManager

    rows = []
    for n in range(8):
        path = tmp_path / f"{n // 2}.png"
        factories_vlm.random_image(n // 2, (30 + 10 * (n // 2), 60)).save(path)
        rows.append({
            "question_id": n, "image": path.name, "question": f"Is there a thing {n} in the image?",
            "answer": "no" if n % 2 else "yes", "image_path": str(path),
        })  # fmt: skip
    write_dataset(tmp_path / "data" / "poll", dict.fromkeys(SPLITS, rows), source={})
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return TaskManager(include_path=str(shipped("tasks") / "lmms_eval"))


def evaluate(model: GatedVLM, manager: Any, *tasks: str) -> dict[str, Any]:
    from lmms_eval.evaluator import simple_evaluate

    run = simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0)
    assert run is not None
    return run


def load(folder: str, **arguments: Any) -> GatedVLM:
    return GatedVLM(folder, device="cpu", scores="none", batch_size=4, **arguments)


def by_hand(model: GatedVLM, question: str, image: Any) -> dict[str, tuple[float, int]]:
    """Log-probability of each spelling after the prompt, token by token, and its number of tokens."""
    prompt = model.vlm.prompt(f"{question}\nAnswer the question using a single word or phrase.", 1)
    found = {}
    for text in SPELLINGS:
        inputs = model.vlm.encode([prompt + text], [[image]])
        without = model.vlm.encode([prompt], [[image]])["input_ids"].shape[1]
        ids = inputs["input_ids"][0]
        with torch.no_grad():
            log_probs = torch.log_softmax(model.vlm.model(**inputs).logits[0].float(), dim=-1)
        own = [float(log_probs[i - 1, ids[i]]) for i in range(without, len(ids))]
        found[text] = (sum(own), len(own))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "off"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_log_odds_are_of_whole_words_and_in_the_results(
    name: str, engine: str, vlm_checkpoint: Callable[[str], str], manager: Any
) -> None:
    model = load(vlm_checkpoint(name), engine=engine)
    run = evaluate(model, manager, "poll_random", "poll_random_logodds")
    generating, reading = run["samples"]["poll_random"], run["samples"]["poll_random_logodds"]
    for asked, sample in zip(generating, reading, strict=True):
        assert asked["arguments"][0] == sample["arguments"][0]  # the text of the request
        n = asked["doc_id"]
        image = factories_vlm.random_image(n // 2, (30 + 10 * (n // 2), 60))
        words = by_hand(model, f"Is there a thing {n} in the image?", image)
        # The words have several tokens each: their sums and means differ.
        assert {count for _, count in words.values()} - {1}
        yes, no = (
            logsumexp([value for text, (value, _) in words.items() if text.strip().lower() == word])
            for word in ("yes", "no")
        )
        entry = sample["auroc"]
        assert entry["log_odds"] == pytest.approx(yes - no, abs=2e-3)
        assert entry["gold"] == ("no" if n % 2 else "yes") and entry["cluster"] == f"{n // 2}.png"
        assert sample["acc"]["score"] == float((yes >= no) == (entry["gold"] == "yes"))
        assert sample["acc"]["image"] == entry["cluster"]
    measured = log_odds.measure([sample["auroc"] for sample in reading])
    results = run["results"]["poll_random_logodds"]
    for metric in log_odds.METRICS:
        assert results[f"{metric},none"] == pytest.approx(measured[metric]), metric
    assert results["acc_stderr_clustered,none"] != "N/A"


@pytest.mark.slow
def test_other_tasks_keep_lmms_evals_mean_losses(vlm_checkpoint: Callable[[str], str], manager: Any) -> None:
    from lmms_eval.api.instance import Instance

    model = load(vlm_checkpoint("llava"))
    model.task_dict["t"] = {"test": [{}]}
    image = factories_vlm.random_image(0)
    question = "Is it?"
    asked = {}
    for losses in (None, "sum"):
        metadata = {"task": "t", "doc_id": 0, "repeats": 1, **({"losses": losses} if losses else {})}
        request = Instance("loglikelihood", (question, "Yes", lambda _: [image], 0, "t", "test"), 0, metadata)
        asked[losses] = model.loglikelihood([request])[0][0]
        keys = model.request_digest("loglikelihood", request, "model")
        asked[f"key of {losses}"] = keys
    tokens = model.vlm.new_tokens(model.vlm.prompt(question, 1), "Yes")
    assert tokens > 1 and asked["sum"] == pytest.approx(tokens * asked[None])
    assert asked["key of sum"] != asked["key of None"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "off"])
def test_yes_offset_raises_yes_and_is_recorded(
    engine: str, vlm_checkpoint: Callable[[str], str], manager: Any
) -> None:
    folder = vlm_checkpoint("llava")
    plain = evaluate(load(folder, engine=engine), manager, "poll_random", "poll_random_logodds")
    run = evaluate(load(folder, engine=engine, yes_offset="4"), manager, "poll_random", "poll_random_logodds")
    assert run["gate"]["yes_offset"] == 4.0 and "yes_offset" not in plain["gate"]
    before, after = (
        np.array([sample["auroc"]["log_odds"] for sample in one["samples"]["poll_random_logodds"]])
        for one in (plain, run)
    )
    # This tokenizer has letters: those of yes after the first one lose a little to the letters that are raised.
    assert np.all(after - before > 2) and np.all(after - before < 4.01)
    sure = evaluate(load(folder, engine=engine, yes_offset=1000), manager, "poll_random")
    answers = [sample["filtered_resps"][0] for sample in sure["samples"]["poll_random"]]
    assert all(text.strip()[:1] in ("Y", "y") for text in answers)
