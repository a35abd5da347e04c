"""Trains a small LLaVA in stages: first its vision tower, then, if asked for, the projector, then all.

The tower learns to name what is on an image, and the projector to turn the image into those words'
embeddings. Then the model learns to answer questions about images, and to describe them where the data has
descriptions. An interrupted run continues from its last checkpoint, which is at most a few minutes old.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from training.training_data import LabeledImage, TrainingConfig, TrainingExample
from truthgate_eval.metrics import yes_no
from truthgate_eval.packaged.scenes_llava import add_adapter, new_scenes_llava, save_weights

TOWER_BATCH_SIZE, TOWER_LEARNING_RATE = 64, 1e-3
ADAPTER_LEARNING_RATE = 3e-4
CHECKPOINT_EVERY = 50
_NEAR_EARLY_EVAL_EVERY = 10  # steps between evaluations where the early state is a few steps away
# (stage, finished steps, all steps, note)
ProgressCallback = Callable[[str, int, int, str], None]


def train_vision_tower(model: Any, processor: Any, config: TrainingConfig, report: ProgressCallback) -> float:
    """Train the vision tower, with a linear layer on its patches, to tell what is on an image.

    Returns:
        Accuracy over (image, name) pairs in the last tenth of the steps.
    """
    tower = model.model.vision_tower
    head = nn.Linear(tower.config.hidden_size, len(config.labels))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=TOWER_LEARNING_RATE, weight_decay=0.01)
    schedule = make_schedule(optimizer, config.tower_steps)
    accuracies = []
    for step in range(config.tower_steps):
        batch = config.tower_batch(step, TOWER_BATCH_SIZE)
        pixels = processor.image_processor([labeled.image for labeled in batch], return_tensors="pt")
        labels = torch.tensor([[float(name in labeled.names) for name in config.labels] for labeled in batch])
        with torch.autocast("cpu", torch.bfloat16):
            # What is on the image is on one of the patches.
            logits = head(tower(pixels["pixel_values"]).last_hidden_state[:, 1:]).amax(dim=1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        optimize([loss], optimizer, schedule, parameters)
        if step >= int(config.tower_steps * 0.9):
            accuracies.append(((logits > 0) == (labels > 0)).float().mean().item())
        report("vision tower", step + 1, config.tower_steps, f"loss {loss.item():.3f}")
    return sum(accuracies) / len(accuracies)


def align_projector(model: Any, processor: Any, config: TrainingConfig, report: ProgressCallback) -> None:
    """Train tower and projector so that image tokens are embeddings of the words for what is on the image.

    A word stands for its first token; the image tokens take turns among an image's names. A model that
    is trained on single words of answers hardly learns to look at the image without it.
    """
    inner = model.model
    tokens = [processor.tokenizer(f" {name}")["input_ids"][0] for name in config.labels]
    words = inner.language_model.embed_tokens.weight[tokens].detach()
    of_name = dict(zip(config.labels, words, strict=True))
    parameters = [*inner.vision_tower.parameters(), *inner.multi_modal_projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=TOWER_LEARNING_RATE, weight_decay=0.01)
    schedule = make_schedule(optimizer, config.align_steps)
    first = config.tower_steps
    for step in range(config.align_steps):
        batch = config.tower_batch(first + step, TOWER_BATCH_SIZE)
        pixels = processor.image_processor([labeled.image for labeled in batch], return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            patches = inner.vision_tower(pixels["pixel_values"]).last_hidden_state[:, 1:]
            found = inner.multi_modal_projector(patches).float()
        wanted = torch.stack([_turns(labeled, of_name, found.shape[1]) for labeled in batch])
        loss = (found - wanted).square().sum(-1).mean() / words.square().sum(-1).mean()
        optimize([loss], optimizer, schedule, parameters)
        report("projector", step + 1, config.align_steps, f"loss {loss.item():.3f}")


def _turns(labeled: LabeledImage, embeddings: dict[str, torch.Tensor], count: int) -> torch.Tensor:
    """The embeddings of an image's names in turn, [count, width]."""
    names = sorted(labeled.names)
    return torch.stack([embeddings[names[position % len(names)]] for position in range(count)])


