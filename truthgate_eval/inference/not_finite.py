"""Which module of a model gives NaN or infinite values first.

Answers are looked at, not activations: only where one is NaN does the model run again, with hooks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from truthgate_eval.errors import ModelError


class NotFiniteError(ModelError):
    """A model gives NaN; the message names the first module that gives such values."""


def not_finite_error(model: nn.Module, run: Callable[[], object]) -> NotFiniteError:
    """The error for a model whose answers are NaN, with the name of the module where that begins.

    Args:
        model: The model.
        run: Runs the pass that gave NaN once more.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> nn.init.constant_(model[0].weight, float("nan")).shape
        torch.Size([2, 2])
        >>> str(not_finite_error(model, lambda: model(torch.ones(1, 2))))[:33]
        '0 (Linear) gives NaN or infinite '
    """
    found = first_not_finite(model, run)
    return NotFiniteError(
        f"{found or 'the model'} gives NaN or infinite values, so no answer counts: check the checkpoint, "
        "load the model in float32 or bfloat16 (dtype=), or gate it less strongly"
    )


def check_answers(
    model: nn.Module, answers: Iterable[tuple[float, bool]], run: Callable[[int], object]
) -> None:
    """Raise `not_finite_error` where a log-likelihood, or a loss, is NaN.

    Args:
        model: The model.
        answers: The numbers, each with whether greedy decoding gives the answer.
        run: Runs the pass that gave the answer of this index once more.

    Raises:
        NotFiniteError: A number is NaN.
    """
    wrong = next((i for i, (value, _) in enumerate(answers) if math.isnan(value)), None)
    if wrong is not None:
        raise not_finite_error(model, lambda: run(wrong))


def first_not_finite(model: nn.Module, run: Callable[[], object]) -> str | None:
    """Name and class of the first module whose output is not finite; None where all are.

    Modules are asked in the order in which they end, so that an inner one comes before what it is in.

    Args:
        model: The model.
        run: Runs it once.
    """
    found: list[str] = []

    def note(name: str, module: nn.Module, _args: Any, output: Any) -> None:
        if not found and not all(bool(torch.isfinite(values).all()) for values in _floats(output)):
            found.append(f"{name} ({type(module).__name__})")

    hooks = [
        module.register_forward_hook(functools.partial(note, name)) for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _floats(output: Any) -> Iterable[torch.Tensor]:
    """The floating-point tensors of a module's output: one, or several in a tuple or a mapping."""
    values = output.values() if isinstance(output, dict) else output
    for value in (values,) if isinstance(values, torch.Tensor) or values is None else values:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            yield value
