"""What the study needs besides existing models and tasks: two more checkpoints, and halves of the scenes.

    python studies/results_material.py FOLDER BASE CHILD

* `FOLDER/random_base`: the base's shape with random weights;
* `FOLDER/permuted_child`: the child with its heads renumbered, which computes the same function, see `permute_heads`;
* `FOLDER/data_a`, `FOLDER/data_b`: data folders whose `probe_scenes` and `probe_easy_vqa` have one half of the images each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from truthgate_eval.data import easy_vqa
from truthgate_eval.data.images import open_image
from truthgate_eval.data.store import read_rows, read_source, write_dataset
from truthgate_eval.errors import ModelError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.packaged.scenes_dataset import scenes_file
from truthgate_eval.packaged.smollm2 import resolve_smollm2
from truthgate_eval.vision.loading import LoadOptions, load_vlm

HALF_NAMES = ("a", "b")
SEED = 0
_CLOSE = 1e-4  # of the largest logit: in float32, sums in another order differ by less, through all layers
Order = np.ndarray[Any, np.dtype[np.int64]]


def main(folder: Path, base: str, child: str) -> None:
    """Make everything; the permutation and its exactness are written last."""
    for name, file in (("scenes", scenes_file("probe")), (easy_vqa.FOLDER, easy_vqa.easy_vqa_file("probe"))):
        source = read_source(file.parent)
        for half, rows in split_rows(read_rows(file)).items():
            write_dataset(folder / f"data_{half}" / name, {"probe": rows}, source={**source, "half": half})
    save_random(base, folder / "random_base")
    record = save_permuted(child, folder / "permuted_child")
    (folder / "permutation.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


def split_rows(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each half; rows of one image are in the same half."""
    number = {image: n for n, image in enumerate(dict.fromkeys(row["image"] for row in rows))}
    return {half: [row for row in rows if number[row["image"]] % 2 == n] for n, half in enumerate(HALF_NAMES)}


def save_random(base: str, folder: Path) -> None:
    """Save a model of the base's class and shape with random weights, and the base's tokenizer."""
    import transformers as hf

    source = resolve_smollm2(base)
    torch.manual_seed(SEED)
    model: Any = hf.AutoModelForCausalLM.from_config(hf.AutoConfig.from_pretrained(source))
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def save_permuted(child: str, folder: Path) -> dict[str, Any]:
    """Save the permuted child, and check on a scene that it computes what the child does.

    Returns:
        The orders, the largest difference of logits and their largest value.

    Raises:
        ModelError: The logits differ by more than rounding.
    """
    vlm = load_vlm(LoadOptions(child, dtype="float32", device="cpu"))
    row = read_rows(scenes_file("probe"))[0]
    text = vlm.prompt(row["question"], 1)
    inputs = vlm.processor(text=[text], images=[[open_image(row["image_path"])]], return_tensors="pt")
    with torch.no_grad():
        before = vlm.model(**inputs).logits
        heads, slices = permute_heads(vlm.model, seed=SEED)
        after = vlm.model(**inputs).logits
    apart, size = float((after - before).abs().max()), float(before.abs().max())
    if apart > _CLOSE * size:
        raise ModelError(f"permuting the heads of {child} changed its logits by {apart:g} of {size:g}")
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return {"heads": [order.tolist() for order in heads], "slices": slices.tolist(),
            "logits_apart": apart, "logits_size": size}  # fmt: skip


def permute_heads(model: Any, *, seed: int) -> tuple[list[Order], Order]:
    """Number a LLaVA's heads anew, at both sites, without changing its function.

    At the input of the output projection (`pre`), in every layer the groups of query heads that share a
    key-value head are permuted, and so are the heads of each group. At its output (`post`) a head is a slice
    of the residual stream, which that does not change. There the stream's features are permuted slice by
    slice, in one order for all layers, since they share the stream.

    Args:
        model: With a decoder of Llama's layout; changed in place.
        seed: Of the orders.

    Returns:
        For each layer, the old index of each head (`pre`), and the same for the slices (`post`).
    """
    layers, heads = find_attention_layout(model).shape
    draw = np.random.default_rng(seed)
    decoder = model.model.language_model
    orders = [_permute_layer(layer.self_attn, heads, draw) for layer in decoder.layers]
    slices = draw.permutation(heads)
    width = decoder.embed_tokens.weight.shape[1]
    if width % heads:
        raise ModelError(f"{width} features are no {heads} equal slices: cannot be permuted slice by slice")
    _permute_stream(model, _features(slices, width // heads))
    assert len(orders) == layers
    return orders, slices


def _permute_layer(attention: Any, heads: int, draw: np.random.Generator) -> Order:
    """Reorder one attention's heads, keeping together those that share keys and values."""
    width = attention.o_proj.weight.shape[1] // heads
    groups = attention.k_proj.weight.shape[0] // width
    each = heads // groups
    outer = draw.permutation(groups)
    order = np.concatenate([group * each + draw.permutation(each) for group in outer])
    for projection, own in (
        (attention.q_proj, order), (attention.k_proj, outer), (attention.v_proj, outer),
    ):  # fmt: skip
        _reorder(projection, _features(own, width), inputs=False)
    _reorder(attention.o_proj, _features(order, width), inputs=True)
    return order


def _permute_stream(model: Any, features: torch.Tensor) -> None:
    """Renumber the residual stream's features: wherever it is written, read or scaled."""
    decoder = model.model.language_model
    embedding, head = decoder.embed_tokens.weight, model.lm_head
    _assign(embedding, embedding[:, features])
    if head.weight.data_ptr() != embedding.data_ptr():
        _reorder(head, features, inputs=True)
    _reorder(model.model.multi_modal_projector.linear_2, features, inputs=False)
    _assign(decoder.norm.weight, decoder.norm.weight[features])
    for layer in decoder.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            _assign(norm.weight, norm.weight[features])
        reads = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        for projection in (*reads, layer.mlp.gate_proj, layer.mlp.up_proj):
            _reorder(projection, features, inputs=True)
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            _reorder(projection, features, inputs=False)


def _features(order: Order, width: int) -> torch.Tensor:
    """Indices of features, from the order of the heads that they belong to."""
    return torch.from_numpy((order[:, None] * width + np.arange(width)).ravel())


def _reorder(projection: Any, features: torch.Tensor, *, inputs: bool) -> None:
    weight = projection.weight
    _assign(weight, weight[:, features] if inputs else weight[features])
    if not inputs and projection.bias is not None:
        _assign(projection.bias, projection.bias[features])


def _assign(parameter: torch.Tensor, value: torch.Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value.clone())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