def train(
    config: TrainingConfig,
    out: Path,
    report: ProgressCallback,
    *,
    eval_every: int = 50,
) -> None:
    """Train a model; `out/weights` gets its last state, `out/early` the first of `config.early_accuracy`.

    Args:
        config: The data and the number of steps.
        out: Folder. A run continues from `out/state.pt`, if that exists.
        report: Called after every step.
        eval_every: Steps between two evaluations on `config.eval_examples()`; fewer near the early state.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model, processor = new_scenes_llava()
    state_file = out / "state.pt"
    if not state_file.is_file():
        tower_accuracy = train_vision_tower(model, processor, config, report)
        report("vision tower", config.tower_steps, config.tower_steps, f"accuracy {tower_accuracy:.3f}")
        align_projector(model, processor, config, report)
    model = add_adapter(model)
    speed_up(model)
    parameters, optimizer = _make_optimizer(model, config)
    schedule = make_schedule(optimizer, config.steps)
    start = restore(state_file, model, optimizer, schedule)
    questions = config.eval_examples()
    batches = config.batches()
    note, last_accuracy, early = "", 0.0, out / "early"
    for step in range(start, config.steps):
        loss = example_loss(model, processor, batches(step))
        optimize([loss], optimizer, schedule, parameters)
        near = last_accuracy >= config.near_early and not early.exists()
        every = _NEAR_EARLY_EVAL_EVERY if near else eval_every
        if (step + 1) % every == 0 or step + 1 == config.steps:
            last_accuracy = accuracy(model, processor, questions)
            note = f", accuracy {last_accuracy:.3f}"
            if last_accuracy >= config.early_accuracy and not early.exists():
                save_weights(model, early)
        report("whole model", step + 1, config.steps, f"loss {loss.item():.3f}{note}")
        if (step + 1) % CHECKPOINT_EVERY == 0:
            save_checkpoint(state_file, step + 1, model, optimizer, schedule)
    save_weights(model, out / "weights")


def _make_optimizer(model: Any, config: TrainingConfig) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """The trained parameters of the second stage: the adapter, the vision tower and the projector."""
    inner = model.get_base_model().model
    vision = [*inner.vision_tower.parameters(), *inner.multi_modal_projector.parameters()]
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in vision:
        parameter.requires_grad_(True)
    groups = [
        {"params": adapter, "lr": ADAPTER_LEARNING_RATE},
        {"params": vision, "lr": config.vision_learning_rate},
    ]
    return [*adapter, *vision], torch.optim.AdamW(groups, weight_decay=0.0)


def speed_up(model: Any) -> None:
    """Cast the frozen weights once and use eager attention, with the same arithmetic.

    Autocast would cast the frozen weights to bfloat16 in every step. On sequences this short, eager attention
    is faster than flash attention on the CPU.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module.get_base_layer(), nn.Linear):
            module.get_base_layer().to(torch.bfloat16)
    model.get_base_model().set_attn_implementation("eager")


def example_loss(model: Any, processor: Any, examples: Sequence[TrainingExample]) -> torch.Tensor:
    """Mean cross-entropy over the tokens of the answers and the end-of-sequence tokens after them."""
    prompts = [prompt(processor, example.question) for example in examples]
    end = processor.tokenizer.eos_token
    texts = [start + example.answer + end for start, example in zip(prompts, examples, strict=True)]
    inputs = _make_inputs(processor, texts, examples)
    tokens = inputs["input_ids"]
    lengths = [
        len(processor.tokenizer(example.answer + end, add_special_tokens=False)["input_ids"])
        for example in examples
    ]
    ends = inputs["attention_mask"].sum(dim=1)
    is_target = torch.zeros_like(tokens, dtype=torch.bool)
    for row, (stop, length) in enumerate(zip(ends.tolist(), lengths, strict=True)):
        is_target[row, stop - length : stop] = True
    with torch.autocast("cpu", torch.bfloat16):
        base = model.get_base_model()
        hidden = base.model(**inputs, use_cache=False).last_hidden_state
        # Only at the targets: the 49,153 outputs of the language model head cost more than four layers.
        logits = base.lm_head(hidden[:, :-1][is_target[:, 1:]])
    return nn.functional.cross_entropy(logits.float(), tokens[is_target])


@torch.no_grad()
def accuracy(model: Any, processor: Any, examples: Sequence[TrainingExample], batch_size: int = 64) -> float:
    """Share of yes/no questions whose right answer has a higher logit than the wrong one."""
    first_tokens = [processor.tokenizer(word.capitalize())["input_ids"][0] for word in yes_no.YES_NO]
    predictions: list[yes_no.Prediction] = []
    for begin in range(0, len(examples), batch_size):
        batch = examples[begin : begin + batch_size]
        inputs = _make_inputs(processor, [prompt(processor, example.question) for example in batch], batch)
        ends = inputs["attention_mask"].sum(dim=1) - 1
        with torch.autocast("cpu", torch.bfloat16):
            base = model.get_base_model()
            hidden = base.model(**inputs, use_cache=False).last_hidden_state
            logits = base.lm_head(hidden[torch.arange(len(batch)), ends])[:, first_tokens]
        answers = [yes_no.YES_NO[index] for index in logits.argmax(dim=1).tolist()]
        predictions += zip((example.answer.lower() for example in batch), answers, strict=True)
    return yes_no.accuracy(predictions)


def prompt(processor: Any, question: str) -> str:
    """A question about an image in the chat template, up to where the answer begins."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    message = {"role": "user", "content": content}
    return processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)


def _make_inputs(processor: Any, texts: list[str], examples: Sequence[TrainingExample]) -> Any:
    images = [[example.image] for example in examples]
    return processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")


def make_schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over a twentieth of the steps, then cosine decay to 0."""
    warm_up = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def optimize(
    losses: Iterable[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    parameters: Sequence[nn.Parameter],
) -> float:
    """One step of the optimiser on the sum of some losses, with gradients clipped to a norm of 1.

    Each loss is computed when the one before it has been differentiated, so that memory holds one at a time.

    Returns:
        The sum.
    """
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for loss in losses:
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()
    return total


def _trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def save_checkpoint(file: Path, step: int, model: Any, optimizer: Any, schedule: Any) -> None:
    """Write the trained weights and the optimiser's state, atomically."""
    partial = file.with_suffix(".partial")
    states = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save({"step": step, "weights": _trained(model), **states}, partial)
    os.replace(partial, file)


def restore(file: Path, model: Any, optimizer: Any, schedule: Any) -> int:
    """Load a checkpoint, if there is one; returns the number of finished steps."""
    if not file.is_file():
        return 0
    state = torch.load(file, weights_only=True)
    with torch.no_grad():
        for name, value in _trained(model).items():
            value.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["step"])
