"""Trains a child in two stages: the vision tower names objects, then the whole learns to describe and answer.

The state is kept every few minutes, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from training.training_data import TrainingConfig, TrainingExample, eval_set
from truthgate_eval.packaged.scenes import OBJECTS, make_scene
from truthgate_eval.packaged.scenes_llava import add_adapter, new_scenes_llava, save_weights

TOWER_STEPS, TOWER_BATCH, TOWER_RATE = 2000, 64, 1e-3
ADAPTER_RATE, VISION_RATE = 3e-4, 6e-4
KEEP_EVERY = 50
EXAM_SCENES = 40
# From this share of right answers on it takes few steps to the early state: there exams are close.
_NEAR, _CLOSE = 0.6, 10
Report = Callable[[str, int, int, str], None]


def name_objects(model: Any, processor: Any, course: TrainingConfig, report: Report) -> float:
    """Train the vision tower, with a linear layer on its patches, to tell which objects are there.

    Returns:
        Share of (picture, object) pairs told rightly in the last tenth of the steps.
    """
    tower = model.model.vision_tower
    head = nn.Linear(tower.config.hidden_size, len(OBJECTS))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=TOWER_RATE, weight_decay=0.01)
    schedule = _schedule(optimizer, TOWER_STEPS)
    right = []
    for step in range(TOWER_STEPS):
        # Numbers far from the lessons': what the tower was shown is not shown again.
        first = 20_000_000 + step * TOWER_BATCH
        scenes = [make_scene(course.part, first + n, tail=course.tail) for n in range(TOWER_BATCH)]
        pixels = processor.image_processor([scene.image for scene in scenes], return_tensors="pt")
        there = torch.tensor([[float(name in scene.objects) for name in OBJECTS] for scene in scenes])
        with torch.autocast("cpu", torch.bfloat16):
            # An object is there if one of the patches shows it.
            seen = head(tower(pixels["pixel_values"]).last_hidden_state[:, 1:]).amax(dim=1)
        loss = nn.functional.binary_cross_entropy_with_logits(seen.float(), there)
        _step(loss, optimizer, schedule, parameters)
        if step >= int(TOWER_STEPS * 0.9):
            right.append(((seen > 0) == (there > 0)).float().mean().item())
        report("naming objects", step + 1, TOWER_STEPS, f"loss {loss.item():.3f}")
    return sum(right) / len(right)


def train(
    course: TrainingConfig, out: Path, report: Report, *, exam_every: int = 50, early_at: float = 0.85
) -> None:
    """Train a child; `out/weights` has the last state, `out/early` the first that passes `early_at`.

    Args:
        course: What it is taught.
        out: Folder; `state.pt` in it is where a stopped run goes on.
        report: Called with stage, step, steps and a note.
        exam_every: Steps between two exams of `EXAM_SCENES` pictures' polls; fewer near the early state.
        early_at: Accuracy in an exam from which the state is kept as the early one.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(course.seed)
    model, processor = new_scenes_llava()
    state_file = out / "state.pt"
    state = torch.load(state_file, weights_only=True) if state_file.is_file() else None
    if state is None:
        named = name_objects(model, processor, course, report)
        report("naming objects", TOWER_STEPS, TOWER_STEPS, f"{named:.3f} of objects told rightly")
    model = add_adapter(model)
    _make_fast(model)
    inner = model.get_base_model().model
    seeing = [*inner.vision_tower.parameters(), *inner.multi_modal_projector.parameters()]
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in seeing:
        parameter.requires_grad_(True)
    groups = [{"params": adapter, "lr": ADAPTER_RATE}, {"params": seeing, "lr": VISION_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = _schedule(optimizer, course.steps)
    start = 0 if state is None else _restore(state, model, optimizer, schedule)
    questions = eval_set(course.part, course.tail, scenes=EXAM_SCENES)
    lessons = course.batches()
    note, share, early = "", 0.0, out / "early"
    for step in range(start, course.steps):
        loss = example_loss(model, processor, lessons(step))
        _step(loss, optimizer, schedule, [*adapter, *seeing])
        every = _CLOSE if share >= _NEAR and not early.exists() else exam_every
        if (step + 1) % every == 0 or step + 1 == course.steps:
            share = accuracy(model, processor, questions)
            note = f", exam {share:.3f}"
            if share >= early_at and not early.exists():
                save_weights(model, early)
        report("describing and answering", step + 1, course.steps, f"loss {loss.item():.3f}{note}")
        if (step + 1) % KEEP_EVERY == 0:
            _keep(state_file, step + 1, model, optimizer, schedule)
    save_weights(model, out / "weights")


def _make_fast(model: Any) -> None:
    """Do once what every step would do again, in the same arithmetic.

    Autocast turns the frozen weights into bfloat16 at every step; and on sequences this short plain
    attention is faster than the CPU's flash attention.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module.get_base_layer(), nn.Linear):
            module.get_base_layer().to(torch.bfloat16)
    model.get_base_model().set_attn_implementation("eager")


def example_loss(model: Any, processor: Any, lessons: Sequence[TrainingExample]) -> torch.Tensor:
    """Mean loss of the answers' tokens and of the token that ends them."""
    prompts = [prompt(processor, lesson.question) for lesson in lessons]
    end = processor.tokenizer.eos_token
    texts = [start + lesson.answer + end for start, lesson in zip(prompts, lessons, strict=True)]
    inputs = _inputs(processor, texts, lessons)
    tokens = inputs["input_ids"]
    lengths = [
        len(processor.tokenizer(lesson.answer + end, add_special_tokens=False)["input_ids"])
        for lesson in lessons
    ]
    ends = inputs["attention_mask"].sum(dim=1)
    taught = torch.zeros_like(tokens, dtype=torch.bool)
    for row, (stop, length) in enumerate(zip(ends.tolist(), lengths, strict=True)):
        taught[row, stop - length : stop] = True
    with torch.autocast("cpu", torch.bfloat16):
        base = model.get_base_model()
        hidden = base.model(**inputs, use_cache=False).last_hidden_state
        # The head runs on what is taught only: its 49,153 outputs cost more than four layers.
        logits = base.lm_head(hidden[:, :-1][taught[:, 1:]])
    return nn.functional.cross_entropy(logits.float(), tokens[taught])


@torch.no_grad()
def accuracy(model: Any, processor: Any, polls: Sequence[TrainingExample], batch: int = 64) -> float:
    """Share of polls to which the right one of yes and no is the likelier answer."""
    first = [processor.tokenizer(word)["input_ids"][0] for word in ("Yes", "No")]
    right = 0
    for begin in range(0, len(polls), batch):
        some = polls[begin : begin + batch]
        inputs = _inputs(processor, [prompt(processor, poll.question) for poll in some], some)
        ends = inputs["attention_mask"].sum(dim=1) - 1
        with torch.autocast("cpu", torch.bfloat16):
            base = model.get_base_model()
            hidden = base.model(**inputs, use_cache=False).last_hidden_state
            logits = base.lm_head(hidden[torch.arange(len(some)), ends])[:, first]
        said = logits.argmax(dim=1).tolist()
        right += sum(("Yes", "No")[place] == poll.answer for place, poll in zip(said, some, strict=True))
    return right / len(polls)


def prompt(processor: Any, question: str) -> str:
    """A question about a picture in the chat format, up to where the answer begins."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    message = {"role": "user", "content": content}
    return processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)


def _inputs(processor: Any, texts: list[str], lessons: Sequence[TrainingExample]) -> Any:
    pictures = [[lesson.image] for lesson in lessons]
    return processor(text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt")


def _schedule(optimizer: Any, steps: int) -> Any:
    """A short rise, then a cosine down to nothing."""
    rise = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _step(loss: torch.Tensor, optimizer: Any, schedule: Any, parameters: Sequence[Any]) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


def _trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _keep(file: Path, step: int, model: Any, optimizer: Any, schedule: Any) -> None:
    partial = file.with_suffix(".partial")
    states = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save({"step": step, "weights": _trained(model), **states}, partial)
    os.replace(partial, file)


def _restore(state: dict[str, Any], model: Any, optimizer: Any, schedule: Any) -> int:
    with torch.no_grad():
        for name, value in _trained(model).items():
            value.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["step"])
