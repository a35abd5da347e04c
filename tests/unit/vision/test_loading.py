"""Loading by name: every option does what it says, and every mistake is one clear line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from helpers import tiny_vision_models as factories_vlm
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from truthgate_eval.errors import ModelError
from truthgate_eval.vision.loading import LoadOptions, load_vlm

Folder = Callable[[str], str]
GREEDY = {"max_new_tokens": 10, "do_sample": False}


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def refused(**arguments: Any) -> str:
    with pytest.raises(ModelError) as error:
        load_vlm(LoadOptions.parse({"device": "cpu", **arguments}))
    return one_line(error)


@pytest.fixture
def llava(vlm_checkpoint: Folder, tmp_path: Path) -> Path:
    """A copy of the tiny LLaVA, to be damaged."""
    return Path(shutil.copytree(vlm_checkpoint("llava"), tmp_path / "llava"))


def without_templates(folder: Path) -> Path:
    (folder / "chat_template.jinja").unlink()
    for file in ("processor_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / file).read_text())
        settings.pop("chat_template", None)
        (folder / file).write_text(json.dumps(settings))
    return folder


def test_values_as_harnesses_parse_them_are_understood() -> None:
    given = {
        "pretrained": 7, "revision": "None", "dtype": "float32", "load_in_4bit": 0, "load_in_8bit": "True",
        "max_pixels": 100.0, "min_pixels": "50", "device": "", "peft": None,
    }  # fmt: skip
    assert LoadOptions.parse(given) == LoadOptions(
        "7", dtype="float32", load_in_8bit=True, max_pixels=100, min_pixels=50
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"load_in_4bit": "maybe"}, "load_in_4bit=maybe is neither True nor False"),
        ({"max_pixels": -3}, "max_pixels=-3 is not a whole number above 0"),
        ({"max_pixels": 2.5}, "max_pixels=2.5 is not a whole number"),
        ({"max_pixels": float("inf")}, "max_pixels=inf is not a whole number"),
        ({"max_pixels": True}, "max_pixels=True is not a whole number"),
        ({"revision": 1e5}, "revision=100000.0 is not a text"),
        ({"peft": True}, "peft=True is not a text"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "exclude each other"),
        ({"device": "cpu", "device_map": "auto"}, "exclude each other"),
    ],
)
def test_values_of_the_wrong_type_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LoadOptions.parse({"pretrained": "some/model", **given})


def test_a_device_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(pretrained="some/model", device="cuda:0")
    assert message == "device=cuda:0, but torch finds no CUDA device here; use device=cpu"


def test_models_that_are_not_there_or_take_no_images_are_named(checkpoint: str) -> None:
    assert refused(pretrained="/nowhere/model") == "there is no model folder /nowhere/model"
    assert "model 'no-such-owner/no-such-model' cannot be loaded" in refused(
        pretrained="no-such-owner/no-such-model"
    )
    assert f"model {checkpoint!r} is a llama, which takes no pictures" in refused(pretrained=checkpoint)


def test_a_model_without_a_processor_is_named(llava: Path) -> None:
    (llava / "processor_config.json").unlink()
    assert "processor" in refused(pretrained=str(llava))


def test_an_unknown_type_or_a_package_that_is_not_there_is_named(
    llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "dtype=float3 is no floating-point type" in refused(pretrained=str(llava), dtype="float3")
    assert "dtype=int8 is no floating-point type" in refused(pretrained=str(llava), dtype="int8")
    assert "flash" in refused(pretrained=str(llava), attn_implementation="flash_attention_2").lower()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    expected = "load_in_4bit needs the package bitsandbytes: pip install bitsandbytes"
    assert refused(pretrained=str(llava), load_in_4bit=True) == expected


def test_weights_that_the_checkpoint_lacks_are_an_error(llava: Path) -> None:
    weights = load_file(llava / "model.safetensors")
    name = next(key for key in weights if "layers.1.self_attn.o_proj" in key and "language" in key)
    del weights[name]
    save_file(weights, llava / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 weights, such as" in refused(pretrained=str(llava))


def test_an_adapter_is_loaded_or_named(llava: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    missing = refused(pretrained=str(llava), peft=str(adapter))
    assert f"adapter {str(adapter)!r} of model {str(llava)!r} cannot be loaded" in missing
    base = hf.LlavaForConditionalGeneration.from_pretrained(llava)
    tuned = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    tuned.save_pretrained(adapter)
    vlm = load_vlm(LoadOptions(str(llava), device="cpu", peft=str(adapter)))
    assert isinstance(vlm.model, PeftModel)
    plain = load_vlm(LoadOptions(str(llava), device="cpu"))
    prompt, image = vlm.prompt("What is it?", 1), factories_vlm.random_image()
    inputs = plain.encode([prompt], [[image]])
    with torch.no_grad():
        torch.testing.assert_close(vlm.model(**inputs).logits, tuned.eval()(**inputs).logits)
        assert not torch.allclose(vlm.model(**inputs).logits, plain.model(**inputs).logits)
    assert len(vlm.losses([prompt], [" Yes"], [[image]])) == 1


def test_dtype_and_device_map_are_obeyed(llava: Path) -> None:
    vlm = load_vlm(LoadOptions(str(llava), dtype="bfloat16", device_map="cpu"))
    assert vlm.model.dtype == torch.bfloat16
    assert vlm.generate([vlm.prompt("a", 1)], [[factories_vlm.random_image()]], **GREEDY)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_5_omni"])
def test_pixel_limits_change_how_many_tokens_an_image_takes(name: str, vlm_checkpoint: Folder) -> None:
    def tokens(**limits: int) -> int:
        vlm = load_vlm(LoadOptions(vlm_checkpoint(name), device="cpu", **limits))
        return vlm.encode([vlm.prompt("a", 1)], [[factories_vlm.random_image(0, (112, 112))]])[
            "input_ids"
        ].shape[1]

    assert tokens() - tokens(max_pixels=56 * 56) == 12  # 4 x 4 merged patches become 2 x 2
    assert tokens(min_pixels=168 * 168, max_pixels=224 * 224) - tokens() == 20  # 6 x 6


def test_pixel_limits_are_refused_where_there_are_none(llava: Path) -> None:
    assert "has no min_pixels and max_pixels" in refused(pretrained=str(llava), max_pixels=100)


def test_a_processor_without_a_template_is_refused_with_the_options_there_are(
    llava: Path, tmp_path: Path
) -> None:
    without_templates(llava)
    message = refused(pretrained=str(llava))
    assert "has no chat template" in message
    assert "chat_template=FILE" in message and "chat_template=plain" in message
    file = tmp_path / "template.jinja"
    file.write_text(factories_vlm.LLAVA_TEMPLATE)
    given = load_vlm(LoadOptions(str(llava), device="cpu", chat_template=str(file)))
    assert given.prompt("What?", 1) == "USER: <image>\nWhat? ASSISTANT:"
    plain = load_vlm(LoadOptions(str(llava), device="cpu", chat_template="plain"))
    assert plain.prompt("What?", 1) == "<image>\nWhat?"
    assert plain.prompt("What?", 0) == "What?"
    assert plain.generate([plain.prompt("What?", 1)], [[factories_vlm.random_image()]], **GREEDY)


def test_a_template_that_wants_strings_gets_them(llava: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(factories_vlm.STRING_TEMPLATE)
    vlm = load_vlm(LoadOptions(str(llava), device="cpu", chat_template=str(file)))
    assert vlm.prompt("What?", 1) == "user> <image>\nWhat?\nassistant>"
    assert vlm.prompt("What?", 2) == "user> <image> <image>\nWhat?\nassistant>"
    assert vlm.prompt("What is <image>?", 1) == "user> What is <image>?\nassistant>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['role'] }}", "shows no picture"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor", "not valid Jinja"),
        ("{{ raise_exception('never') }}", "shows no picture"),
    ],
)
def test_templates_that_do_not_work_are_refused(
    template: str, message: str, llava: Path, tmp_path: Path
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(template)
    assert message in refused(pretrained=str(llava), chat_template=str(file))


def test_a_template_file_that_is_not_there_is_named(llava: Path) -> None:
    assert "chat_template=/nowhere.jinja cannot be read" in refused(
        pretrained=str(llava), chat_template="/nowhere.jinja"
    )


def test_plain_text_frames_an_image_as_qwen_wants_it(vlm_checkpoint: Folder) -> None:
    vlm = load_vlm(LoadOptions(vlm_checkpoint("qwen2_5_vl"), device="cpu", chat_template="plain"))
    assert vlm.prompt("What?", 1) == "<|vision_start|><|image_pad|><|vision_end|>\nWhat?"
