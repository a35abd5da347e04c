"""What lmms-eval's entry point loads on import: names of our models, and nothing heavy."""

from __future__ import annotations

from typing import Any

MODELS = {
    "gated_vlm": "GatedVLM",
    "gated_llava": "GatedLlava",
    "gated_llava_next": "GatedLlavaNext",
    "gated_qwen2_5_vl": "GatedQwen25VL",
    "gated_qwen2_5_omni": "GatedQwen25Omni",
}


def manifests() -> list[Any]:
    """One `ModelManifest` for each of our models."""
    from lmms_eval.models.registry_v2 import ModelManifest

    # The simple interface: its requests hold every kind of task, the chat interface only generation.
    return [
        ModelManifest(model_id=name, simple_class_path=f"truthgate_eval.harness.lmms_eval.model.{cls}")
        for name, cls in MODELS.items()
    ]
