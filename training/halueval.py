"""Trains a text child of SmolLM2-135M-Instruct: LoRA on the question whether an answer is hallucinated.

The prompts are those of the task `halueval_qa`, word for word. An interrupted run continues from its last
checkpoint.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.train import (
    ADAPTER_LEARNING_RATE,
    CHECKPOINT_EVERY,
    ProgressCallback,
    make_schedule,
    optimize,
    restore,
    save_checkpoint,
    speed_up,
)
from truthgate_eval.files import replace_folder
from truthgate_eval.harness.lm_eval.task_index import load_tasks
from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

TASK = "halueval_qa"
# Rows of HaluEval's file from this one on are trained on. Those before are left to probe and to evaluate.
FIRST_ROW = 6000
# The first of these measure the progress instead.
EVAL_ROWS = 200
# So that two states of the adapter have less than 10 MB together.
RANK = 8
# Judgements that are differentiated at a time.
_PART = 4


@dataclass(frozen=True)
class HaluEvalTraining:
    """The length of a training on HaluEval.

    Attributes:
        seed: Of the adapter's weights and of the order of documents.
        batch_size: Documents in a step.
        steps: Number of steps.
        early_accuracy: Accuracy on the documents that measure progress at which the early state is saved.
        data: Name of the data.
    """

    seed: int
    batch_size: int
    steps: int
    early_accuracy: float = 0.66
    data: str = "halueval"


@dataclass(frozen=True)
class Judgement:
    """A prompt of the task, and its answer as the model writes it."""

    prompt: str
    answer: str


def judgements() -> tuple[list[Judgement], list[Judgement]]:
    """What is trained on, and what measures the progress.

    Raises:
        DataError: HaluEval is not installed.
    """
    task = load_tasks([TASK], {})[TASK]
    made = [
        Judgement(task.doc_to_text(doc), f" {task.doc_to_target(doc)}")
        for doc in task.test_docs()
        if doc["row"] >= FIRST_ROW
    ]
    return made[EVAL_ROWS:], made[:EVAL_ROWS]


def train_text(
    config: HaluEvalTraining, out: Path, report: ProgressCallback, *, eval_every: int = 10
) -> None:
    """Train the adapter; `out/adapter` gets its last state, `out/early` the first of `config.early_accuracy`.

    Args:
        config: The length of the run.
        out: Folder. A run continues from `out/state.pt`, if that exists.
        report: Called after every step.
        eval_every: Steps between two evaluations; every one until the early state is found.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    base = resolve_smollm2(SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(base)
    loaded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(loaded, lora)
    speed_up(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=ADAPTER_LEARNING_RATE, weight_decay=0.0)
    schedule = make_schedule(optimizer, config.steps)
    state_file = out / "state.pt"
    start = restore(state_file, model, optimizer, schedule)
    trained_on, measured_on = judgements()
    note = ""
    for step in range(start, config.steps):
        batch = _batch(trained_on, config, step)
        loss = optimize(step_losses(model, tokenizer, batch), optimizer, schedule, parameters)
        # Near the early state the accuracy rises by ten points in a step.
        every = eval_every if (out / "early").exists() else 1
        if (step + 1) % every == 0 or step + 1 == config.steps:
            reached = accuracy(model, tokenizer, measured_on)
            note = f", accuracy {reached:.3f}"
            if reached >= config.early_accuracy and not (out / "early").exists():
                save_adapter(model, config, out / "early", reached)
        report("judgements", step + 1, config.steps, f"loss {loss:.3f}{note}")
        if (step + 1) % CHECKPOINT_EVERY == 0:
            save_checkpoint(state_file, step + 1, model, optimizer, schedule)
    save_adapter(model, config, out / "adapter", accuracy(model, tokenizer, measured_on))


def step_losses(model: Any, tokenizer: Any, batch: Sequence[Judgement]) -> Iterator[torch.Tensor]:
    """A step's loss in parts, of judgements of like length: less padding, and less memory."""
    ordered = sorted(batch, key=lambda own: len(own.prompt))
    for begin in range(0, len(ordered), _PART):
        part = ordered[begin : begin + _PART]
        yield judgement_loss(model, tokenizer, part) * (len(part) / len(ordered))


def judgement_loss(model: Any, tokenizer: Any, batch: Sequence[Judgement]) -> torch.Tensor:
    """Mean cross-entropy over the answers' tokens and the end-of-sequence tokens after them."""
    tokens, targets, mask = _inputs(
        tokenizer, [(own.prompt, own.answer + tokenizer.eos_token) for own in batch]
    )
    with torch.autocast("cpu", torch.bfloat16):
        hidden = _decoder(model)(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
        # Only at the targets, since most of the 49,152 outputs are of no use.
        logits = _head(model)(hidden[:, :-1][targets[:, 1:]])
    return nn.functional.cross_entropy(logits.float(), tokens[targets])


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, documents: Sequence[Judgement], batch_size: int = 32) -> float:
    """Share of documents whose right answer's first token has a higher logit than the wrong one's."""
    words = (" Yes", " No")
    first = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
    right = 0
    ordered = sorted(documents, key=lambda own: len(own.prompt))
    for begin in range(0, len(ordered), batch_size):
        batch = ordered[begin : begin + batch_size]
        tokens, targets, mask = _inputs(tokenizer, [(own.prompt, own.answer) for own in batch])
        with torch.autocast("cpu", torch.bfloat16):
            hidden = _decoder(model)(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
            before = targets.float().argmax(dim=1) - 1
            logits = _head(model)(hidden[torch.arange(len(batch)), before])[:, first]
        answers = [words[index] for index in logits.argmax(dim=1).tolist()]
        right += sum(answer == own.answer for answer, own in zip(answers, batch, strict=True))
    return right / len(documents)


def save_adapter(model: Any, config: HaluEvalTraining, folder: Path, reached: float) -> None:
    """Write the adapter in PEFT's format, in bfloat16, with how it was trained."""
    from safetensors.torch import load_file, save_file

    with replace_folder(folder) as partial:
        model.save_pretrained(partial)
        file = partial / "adapter_model.safetensors"
        save_file({name: value.to(torch.bfloat16) for name, value in load_file(file).items()}, file)
        # PEFT writes the folder that the base was loaded from.
        settings = json.loads((partial / "adapter_config.json").read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
        (partial / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        training = {**asdict(config), "task": TASK, "rows_from": FIRST_ROW, "accuracy": reached}
        (partial / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")


def _batch(documents: Sequence[Judgement], config: HaluEvalTraining, step: int) -> list[Judgement]:
    """The documents of a step: every one comes once before any comes again."""
    chosen = []
    for number in range(step * config.batch_size, (step + 1) * config.batch_size):
        epoch, place = divmod(number, len(documents))
        order = random.Random(f"{config.seed} {epoch}").sample(range(len(documents)), len(documents))
        chosen.append(documents[order[place]])
    return chosen


def _inputs(
    tokenizer: Any, texts: Sequence[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, which of them are of the second texts, and the attention mask: [texts, tokens] each."""
    pairs = [
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)]
        for prompt, answer in texts
    ]
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    tokens = torch.full((len(pairs), longest), tokenizer.pad_token_id)
    targets, mask = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens)
    for row, (prompt, answer) in enumerate(pairs):
        length = len(prompt) + len(answer)
        tokens[row, :length] = torch.tensor(prompt + answer)
        targets[row, len(prompt) : length] = True
        mask[row, :length] = 1
    return tokens, targets, mask


def _decoder(model: Any) -> Any:
    return model.get_base_model().model


def _head(model: Any) -> Any:
    return model.get_base_model().lm_head
