"""A decoder's attention output projections, found by running it twice on two tokens.

The first pass records which linear maps run inside each layer's attention block. The last of them should be
the output projection; in the second pass `gradient_trace` checks that its output is what the block returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from truthgate_eval.devices import weights_device
from truthgate_eval.errors import AttentionLayoutError, reason_of
from truthgate_eval.gating.gradient_trace import GradientTrace

_TOKENS = (0, 1)


@dataclass(frozen=True)
class LinearCall:
    """One linear map that ran in the dry pass.

    Attributes:
        name: Dotted path below the decoder.
        module: The outermost module that computes it.
        block: The attention block it ran in.
        in_features: Width of its input.
        out_features: Width of its output.
        runs: How often it ran in the whole pass.
        maps: How many linear maps ran in the block.
    """

    name: str
    module: nn.Module
    block: nn.Module
    in_features: int
    out_features: int
    runs: int = 1
    maps: int = 1


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) features of a linear map of any class, or None for another module."""
    features = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(features[0], int) and isinstance(features[1], int):
        return features[0], features[1]
    if type(module).__name__ == "Conv1D":  # transformers' GPT-2 layer: weight is (in, out)
        rows, columns = module.get_parameter("weight").shape
        return rows, columns
    return None


def find_output_projections(
    decoder: nn.Module, count: int, attention_layers: Sequence[int]
) -> tuple[tuple[nn.Module, ...], tuple[LinearCall, ...]]:
    """The decoder's layers, and the output projection of each attention layer.

    Args:
        decoder: A text decoder.
        count: Number of its layers.
        attention_layers: Which of them are attention, in ascending order.

    Returns:
        All layers, and one projection for each of `attention_layers`.

    Raises:
        AttentionLayoutError: The decoder does not run on two tokens, or an attention layer does not run
            exactly one attention block that ends in an output projection of its own.
    """
    lists = {
        path: tuple(module)
        for path, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    blocks = {
        path: {
            f"{path}.{i}.{name}": block
            for i in attention_layers
            for name, block in _attention_blocks(layers[i]).items()
        }
        for path, layers in lists.items()
    }
    calls = _record_last_linears(
        decoder, {name: block for found in blocks.values() for name, block in found.items()}
    )
    ends = _blocks_that_end_in_projection(decoder, calls)
    idle: dict[str, list[int]] = {}  # for each list, the layers in which no attention ran
    for path, layers in lists.items():
        ran = {i: [name for name in calls if name.startswith(f"{path}.{i}.")] for i in attention_layers}
        idle[path] = [i for i, names in ran.items() if not names]
        if not idle[path]:
            return layers, _one_for_each_layer(decoder, ran, calls, ends)
    found = f"no list of {count} layers"
    if idle:
        path = min(idle, key=lambda path: len(idle[path]))
        first = idle[path][0]
        ran_in = len(attention_layers) - len(idle[path])
        found = f"{path}: {ran_in} (layer {first}: {_what_is_idle(lists[path][first])})"
    raise AttentionLayoutError(
        f"{type(decoder).__name__}: expected {len(attention_layers)} layers that each run one attention "
        f"block; found {found}"
    )


def _one_for_each_layer(
    decoder: nn.Module,
    ran: Mapping[int, Sequence[str]],
    calls: Mapping[str, LinearCall],
    ends: Collection[str],
) -> tuple[LinearCall, ...]:
    """The output projection of each layer.

    Args:
        decoder: The decoder.
        ran: For each layer, the attention blocks that ran.
        calls: For each of these blocks, its last linear map.
        ends: Those whose output is the output of that map.

    Raises:
        AttentionLayoutError: A layer has none or several, or two layers share one.
    """
    found: list[LinearCall] = []
    for names in ran.values():
        ending = [name for name in names if name in ends]
        # A module around one linear map ends in it, and is no attention block for that.
        ending = [name for name in ending if calls[name].maps > 1] or ending
        # Of blocks inside each other the inner one: some layers are called attention, and end in their MLP.
        inner = [name for name in ending if not any(other.startswith(f"{name}.") for other in ending)]
        if not inner:
            wrong = calls[names[0]]
            _check_runs_once(decoder, wrong, wrong.runs)
            raise AttentionLayoutError(
                f"{wrong.name} is the last linear map that runs in its {type(wrong.block).__name__}, but its "
                "output is not what the block returns: no output projection to gate was found"
            )
        if len(inner) > 1:
            which = ", ".join(calls[name].name for name in inner)
            raise AttentionLayoutError(f"one layer runs more than one attention block: {which}")
        found.append(calls[inner[0]])
    weights = [getattr(call.module, "weight", call.module) for call in found]
    for call, weight in zip(found, weights, strict=True):
        _check_runs_once(decoder, call, max(call.runs, sum(weight is other for other in weights)))
    return tuple(found)


def _check_runs_once(decoder: nn.Module, call: LinearCall, runs: int) -> None:
    """Check that a projection belongs to one place in the model.

    Raises:
        AttentionLayoutError: It does not.
    """
    if runs > 1:
        raise AttentionLayoutError(
            f"the weights of {call.name} run {runs} times in one pass of {type(decoder).__name__}: "
            "a gate needs an output projection that runs once, in one layer"
        )


def _attention_blocks(layer: nn.Module) -> dict[str, nn.Module]:
    """The modules of a layer, at any depth, that are named after attention, or whose class is."""
    return {
        name: module
        for name, module in layer.named_modules()
        if name
        and linear_shape(module) is None
        and any(
            word in f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
            for word in ("attn", "attention")
        )
    }


def _what_is_idle(layer: nn.Module) -> str:
    """Why no attention of a layer ran."""
    names = [
        name for name, block in _attention_blocks(layer).items() if "." not in name and any(_linears(block))
    ]
    if any("cross" in name.lower() for name in names):
        return f"{', '.join(names)} attends to an image and does not run on text"
    return f"{', '.join(names)} did not run on text" if names else "no attention block"


def _linears(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules of the outermost linear maps: a LoRA layer, not the layer inside it."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if linear_shape(child) is not None:
            yield path, child
        else:
            yield from _linears(child, path)


def _record_last_linears(decoder: nn.Module, blocks: Mapping[str, nn.Module]) -> dict[str, LinearCall]:
    """For each of these blocks in which a linear map ran, the last of them.

    A map that returns something else than a tensor (a router) does not count.
    """
    last: dict[str, LinearCall] = {}
    maps: dict[str, set[nn.Module]] = {name: set() for name in blocks}
    runs: Counter[nn.Module] = Counter()

    def hook(inside: Mapping[str, str]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            runs[module] += 1
            if args and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor):
                for block, path in inside.items():
                    maps[block].add(module)
                    widths = args[0].shape[-1], output.shape[-1]
                    last[block] = LinearCall(f"{block}.{path}", module, blocks[block], *widths)

        return record

    inside: dict[nn.Module, dict[str, str]] = {}
    for block, module in blocks.items():
        for path, linear in _linears(module):
            inside.setdefault(linear, {})[block] = path
    with _hooks(linear.register_forward_hook(hook(names)) for linear, names in inside.items()):
        _run(decoder)
    return {
        block: replace(call, runs=runs[call.module], maps=len(maps[block]))
        for block in blocks
        if (call := last.get(block)) is not None  # cross-attention does not run on text
    }


def _blocks_that_end_in_projection(decoder: nn.Module, calls: Mapping[str, LinearCall]) -> set[str]:
    """Run the decoder again: the blocks whose output is the output of their last linear map."""
    trace = GradientTrace({name: (call.block, call.module) for name, call in calls.items()})
    with _hooks(trace.register()):
        _run(decoder)
    return trace.ending


@contextmanager
def _hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end of the block."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()


def _run(decoder: nn.Module) -> None:
    """One pass over two tokens, without dropout.

    Raises:
        AttentionLayoutError: The decoder cannot run on them.
    """
    training = [module for module in decoder.modules() if module.training]
    tokens = torch.tensor([_TOKENS], device=weights_device(decoder))
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            decoder(input_ids=tokens, use_cache=False)
    except Exception as error:  # a model's own code may fail in any way
        raise AttentionLayoutError(
            f"{type(decoder).__name__} does not run on two tokens of text: {reason_of(error)}"
        ) from error
    finally:
        for module in training:
            module.training = True
