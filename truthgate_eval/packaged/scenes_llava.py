"""A small LLaVA on the packaged SmolLM2: its architecture, and its weights, trained on scenes or easy-VQA.

The trained weights are three files in bfloat16: `adapter.safetensors` (LoRA on the language model),
`projector.safetensors` and `tower.safetensors`. With the base model they are assembled to an ordinary
checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from truthgate_eval.errors import ModelError, first_line
from truthgate_eval.files import replace_folder
from truthgate_eval.packaged.scenes import IMAGE_SIZE
from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

SCENES_LLAVA = "smollm2-135m-scenes"
# An earlier state of its training, with more wrong answers.
SCENES_LLAVA_EARLY = "smollm2-135m-scenes-early"
WEIGHT_FILES = ("adapter.safetensors", "projector.safetensors", "tower.safetensors")
IMAGE_TOKEN = "<image>"
_PATCH_SIZE = 16
# Without the system message of the base model, which costs twenty tokens a question.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def new_scenes_llava() -> tuple[Any, Any]:
    """The model before its training, and its processor.

    Returns:
        A `LlavaForConditionalGeneration` in float32 with the packaged SmolLM2 as its language model, whose
        embeddings have one more row for the image token; a `LlavaProcessor`.
    """
    import transformers as hf

    base = resolve_smollm2(SMOLLM2)
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.padding_side = "left"
    language_model: Any = hf.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():  # new rows are random: each assembly would be another model
        language_model.get_input_embeddings().weight[tokenizer.get_vocab()[IMAGE_TOKEN]] = 0.0
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=_PATCH_SIZE,
            projection_dim=128,
        ),
        text_config=language_model.config,
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
        image_seq_length=(IMAGE_SIZE // _PATCH_SIZE) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    model: Any = hf.LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    image_processor = hf.CLIPImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    )
    processor = hf.LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=_PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    return model, processor


def add_adapter(model: Any) -> Any:
    """The model with LoRA of rank 16 on every linear layer of its language model; only LoRA is trainable."""
    from peft import LoraConfig, get_peft_model

    modules = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    config = LoraConfig(r=16, lora_alpha=32, target_modules=rf".*language_model.*\.({modules})")
    return get_peft_model(model, config)


def save_weights(model: Any, folder: Path) -> None:
    """Write the trained weights of a model that `add_adapter` made; all three files or none."""
    from peft import get_peft_model_state_dict

    inner = model.get_base_model().model
    states = (
        get_peft_model_state_dict(model),
        inner.multi_modal_projector.state_dict(),
        inner.vision_tower.state_dict(),
    )
    with replace_folder(folder) as partial:
        for file, weights in zip(WEIGHT_FILES, states, strict=True):
            saved = {
                name: value.detach().to(torch.bfloat16).contiguous()
                for name, value in weights.items()
                if value.is_floating_point()
            }
            save_file(saved, partial / file)


def load_weights(model: Any, folder: Path) -> None:
    """Load trained weights into a model that `add_adapter` made.

    Raises:
        ModelError: A file is missing or belongs to another model.
    """
    from peft import set_peft_model_state_dict

    missing = [file for file in WEIGHT_FILES if not (folder / file).is_file()]
    if missing:
        raise ModelError(f"{folder} has no trained weights: {missing[0]} is missing")
    adapter, projector, tower = (load_file(folder / file) for file in WEIGHT_FILES)
    inner = model.get_base_model().model
    try:
        in_float32 = {name: value.float() for name, value in adapter.items()}
        adapter_keys: Any = set_peft_model_state_dict(model, in_float32)
        inner.multi_modal_projector.load_state_dict(projector)
        tower_keys = inner.vision_tower.load_state_dict(tower, strict=False)
    except RuntimeError as error:
        raise ModelError(f"the weights in {folder} do not fit: {first_line(error)}") from error
    unexpected = [*adapter_keys.unexpected_keys, *tower_keys.unexpected_keys]
    absent = [name for name in tower_keys.missing_keys if not name.endswith("position_ids")]
    if unexpected or absent:
        raise ModelError(f"the weights in {folder} do not fit: {(unexpected + absent)[0]}")


def assemble(weights: Path, folder: Path) -> None:
    """Write an ordinary float32 checkpoint with the adapter merged into the base model.

    Args:
        weights: Folder with the three files of `WEIGHT_FILES`.
        folder: For the checkpoint.

    Raises:
        ModelError: The weights are missing or do not fit.
    """
    model, processor = new_scenes_llava()
    model = add_adapter(model)
    load_weights(model, weights)
    merged = model.merge_and_unload()
    merged.save_pretrained(folder)
    processor.save_pretrained(folder)
