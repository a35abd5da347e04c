"""A gate in the weights of one vLLM worker: what `worker_extension_cls` adds to vLLM's worker class.

It runs in vLLM's own processes, with a part of the model: some layers under pipeline parallelism, some of
each projection's input features under tensor parallelism. `vllm_engine` calls it there with plain data, and
checks what all workers did together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import Site
from truthgate_eval.gating.layer_gate import LayerGate

# Largest difference of a weight from the folded one, relative to the largest weight: float32 products may
# be computed in TF32, which has 10 bits.
_TOLERANCE = 2e-3


class GateWorker:
    """Methods of a vLLM worker, for `LLM.collective_rpc`; vLLM mixes them into its worker class.

    Their results are plain data. A refusal is a result too, `{"error": message}`: vLLM would turn an
    exception into one of another class, whose message is a traceback.
    """

    model_runner: Any
    vllm_config: Any

    def truthgate_fold(self, site: Site, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Fold a gate into the output projections that this worker has.

        Args:
            site: Where the gate acts.
            layers: For each gated layer of the whole model its number among the decoder's layers (`layer`),
                each feature's factor (`factors`), and what is added to each feature (`shift`, or None).

        Returns:
            `tp_size` and `pp_size`, of the engine; `layers`, for each that this worker has its number
            (`layer`), the projection (`name`), `tp_rank`, `sha256` of the folded weights, and how far the
            fold changed them, relative to the largest (`change`); or `error`.
        """
        try:
            model, config = self.model_runner.get_model(), self.vllm_config
            compiles = bool(config.compilation_config.mode)
            gates = {int(layer["layer"]): _layer_gate(site, layer) for layer in layers}
            found = find_projections(model, gates)
            for number, (name, module) in found.items():
                check_foldable(name, module, gates[number], compiles=compiles)
            folded = [
                {"layer": number, "name": name, **fold_projection(name, module, gates[number])}
                for number, (name, module) in found.items()
            ]
        except GateError as error:
            return {"error": str(error)}
        parallel = config.parallel_config
        sizes = {"tp_size": parallel.tensor_parallel_size, "pp_size": parallel.pipeline_parallel_size}
        return {**sizes, "layers": folded}

    def truthgate_read_back(self, numbers: Sequence[int]) -> dict[str, Any]:
        """SHA-256 of the weights that this worker's layers have now.

        Args:
            numbers: The gated layers of the whole model.

        Returns:
            `layers`, for each that this worker has its number (`layer`), `tp_rank` and `sha256`; or `error`.
        """
        try:
            found = find_projections(self.model_runner.get_model(), numbers)
            return {
                "layers": [
                    {"layer": number, "tp_rank": module.tp_rank, "sha256": _digest(read_weight(name, module))}
                    for number, (name, module) in found.items()
                ]
            }
        except GateError as error:
            return {"error": str(error)}


def find_projections(
    model: nn.Module, numbers: Sequence[int] | Mapping[int, Any]
) -> dict[int, tuple[str, Any]]:
    """The attention output projections of some layers, as far as a worker has these layers.

    They are found by vLLM's attention layers, not by their names: the block that holds one has one
    `RowParallelLinear`, the projection. Under pipeline parallelism names keep the layers' numbers.

    Args:
        model: vLLM's model.
        numbers: The layers' numbers.

    Returns:
        For each layer's number the projection's name and module.

    Raises:
        GateError: A block has none or several, or a name several numbers.
    """
    found: dict[int, tuple[str, Any]] = {}
    for name, attention in model.named_modules():
        # vLLM's recurrent mixers are attention layers too, by their caches.
        if not _is_a(attention, "AttentionLayerBase") or _is_a(attention, "MambaBase"):
            continue
        number = _layer_number(name)
        if number not in numbers:
            continue
        block = name.rpartition(".")[0]
        modules = model.get_submodule(block).named_modules(prefix=block)
        projections = [(name, module) for name, module in modules if _is_a(module, "RowParallelLinear")]
        if len(projections) != 1 or found.get(number, projections[0])[1] is not projections[0][1]:
            names = ", ".join(name for name, _ in projections) or "none"
            raise GateError(
                f"{block} of vLLM's {type(model).__name__} should have one output projection, and has "
                f"{names}: use gated_hf, or `truthgate export --format checkpoint`"
            )
        found[number] = projections[0]
    return found


def check_foldable(name: str, module: Any, gate: LayerGate, *, compiles: bool) -> None:
    """Check that a gate can be put into the weights of one of vLLM's layers.

    Args:
        name: The projection's name, for messages.
        module: The projection.
        gate: Its layer's gate, of the whole projection.
        compiles: Whether vLLM has compiled the model.

    Raises:
        GateError: The weights are quantized or of another shape, a LoRA adapter is around them, the compiled
            model holds a copy of them, or there is no bias for a shift.
    """
    if name.endswith(".base_layer"):
        raise GateError(f"{name} is under a LoRA adapter of vLLM: merge it into the checkpoint first")
    method = type(module.quant_method).__name__
    if method != "UnquantizedLinearMethod":
        raise GateError(
            f"{name} is quantized ({method}), and a gate cannot be multiplied into quantized weights: use "
            "gated_hf"
        )
    expected = module.input_size if gate.site == "pre" else module.output_size
    if len(gate.factors) != expected:
        raise GateError(f"{name} has {expected} features at site={gate.site}, the gate {len(gate.factors)}")
    if _is_packed(module) and compiles:
        raise GateError(
            "vLLM's CPU backend has compiled the model with packed weights, and would not see the gate: add "
            "enforce_eager=True"
        )
    if not _is_packed(module) and tuple(module.weight.shape) != _shape(module):
        raise GateError(f"{name} has weights {tuple(module.weight.shape)}, and should have {_shape(module)}")
    if gate.shift is not None and (getattr(module, "bias", None) is None or module.tp_size > 1):
        raise GateError(
            f"a shift folds into the bias of W_o, and {name} has none, or is one of several tensor parallel "
            "parts: gate the model live, with gated_hf"
        )


