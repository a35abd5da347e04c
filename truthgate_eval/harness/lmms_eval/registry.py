"""What lmms-eval's entry point loads on import: names of our models, and nothing heavy.

lmms-eval only logs an exception here, and then says that the model does not exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

MODELS = {
    "gated_vlm": "GatedVLM",
    "gated_llava": "GatedLlava",
    "gated_llava_next": "GatedLlavaNext",
    "gated_qwen2_5_vl": "GatedQwen25VL",
    "gated_qwen2_5_omni": "GatedQwen25Omni",
}
VLLM_MODEL = "gated_vllm"


def manifests() -> list[ModelManifest]:
    """One manifest for each of our models.

    Each names a class for the simple interface, whose requests are of every type of task; the chat
    interface has generation only. `gated_vllm` has both, as lmms-eval's `vllm` does.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    folder = "truthgate_eval.harness.lmms_eval"
    return [
        *(ModelManifest(name, simple_class_path=f"{folder}.model.{cls}") for name, cls in MODELS.items()),
        ModelManifest(
            VLLM_MODEL,
            simple_class_path=f"{folder}.vllm_model.GatedSimpleVLLM",
            chat_class_path=f"{folder}.vllm_model.GatedChatVLLM",
        ),
    ]
