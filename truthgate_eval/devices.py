"""Which device a user's word means, and where a model's weights are."""

from __future__ import annotations

import torch
from torch import nn

from truthgate_eval.errors import ModelError


def find_device(name: str | None, *, harness_default: str | None = None) -> torch.device:
    """The device by that name, or the best one there is.

    Args:
        name: Such as `cpu`, `cuda` or `cuda:0`; None takes CUDA if there is one, else the CPU.
        harness_default: What a harness's command line passes where its user named no device (lm-eval:
            `cuda:0`); without CUDA it means the same as None.

    Raises:
        ModelError: There is no such device here.
    """
    if name is None or (name == harness_default and not torch.cuda.is_available()):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device={name} is no device of torch; write cpu, cuda or cuda:0") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device={name}, but torch finds no CUDA device here; use device=cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"device={name}, but there are only {torch.cuda.device_count()} CUDA devices here")
    return found


def weights_device(module: nn.Module) -> torch.device:
    """Device of a module's weights; the CPU where they are offloaded and have no device yet."""
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device
