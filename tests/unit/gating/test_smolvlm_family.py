"""The smallest family on the hub, in its real sizes: SmolLM2 and the SmolVLM models made from it."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as hf

from truthgate_eval.export.skeleton import build_skeleton
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.scores import TruthScores

# The text decoders' sizes, as the base models' configs have them; the children's vocabularies are larger.
SIZES: dict[str, dict[str, Any]] = {
    "256M": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "500M": {
        "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
        "num_key_value_heads": 5,
    },
}  # fmt: skip
VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 512, "patch_size": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    "config_class", [hf.Idefics3Config, pytest.param(hf.SmolVLMConfig, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("size", SIZES)
def test_a_child_has_the_layers_and_heads_of_its_base(size: str, config_class: type[Any]) -> None:
    text = {"model_type": "llama", "vocab_size": 49280, "pad_token_id": 2, **SIZES[size]}
    config = config_class(text_config=text, vision_config=VISION, scale_factor=4, image_token_id=49190)
    child = find_attention_layout(build_skeleton(config, "image"))
    base = find_attention_layout(build_skeleton(hf.LlamaConfig(vocab_size=49152, **SIZES[size]), "text"))
    assert child.shape == base.shape == ((30, 9) if size == "256M" else (32, 15))
    assert child.head_widths("post") == base.head_widths("post") == child.head_widths("pre")


def test_the_shipped_scores_fit_the_smallest_child() -> None:
    scores = TruthScores.resolve("smollm2-135m-instruct__halueval-qa")
    assert scores.scores.shape == (30, 9)
    assert scores.metadata["model"] == "smollm2-135m-instruct"