def fold_projection(name: str, module: Any, gate: LayerGate) -> dict[str, Any]:
    """Fold a gate into one of vLLM's `RowParallelLinear`, of which this worker may have a shard.

    `post` scales the shard's rows, which are all output features; `pre` its columns, which are this rank's
    input features. The product is computed in float32 and rounded once. Weights that vLLM's CPU backend has
    packed are unpacked, folded and packed again.

    Args:
        name: The projection's name, for messages.
        module: A layer that `check_foldable` has passed.
        gate: The gate of the whole projection.

    Returns:
        `tp_rank`, `sha256` and `change`, see `GateWorker.truthgate_fold`.

    Raises:
        GateError: The layer does not compute with the folded weights.
    """
    before = read_weight(name, module).clone()
    plain = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(plain)
    plain.register_parameter("weight", nn.Parameter(before.clone(), requires_grad=False))
    plain.register_parameter("bias", None)
    if getattr(module, "bias", None) is not None:
        plain.register_parameter("bias", nn.Parameter(module.bias.detach().clone(), requires_grad=False))
    shard_of_gate(gate, module).fold(plain)
    folded = plain.weight.detach()
    _write_weight(module, folded)
    if plain.bias is not None:
        module.bias.data.copy_(plain.bias.detach())
    scale = max(float(folded.abs().max()), torch.finfo(torch.float32).tiny)
    off = float((computed_weight(module).float() - folded.float()).abs().max()) / scale
    if not off <= _TOLERANCE:
        raise GateError(
            f"{name} does not compute with the gate that was folded into it (off by {off:.1e} of its largest "
            "weight): use gated_hf, or `truthgate export --format checkpoint`"
        )
    change = float((folded.float() - before.float()).abs().max()) / scale
    return {"tp_rank": module.tp_rank, "sha256": _digest(read_weight(name, module)), "change": change}


def shard_of_gate(gate: LayerGate, module: Any) -> LayerGate:
    """The part of a projection's gate that acts on a rank's shard of it.

    Args:
        gate: Of the whole projection.
        module: vLLM's `RowParallelLinear`: all output features, and the rank's own input features.
    """
    if gate.site == "post":
        return gate
    width = module.input_size_per_partition
    own = slice(module.tp_rank * width, (module.tp_rank + 1) * width)
    return LayerGate(gate.site, gate.factors[own], None if gate.shift is None else gate.shift[own])


def read_weight(name: str, module: Any) -> torch.Tensor:
    """The [output, input] weights of a layer on this rank, also where vLLM keeps them packed only.

    Args:
        name: The layer's name, for messages.
        module: The layer.

    Raises:
        GateError: There are none.
    """
    if not _is_packed(module):
        return module.weight.detach()
    if not hasattr(module, "cpu_linear"):
        raise GateError(f"{name} has no weights that can be read: use gated_hf")
    return computed_weight(module)


@torch.no_grad()
def computed_weight(module: Any) -> torch.Tensor:
    """The [output, input] weights that a layer computes with: its output for each unit vector.

    Products with 1 and sums with 0 are exact, so that these are the weights themselves. The bias is left out.
    """
    identity = torch.eye(_shape(module)[1], dtype=module.weight.dtype, device=module.weight.device)
    return module.quant_method.apply(module, identity, None).T.contiguous()


def _write_weight(module: Any, weight: torch.Tensor) -> None:
    """Put weights where a layer computes with them: in place, which CUDA graphs see, or packed anew."""
    if not _is_packed(module):
        module.weight.data.copy_(weight)
        return
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.quant_method.process_weights_after_loading(module)


def _is_packed(module: Any) -> bool:
    """Whether vLLM's CPU backend has put the weights into a form of its own, and nothing in their place."""
    return int(module.weight.numel()) == 0


def _shape(module: Any) -> tuple[int, int]:
    return module.output_size_per_partition, module.input_size_per_partition


def _layer_gate(site: Site, layer: Mapping[str, Any]) -> LayerGate:
    shift = layer["shift"]
    factors = torch.tensor(layer["factors"], dtype=torch.float32)
    return LayerGate(site, factors, None if shift is None else torch.tensor(shift, dtype=torch.float32))


def _layer_number(name: str) -> int:
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.)", name)
    if len(numbers) != 1:
        raise GateError(f"{name}: the number of its layer is not clear, so it cannot be gated in vLLM")
    return int(numbers[0])


def _is_a(module: nn.Module, name: str) -> bool:
    """Whether a module is of a class of vLLM; its files move between versions, so nothing is imported."""
    return any(base.__name__ == name for base in type(module).__mro__)


def _digest(weight: torch.Tensor) -> str:
    return hashlib.sha256(weight.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
