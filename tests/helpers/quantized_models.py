"""A tiny Llama in every quantization that runs on the CPU, and with a LoRA.

All have 3 layers of 4 heads, whose slices are 16 features wide at both sites: quantization needs rows of 32
or 64 weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from helpers import tiny_models

LAYERS, HEADS, WIDTH, INNER = 3, 4, 16, 128
HIDDEN = HEADS * WIDTH
# Names in docs/engines.md.
BITSANDBYTES = ("bitsandbytes 8-bit", "bitsandbytes 4-bit")
TORCHAO = ("torchao int8", "torchao int4")
GGUF = "GGUF Q8_0"
QUANTIZATIONS = (*BITSANDBYTES, *TORCHAO, GGUF)
GGUF_FILE = "tiny.Q8_0.gguf"


def save_checkpoint(folder: Path) -> Path:
    """The plain model with its tokenizer, in float32."""
    tiny_models.save_tiny_checkpoint(folder, hidden_size=HIDDEN, head_dim=WIDTH, intermediate_size=INNER)
    return folder


def quantization_config(name: str) -> Any:
    """What transformers quantizes with while it loads a plain checkpoint; not of GGUF."""
    if name in BITSANDBYTES:
        return hf.BitsAndBytesConfig(
            load_in_8bit=name == "bitsandbytes 8-bit",
            load_in_4bit=name == "bitsandbytes 4-bit",
            bnb_4bit_quant_type="nf4",
        )
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    # torchao's own int4 layouts are those of GPUs.
    int4 = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    return hf.TorchAoConfig(Int8WeightOnlyConfig() if name == "torchao int8" else int4)


def load(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a plain checkpoint, quantized while it is loaded; of GGUF, a model of the same shape."""
    options: dict[str, Any] = {"dtype": dtype, "device_map": "cpu"}
    if name == GGUF:
        source = folder if (folder / GGUF_FILE).is_file() else save_gguf(folder)
        return hf.AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, **options).eval()
    if name == "bitsandbytes 4-bit":
        config = quantization_config(name)
        config.bnb_4bit_compute_dtype = dtype
        options["quantization_config"] = config
    elif name in QUANTIZATIONS:
        options["quantization_config"] = quantization_config(name)
    return hf.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def save_quantized(name: str, source: Path, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A quantized checkpoint with its tokenizer; torchao's compute in `dtype` only."""
    load(name, source, dtype).save_pretrained(folder)
    tiny_models.tiny_tokenizer().save_pretrained(folder)
    return folder


def save_gguf(folder: Path) -> Path:
    """Write a random Llama as `GGUF_FILE` into a folder, without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    vocabulary, keys = len(tiny_models.tiny_tokenizer()), HIDDEN // 2
    writer = GGUFWriter(folder / GGUF_FILE, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_vocab_size(vocabulary)
    matrices = {"token_embd": (vocabulary, HIDDEN), "output": (vocabulary, HIDDEN)}
    norms = ["output_norm"]
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        norms += [f"{block}.attn_norm", f"{block}.ffn_norm"]
        matrices |= {
            f"{block}.attn_q": (HIDDEN, HIDDEN), f"{block}.attn_k": (keys, HIDDEN), f"{block}.attn_v": (keys, HIDDEN),
            f"{block}.attn_output": (HIDDEN, HIDDEN), f"{block}.ffn_gate": (INNER, HIDDEN),
            f"{block}.ffn_up": (INNER, HIDDEN), f"{block}.ffn_down": (HIDDEN, INNER),
        }  # fmt: skip
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, dtype=np.float32))
    for name, shape in matrices.items():
        weights = draw.normal(0, 0.1, shape).astype(np.float32)
        kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def save_lora(source: Path, folder: Path, targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj")) -> Path:
    """A random LoRA for the plain checkpoint."""
    import peft

    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, target_modules=list(targets), init_lora_weights=False, task_type="CAUSAL_LM"
    )
    peft.get_peft_model(load("plain", source), config).save_pretrained(folder)
    return folder


def output_projections(model: Any) -> list[torch.nn.Module]:
    """The modules that compute `o_proj`, in layer order: LoRA's wrappers where there are some."""
    found = [module for name, module in model.named_modules() if name.endswith(".self_attn.o_proj")]
    assert len(found) == LAYERS
    return found


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """All logits of two short texts, in float32."""
    return model(input_ids=tiny_models.prompts()).logits.float()


def gated_from_scratch(model: Any, values: np.ndarray, site: str) -> torch.Tensor:
    """`logits` where every head's slice of W_o's output (`post`) or input (`pre`) is scaled, by hooks made here.

    Args:
        model: The model without a gate.
        values: [LAYERS, HEADS] factors.
        site: `post` or `pre`.
    """

    def scale(x: torch.Tensor, layer: int) -> torch.Tensor:
        slices = [
            x[..., head * WIDTH : (head + 1) * WIDTH].float() * float(values[layer, head])
            for head in range(HEADS)
        ]
        return torch.cat(slices, dim=-1).to(x.dtype)

    handles = []
    for layer, module in enumerate(output_projections(model)):
        if site == "pre":
            hook = lambda _, args, layer=layer: (scale(args[0], layer), *args[1:])  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook))
        else:
            hook = lambda _, _args, output, layer=layer: scale(output, layer)  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    try:
        return logits(model)
    finally:
        for handle in handles:
            handle.remove()
