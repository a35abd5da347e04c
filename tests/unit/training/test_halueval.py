"""The training of the text child: its documents, its loss, and a run that is interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from training import halueval
from training import train as training
from training.halueval import FIRST_ROW, HaluEvalTraining, Judgement, _batch, _inputs

CONFIG = HaluEvalTraining(seed=0, batch_size=3, steps=4)


class Letters:
    """A tokenizer whose tokens are characters."""

    pad_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def test_the_targets_are_the_answers_tokens() -> None:
    tokens, targets, mask = _inputs(Letters(), [("abc", "de"), ("a", "b")])
    assert tokens.tolist() == [[97, 98, 99, 100, 101], [97, 98, 0, 0, 0]]
    assert tokens[targets].tolist() == [100, 101, 98]
    assert mask.sum(dim=1).tolist() == [5, 2]


def test_every_document_comes_once_before_any_comes_again() -> None:
    documents = [Judgement(str(number), " Yes") for number in range(12)]
    seen = [own.prompt for step in range(4) for own in _batch(documents, CONFIG, step)]
    assert sorted(seen) == sorted(own.prompt for own in documents) and seen != sorted(seen)
    again = [own.prompt for step in range(4, 8) for own in _batch(documents, CONFIG, step)]
    assert sorted(again) == sorted(seen) and again != seen


def test_the_parts_of_a_step_weigh_as_many_judgements_as_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def longest(_model: Any, _tokenizer: Any, part: list[Judgement]) -> torch.Tensor:
        asked.append([len(own.prompt) for own in part])
        return torch.tensor(float(sum(asked[-1])) / len(part))

    monkeypatch.setattr(halueval, "judgement_loss", longest)
    lengths = [7, 1, 5, 3, 6, 2]
    parts = list(halueval.step_losses(None, None, [Judgement("x" * length, " Yes") for length in lengths]))
    assert asked == [[1, 2, 3, 5], [6, 7]]
    assert sum(parts).item() == pytest.approx(sum(lengths) / len(lengths))


def test_a_step_of_the_optimizer_takes_the_gradient_of_all_parts() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = training.make_schedule(optimizer, 1)
    total = training.optimize((weight * factor + 1 for factor in (0.25, 0.5)), optimizer, schedule, [weight])
    assert weight.item() == -0.75 and total == 2.0


@pytest.mark.real
@pytest.mark.slow
def test_the_prompts_are_those_of_the_task_and_of_no_row_that_is_evaluated() -> None:
    trained, measured = halueval.judgements()
    assert len(measured) == halueval.EVAL_ROWS and len(trained) == 10000 - FIRST_ROW - halueval.EVAL_ROWS
    task = halueval.load_tasks([halueval.TASK], {})[halueval.TASK]
    left = {task.doc_to_text(doc) for doc in task.test_docs() if doc["row"] < FIRST_ROW}
    assert not left & {own.prompt for own in (*trained, *measured)}
    assert {own.answer for own in trained} == {" Yes", " No"}
    assert trained[0].prompt.endswith("Judgement:")


@pytest.mark.real
@pytest.mark.slow
def test_an_interrupted_training_continues_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halueval, "CHECKPOINT_EVERY", 2)
    short = [Judgement(f"Is {number} even?", " Yes" if number % 2 == 0 else " No") for number in range(12)]
    monkeypatch.setattr(halueval, "judgements", lambda: (short, short[:4]))

    def quiet(*_: Any) -> None:
        return None

    def stop(_stage: str, step: int, *_: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    halueval.train_text(CONFIG, tmp_path / "whole", quiet)
    with pytest.raises(KeyboardInterrupt):
        halueval.train_text(CONFIG, tmp_path / "stopped", stop)
    assert not (tmp_path / "stopped" / "adapter").exists()
    halueval.train_text(CONFIG, tmp_path / "stopped", quiet)
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()
    config = json.loads((tmp_path / "whole" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert str(tmp_path) not in json.dumps(config)


@pytest.mark.real
@pytest.mark.slow
def test_the_loss_is_that_of_the_answers_tokens_alone() -> None:
    """Compared with the model's own logits, one document at a time."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

    base = resolve_smollm2(SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(base)
    loaded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(loaded, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    batch = [
        Judgement("Is water wet? Judgement:", " Yes"),
        Judgement("Is the sun cold today? Judgement:", " No"),
    ]
    losses, count = 0.0, 0
    with torch.no_grad():
        ours = halueval.judgement_loss(model, tokenizer, batch).item()
        for own in batch:
            prompt = tokenizer(own.prompt)["input_ids"]
            answer = tokenizer(own.answer)["input_ids"] + [tokenizer.eos_token_id]
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(torch.tensor([prompt + answer])).logits[0].float()
            losses += torch.nn.functional.cross_entropy(
                logits[len(prompt) - 1 : -1], torch.tensor(answer), reduction="sum"
            ).item()
            count += len(answer)
    assert ours == pytest.approx(losses / count, rel=0.01)
    assert training.CHECKPOINT_EVERY == halueval.CHECKPOINT_EVERY
