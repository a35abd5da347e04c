"""Stand-ins of vLLM's layers, workers and engine, for tests beside which vLLM cannot be installed.

vLLM pins one version of torch, so it cannot be in the environment of the tests; `python -m scripts.vllm_check`
runs the real one. The modules here have the names of classes and attributes that `vllm_worker` reads in vLLM
0.32 (model_executor/layers/linear.py, attention_layer_base.py, layers/utils.py), and compute as they do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from truthgate_eval.export.vllm_worker import GateWorker


class UnquantizedLinearMethod:
    """Computes with `weight`."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return nn.functional.linear(x, layer.weight, bias)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Nothing to do on GPUs."""


class PackingLinearMethod(UnquantizedLinearMethod):
    """As on the CPU: the layer keeps a function with weights in another form, and an empty `weight`."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return layer.cpu_linear(x, layer.weight, bias)

    def process_weights_after_loading(self, layer: Any) -> None:
        packed = layer.weight.detach().T.clone()
        layer.cpu_linear = lambda x, _weight, bias: x @ packed + (0 if bias is None else bias)
        layer.weight = nn.Parameter(torch.empty(0, dtype=packed.dtype), requires_grad=False)


class Fp8LinearMethod(UnquantizedLinearMethod):
    """A quantized layer's method; only its name is read."""


# vLLM's CPU backend has the same class pack; only its name is read.
PackingLinearMethod.__name__ = "UnquantizedLinearMethod"


class RowParallelLinear(nn.Module):
    """Some columns of a linear map: those of one tensor parallel rank."""

    def __init__(self, full: nn.Linear, tp_rank: int = 0, tp_size: int = 1, method: Any = None) -> None:
        super().__init__()
        self.input_size, self.output_size = full.in_features, full.out_features
        self.tp_rank, self.tp_size = tp_rank, tp_size
        self.input_size_per_partition = full.in_features // tp_size
        self.output_size_per_partition = full.out_features
        columns = full.weight.detach().chunk(tp_size, dim=1)[tp_rank].clone()
        self.weight = nn.Parameter(columns, requires_grad=False)
        self.register_parameter("bias", None)
        if full.bias is not None:
            self.bias = nn.Parameter(full.bias.detach().clone(), requires_grad=False)
        self.quant_method = method or UnquantizedLinearMethod()
        self.quant_method.process_weights_after_loading(self)


class QKVParallelLinear(nn.Module):
    """Queries, keys and values in one map."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * features, features), requires_grad=False)


class AttentionLayerBase:
    """What vLLM's attention layers and recurrent mixers with a cache are."""


class Attention(nn.Module, AttentionLayerBase):
    """Attention of a decoder."""


class MMEncoderAttention(nn.Module):
    """Attention of a vision tower, which is no `AttentionLayerBase`."""


class Block(nn.Module):
    """An attention block: merged projections, attention, output projection."""

    def __init__(self, projection: nn.Module, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.qkv_proj = QKVParallelLinear(4)
        self.attn = attention or Attention()
        self.o_proj = projection


class Layer(nn.Module):
    """A decoder layer; its feed-forward block has a row parallel map, too."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.self_attn = block
        self.mlp = nn.ModuleDict({"down_proj": RowParallelLinear(nn.Linear(8, 4))})


class PPMissingLayer(nn.Identity):
    """A layer of another pipeline stage."""


class LlamaForCausalLM(nn.Module):
    """Some layers of a decoder, under the numbers that they have in the whole model."""

    def __init__(self, blocks: Sequence[nn.Module | None]) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(
            PPMissingLayer() if block is None else Layer(block) for block in blocks
        )


class Worker(GateWorker):
    """A worker with a model, as vLLM's with the extension mixed in."""

    def __init__(self, model: nn.Module, tp_size: int = 1, pp_size: int = 1, mode: int = 0) -> None:
        self.model_runner = SimpleNamespace(get_model=lambda: model)
        self.vllm_config = SimpleNamespace(
            compilation_config=SimpleNamespace(mode=mode),
            parallel_config=SimpleNamespace(tensor_parallel_size=tp_size, pipeline_parallel_size=pp_size),
        )


class LLM:
    """An engine whose text's log-probabilities are a function of all weights that its workers compute with.

    Attributes:
        resets: How often cached prefixes were forgotten.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers, self.resets, self.options = workers, 0, {}

    def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        """Call a method by its name with plain data, as vLLM does between processes."""
        return [
            json.loads(json.dumps(getattr(worker, method)(*json.loads(json.dumps(args)))))
            for worker in self.workers
        ]

    def get_default_sampling_params(self) -> SimpleNamespace:
        return SimpleNamespace()

    def generate(self, prompts: list[str], parameters: Any, *, use_tqdm: bool) -> list[Any]:
        assert parameters.prompt_logprobs == 1 and parameters.temperature == 0 and not use_tqdm
        values = [
            float(module.quant_method.apply(module, torch.ones(1, module.input_size_per_partition)).sum())
            for worker in self.workers
            for module in worker.model_runner.get_model().modules()
            if isinstance(module, RowParallelLinear)
        ]
        tokens = [{number: SimpleNamespace(logprob=value)} for number, value in enumerate(values)]
        return [SimpleNamespace(prompt_logprobs=[None, *tokens]) for _ in prompts]

    def reset_prefix_cache(self) -> bool:
        self.resets += 1
        return True


def make_workers(
    projections: Sequence[nn.Linear], *, tp_size: int = 1, pp_size: int = 1, packs: bool = False
) -> list[Worker]:
    """The workers of a model with these output projections: each tensor parallel rank of each stage.

    Args:
        projections: One for each layer.
        tp_size: Tensor parallel ranks.
        pp_size: Pipeline stages.
        packs: Whether weights are packed, as on the CPU.
    """
    size = len(projections) // pp_size
    workers = []
    for stage in range(pp_size):
        own = range(stage * size, len(projections) if stage == pp_size - 1 else (stage + 1) * size)
        for rank in range(tp_size):
            blocks = [
                Block(RowParallelLinear(full, rank, tp_size, PackingLinearMethod() if packs else None))
                if number in own
                else None
                for number, full in enumerate(projections)
            ]
            workers.append(Worker(LlamaForCausalLM(blocks), tp_size, pp_size))
    return workers
