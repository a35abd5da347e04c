"""A small LLaVA on the packaged SmolLM2: its shape, its trained weights, and how both become a checkpoint.

What was trained is kept as three files, in bfloat16: `adapter.safetensors` (LoRA on the language model),
`projector.safetensors` and `tower.safetensors`. Everything else is the base model and this module.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from truthgate_eval.errors import ModelError
from truthgate_eval.files import sha256
from truthgate_eval.packaged.scenes import SIZE
from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2
from truthgate_eval.paths import cache_dir, shipped

log = logging.getLogger(__name__)

SCENES_LLAVA = "smollm2-135m-scenes"
# The same training, stopped where the child still errs; its weights are in the repository only.
SCENES_LLAVA_EARLY = "smollm2-135m-scenes-early"
FILES = ("adapter.safetensors", "projector.safetensors", "tower.safetensors")
IMAGE = "<image>"
_PATCH = 16
# No system message: the base's own costs twenty tokens a question and says nothing about pictures.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def resolve_scenes_llava(name: str) -> str:
    """A model's name as transformers takes it; `smollm2-135m-scenes` and its early state turn into folders.

    Raises:
        ModelError: The base model, or the weights, are not there.
    """
    if name not in (SCENES_LLAVA, SCENES_LLAVA_EARLY):
        return name
    folder = cache_dir() / "models" / name
    weights = shipped("packaged_weights") / name
    if not (folder / "config.json").is_file() or _made_from(folder) != _stamp(weights):
        log.warning("putting %s together once in %s (about half a minute)", name, folder)
        assemble(weights, folder)
    return str(folder)


def new_scenes_llava() -> tuple[Any, Any]:
    """The untrained child and its processor.

    Returns:
        A `LlavaForConditionalGeneration` in float32 whose language model is the packaged base, with one
        more row in its embeddings for the picture's placeholder; a `LlavaProcessor`.
    """
    import transformers as hf

    base = resolve_smollm2(SMOLLM2)
    words = hf.AutoTokenizer.from_pretrained(base)
    words.add_special_tokens({"additional_special_tokens": [IMAGE]})
    words.padding_side = "left"
    language: Any = hf.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    language.resize_token_embeddings(len(words), mean_resizing=False)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=_PATCH,
            projection_dim=128,
        ),
        text_config=language.config,
        image_token_index=words.get_vocab()[IMAGE],
        image_seq_length=(SIZE // _PATCH) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    model: Any = hf.LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    images = hf.CLIPImageProcessor(
        size={"height": SIZE, "width": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    processor = hf.LlavaProcessor(
        images,
        words,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    return model, processor


def add_adapter(model: Any) -> Any:
    """The child with LoRA of rank 16 on every linear layer of its language model; that alone is trainable."""
    from peft import LoraConfig, get_peft_model

    layers = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    config = LoraConfig(r=16, lora_alpha=32, target_modules=rf".*language_model.*\.({layers})")
    return get_peft_model(model, config)


def save_weights(model: Any, folder: Path) -> None:
    """Write what was trained of a child with its adapter; all three files or none."""
    from peft import get_peft_model_state_dict

    inner = model.get_base_model().model
    parts = (
        get_peft_model_state_dict(model),
        inner.multi_modal_projector.state_dict(),
        inner.vision_tower.state_dict(),
    )
    partial = Path(f"{folder}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file, weights in zip(FILES, parts, strict=True):
        kept = {
            name: value.detach().to(torch.bfloat16).contiguous()
            for name, value in weights.items()
            if value.is_floating_point()
        }
        save_file(kept, partial / file)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def load_weights(model: Any, folder: Path) -> None:
    """Put trained weights into a child with an adapter.

    Raises:
        ModelError: A file is missing or belongs to another model.
    """
    from peft import set_peft_model_state_dict

    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise ModelError(f"{folder} is no folder of a child's weights: {missing[0]} is missing")
    adapter, projector, tower = (load_file(folder / file) for file in FILES)
    inner = model.get_base_model().model
    try:
        exact = {name: value.float() for name, value in adapter.items()}
        report: Any = set_peft_model_state_dict(model, exact)
        inner.multi_modal_projector.load_state_dict(projector)
        lacking = inner.vision_tower.load_state_dict(tower, strict=False)
    except RuntimeError as error:
        raise ModelError(f"the weights in {folder} do not fit: {str(error).splitlines()[0]}") from error
    unknown = [*report.unexpected_keys, *lacking.unexpected_keys]
    absent = [name for name in lacking.missing_keys if not name.endswith("position_ids")]
    if unknown or absent:
        raise ModelError(f"the weights in {folder} do not fit: {(unknown + absent)[0]}")


def assemble(weights: Path, folder: Path) -> None:
    """Write an ordinary float32 checkpoint with the adapter merged; the folder appears whole or not at all.

    Args:
        weights: Folder with the three files.
        folder: Where to; what is there already is replaced.

    Raises:
        ModelError: The weights are missing or do not fit.
    """
    model, processor = new_scenes_llava()
    model = add_adapter(model)
    load_weights(model, weights)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        merged = model.merge_and_unload()
        merged.save_pretrained(partial)
        processor.save_pretrained(partial)
        (partial / "made_from.txt").write_text(_stamp(weights), encoding="utf-8")
        partial.chmod(0o755)
        if _made_from(folder) != _stamp(weights):  # another process may have been first
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _stamp(weights: Path) -> str:
    """What tells these weights from others."""
    return "\n".join(f"{file} {sha256(weights / file)}" for file in FILES if (weights / file).is_file())


def _made_from(folder: Path) -> str | None:
    file = folder / "made_from.txt"
    return file.read_text(encoding="utf-8") if file.is_file() else None
