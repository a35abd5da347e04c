"""One layer's gate, by the features of its output projection: as a hook, or in the projection's weights."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from truthgate_eval.devices import weights_device
from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import Site
from truthgate_eval.gating.dry_pass import linear_shape
from truthgate_eval.gating.positions import GatedPositions
from truthgate_eval.gating.tensor_parallel import is_distributed, own_input_features


@dataclass(frozen=True, eq=False)
class LayerGate:
    """What changes the features of one output projection W_o.

    Attributes:
        site: `post` changes the projection's output, `pre` its input.
        factors: float32 [heads * width]; each feature's head's factor.
        shift: float32 [heads * width], added after the factors, at `pre` only; or None.
    """

    site: Site
    factors: torch.Tensor
    shift: torch.Tensor | None

    def fold(self, module: nn.Module) -> None:
        """Put it into the weights of a module that `check_foldable` has passed."""
        weight = module.get_parameter("weight")
        if self.shift is not None:
            _add_to_bias(module, self.shift)  # by the weights without factors: the shift comes after those
        factors = self.factors.to(weight.device)
        # The weight of nn.Linear is (out, in), that of Conv1D (in, out).
        scales_rows = (self.site == "post") == isinstance(module, nn.Linear)
        _scale_(weight, factors[:, None] if scales_rows else factors)
        if self.site == "post" and getattr(module, "bias", None) is not None:
            _scale_(module.get_parameter("bias"), factors)


class LayerGateHook:
    """A forward hook that changes one projection's input or output."""

    def __init__(self, module: nn.Module, gate: LayerGate, positions: GatedPositions | None) -> None:
        """Add the hook.

        Args:
            module: The output projection.
            gate: Its layer's gate.
            positions: Finds the tokens that are changed; None changes all.
        """
        device = weights_device(module)
        factors, shift = gate.factors, gate.shift
        if gate.site == "pre":
            factors = own_input_features(module, factors)
            shift = None if shift is None else own_input_features(module, shift)
        self.factors = factors.to(device)
        self.shift = None if shift is None else shift.to(device)
        self.positions = positions
        self.handle: RemovableHandle
        if gate.site == "pre":
            self.handle = module.register_forward_pre_hook(self._change_input)
        else:
            self.handle = module.register_forward_hook(self._change_output)

    def _change(self, x: torch.Tensor) -> torch.Tensor:
        if self.factors.device != x.device:  # the device of offloaded weights is unknown until they run
            self.factors = self.factors.to(x.device)
            self.shift = None if self.shift is None else self.shift.to(x.device)
        # Computed in the gate's float32, then cast back to the model's dtype.
        changed = x * self.factors
        if self.shift is not None:
            changed = changed + self.shift
        changed = changed.to(x.dtype)
        return changed if self.positions is None else self.positions.select(x, changed)

    def _change_input(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self._change(args[0]), *args[1:]

    def _change_output(
        self, _module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor
    ) -> torch.Tensor:
        return self._change(output)


def check_foldable(name: str, module: nn.Module) -> None:
    """Check that a gate can be put into a projection's weights.

    Args:
        name: The projection's name, for messages.
        module: The projection.

    Raises:
        GateError: A weight is quantized, wrapped by an adapter, offloaded, or split over processes.
    """
    if hasattr(module, "base_layer"):
        raise GateError(f"{name} is wrapped by an adapter: merge the adapter first, or use mode=live")
    weight = getattr(module, "weight", None)
    if isinstance(weight, nn.Parameter) and is_distributed(weight):
        raise GateError(f"{name} is split over processes, so a gate cannot be folded into it; use mode=live")
    # torchao keeps quantized weights in subclasses of Tensor that say they are floating-point.
    if (
        linear_shape(module) is None
        or not isinstance(weight, nn.Parameter)
        or type(weight.data) is not torch.Tensor
        or not weight.is_floating_point()
    ):
        raise GateError(
            f"{name} is a {type(module).__name__} with a weight of class {type(weight).__name__}: a gate "
            "folds only into plain floating-point weights; use mode=live"
        )
    if weight.is_meta:
        raise GateError(f"{name} is offloaded, so a gate cannot be folded into it; use mode=live")


def _scale_(parameter: nn.Parameter, vector: torch.Tensor) -> None:
    with torch.no_grad():
        parameter.copy_((parameter * vector).to(parameter.dtype))


def _add_to_bias(module: nn.Module, shift: torch.Tensor) -> None:
    """Add W_o @ shift to a projection's bias, which is made where there is none."""
    weight = module.get_parameter("weight")
    with torch.no_grad():
        matrix = weight.float() if isinstance(module, nn.Linear) else weight.float().T
        added = matrix @ shift.to(weight.device)
        if getattr(module, "bias", None) is None:
            bias = nn.Parameter(added.to(weight.dtype), requires_grad=weight.requires_grad)
            module.register_parameter("bias", bias)
        else:
            own = module.get_parameter("bias")
            own.copy_((own + added).to(own.dtype))


def forget_compiled_code() -> None:
    """Have models compiled anew at their next pass: compiled code does not see that a hook has come or gone.

    Without it a model that has run under `torch.compile` would stay ungated, or keep its last gate.
    """
    if "torch._dynamo" in sys.modules:  # else nothing is compiled, and the import takes seconds
        # After `torch.compiler.reset` the next pass may end in a segmentation fault, in torch 2.6.
        torch._dynamo.reset_code_caches()
