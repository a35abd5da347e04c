"""The packaged models by name: children assembled from weights that are made here, on a tiny base."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from truthgate_eval.errors import ModelError
from truthgate_eval.export.source import find_source
from truthgate_eval.harness.lm_eval.model import GatedHF
from truthgate_eval.harness.lm_eval.probing import load_lm
from truthgate_eval.packaged import models, scenes_llava, text_lora
from truthgate_eval.packaged.models import default_scores, resolve_packaged
from truthgate_eval.packaged.smollm2 import SMOLLM2
from truthgate_eval.paths import shipped
from truthgate_eval.vision.loading import LoadOptions, load_vlm

TEXT, IMAGE = "smollm2-135m-halueval", "smollm2-135m-easy-vqa"
TOKENS = torch.tensor([[5, 17, 80, 9], [33, 2, 41, 60]])


def use_base(patch: pytest.MonkeyPatch, base: str) -> None:
    for module in (scenes_llava, text_lora):
        patch.setattr(module, "resolve_smollm2", lambda _: base)


def save_lora(base: str, folder: Path) -> Any:
    """Write a random LoRA adapter as the training does, in bfloat16; the model with it."""
    torch.manual_seed(0)
    loaded: Any = hf.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(loaded, config)
    randomize(model)
    model.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file)
    return model.eval()


def save_llava(folder: Path) -> Any:
    """Write random weights of a LLaVA; the model with them."""
    torch.manual_seed(0)
    model = scenes_llava.add_adapter(scenes_llava.new_scenes_llava()[0])
    randomize(model)
    scenes_llava.save_weights(model, folder)
    return model.eval()


def randomize(model: Any) -> None:
    """Fill the trained parameters with numbers that bfloat16 has; LoRA starts as no change at all."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name or "vision_tower" in name or "projector" in name:
                parameter.copy_((0.1 * torch.randn_like(parameter)).bfloat16())


@pytest.fixture(scope="module")
def trained(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Weights of two children beside a cache of their own: the models that they were saved from."""
    folder = tmp_path_factory.mktemp("family")
    with pytest.MonkeyPatch.context() as patch:
        use_base(patch, checkpoint)
        patch.setenv("TRUTHGATE_CACHE", str(folder / "cache"))
        patch.setattr(models, "shipped", lambda name: folder / name)
        weights = folder / "packaged_weights"
        yield {TEXT: save_lora(checkpoint, weights / TEXT), IMAGE: save_llava(weights / IMAGE)}


@pytest.fixture
def weights(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of packaged weights beside an empty cache."""
    use_base(monkeypatch, checkpoint)
    monkeypatch.setenv("TRUTHGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "shipped", lambda name: tmp_path / name)
    return tmp_path / "packaged_weights"


def test_a_text_child_is_the_base_with_its_adapter_merged(trained: Any, checkpoint: str) -> None:
    folder = resolve_packaged(TEXT, "text")
    child: Any = hf.AutoModelForCausalLM.from_pretrained(folder)
    base: Any = hf.AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        found, expected = child(TOKENS).logits, trained[TEXT](TOKENS).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert (found - base(TOKENS).logits).abs().max() > 0.1
    assert child.dtype == torch.float32
    text = "the same words"
    tokenizers = [hf.AutoTokenizer.from_pretrained(name) for name in (folder, checkpoint)]
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]


def test_a_llava_child_is_the_model_that_its_weights_were_saved_from(trained: Any) -> None:
    child = load_vlm(LoadOptions(IMAGE, device="cpu"))
    assert child.name == IMAGE
    image_token = child.model.config.image_token_index
    tokens = torch.tensor([[5, *[image_token] * 16, 17, 9]])
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = (
            model(input_ids=tokens, pixel_values=pixels).logits for model in (child.model, trained[IMAGE])
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_llava_child_is_the_same_at_each_assembly(trained: Any, tmp_path: Path) -> None:
    """The image token's embedding, which no file has, was another one each time."""
    again = tmp_path / "again"
    scenes_llava.assemble(models.shipped("packaged_weights") / IMAGE, again)
    first = Path(resolve_packaged(IMAGE, "image"))
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_evaluating_probing_and_exporting_take_the_name(trained: Any) -> None:
    expected = resolve_packaged(TEXT, "text")
    evaluated = GatedHF(TEXT, device="cpu", batch_size=1)
    assert evaluated.gate_settings.is_vanilla and evaluated.model_name == TEXT
    probed = load_lm("hf", {"pretrained": TEXT}, batch_size=1, device="cpu")
    with torch.no_grad():
        logits = trained[TEXT](TOKENS).logits
        for lm in (evaluated, probed):
            torch.testing.assert_close(lm.model(TOKENS).logits, logits, rtol=1e-4, atol=1e-4)
    source = find_source(TEXT, "text")
    assert source.location == expected and source.base_model is None
    assert find_source(IMAGE, "image").location == resolve_packaged(IMAGE, "image")


def test_a_child_is_assembled_once_and_again_only_from_other_weights(
    checkpoint: str, weights: Path, caplog: Any
) -> None:
    name = f"{TEXT}-early"
    save_lora(checkpoint, weights / name)
    assert resolve_packaged(name, "text") == resolve_packaged(name, "text")
    assert [record.message.split(" once")[0] for record in caplog.records] == [f"assembling {name}"]
    settings = weights / name / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "lora_alpha": 8}))
    folder = resolve_packaged(name, "text")
    assert len(caplog.records) == 2
    child: Any = hf.AutoModelForCausalLM.from_pretrained(folder)
    base: Any = hf.AutoModelForCausalLM.from_pretrained(checkpoint)
    adapter = load_file(weights / name / "adapter_model.safetensors")
    projection = "model.layers.1.self_attn.o_proj"
    a, b = (adapter[f"base_model.model.{projection}.lora_{side}.weight"].float() for side in "AB")
    expected = base.get_submodule(projection).weight + 8 / 2 * b @ a
    torch.testing.assert_close(child.get_submodule(projection).weight, expected)


@pytest.mark.parametrize(
    ("name", "modality", "remedy"),
    [(TEXT, "text", "install it again"), (f"{IMAGE}-early", "image", "only a checkout has those of early")],
)
def test_missing_weights_are_one_line_before_anything_is_loaded(
    name: str, modality: Any, remedy: str, weights: Path
) -> None:
    (weights / name).mkdir(parents=True)
    with pytest.raises(
        ModelError, match=rf"^the weights of {name} are missing.*/adapter.*: {remedy}"
    ) as caught:
        resolve_packaged(name, modality)
    assert "\n" not in str(caught.value)
    assert not (weights.parent / "cache").exists()


def other_names(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), "strange": torch.zeros(1)}, file)


def other_shapes(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: torch.zeros(3, 3) for name in load_file(file)}, file)


def no_safetensors(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"version https://git-lfs")


def no_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize("damage", [other_names, other_shapes, no_safetensors, no_config])
def test_an_adapter_that_does_not_fit_is_one_line_and_leaves_no_checkpoint(
    damage: Any, checkpoint: str, weights: Path
) -> None:
    save_lora(checkpoint, weights / TEXT)
    damage(weights / TEXT)
    with pytest.raises(ModelError, match=r"the weights in .* do not fit: .+$") as caught:
        resolve_packaged(TEXT, "text")
    assert "\n" not in str(caught.value)
    assert [path.name for path in (weights.parent / "cache" / "models").iterdir()] == [f".{TEXT}.lock"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("smollm2-135m-haluval", TEXT),
        ("smollm2-135m-easyvqa", IMAGE),
        ("SmolLM2-135M-scenes-early", "smollm2-135m-scenes-early"),
        ("smollm2-135m-instruct ", SMOLLM2),
    ],
)
@pytest.mark.parametrize("modality", ["text", "image"])
def test_a_name_that_is_nearly_a_packaged_one_is_one_line_with_the_near_ones(
    written: str, meant: str, modality: Any
) -> None:
    with pytest.raises(ModelError, match=rf"has the name {written}: try .*\b{meant}(,|$)"):
        resolve_packaged(written, modality)


def test_other_names_and_folders_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("owner/smollm2-135m-halueva", "gpt2", "distilbert-base-uncased", str(tmp_path / "absent")):
        assert resolve_packaged(name, "text") == resolve_packaged(name, "image") == name
    (tmp_path / "smollm2-135m-scene").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_packaged("smollm2-135m-scene", "image") == "smollm2-135m-scene"


@pytest.mark.parametrize(
    ("name", "modality", "said"),
    [
        (TEXT, "image", "is a text model: lm_eval --model gated_hf"),
        (SMOLLM2, "image", "is a text model"),
        (IMAGE, "text", "takes images: lmms_eval --model gated_vlm"),
    ],
)
def test_a_packaged_model_of_the_other_kind_says_what_runs_it(name: str, modality: Any, said: str) -> None:
    with pytest.raises(ModelError, match=f"^{name} {said}"):
        resolve_packaged(name, modality)


def test_children_run_without_a_gate_where_no_scores_are_named(caplog: Any) -> None:
    caplog.set_level(logging.INFO, "truthgate_eval")
    assert [default_scores(name, None) for name in models.CHILDREN] == ["none"] * len(models.CHILDREN)
    assert caplog.records[0].message.endswith("smollm2-135m-scenes runs without a gate")
    assert default_scores(TEXT, "scores.npz") == "scores.npz"
    assert default_scores("owner/model", None) is default_scores(torch.nn.Linear(1, 1), None) is None


def shipped_children() -> list[str]:
    """The children with a folder in this checkout."""
    return sorted(path.name for path in shipped("packaged_weights").iterdir())


def test_every_child_is_shipped_and_nothing_else() -> None:
    assert shipped_children() == sorted(models.CHILDREN)


@pytest.mark.parametrize("name", shipped_children())
def test_shipped_weights_are_small_and_have_a_card(name: str) -> None:
    folder, files = shipped("packaged_weights") / name, models.CHILDREN[name].files
    size = sum((folder / file).stat().st_size for file in files)
    limit = 5e6 if models.CHILDREN[name].modality == "text" else 15e6
    assert 1e5 < size <= limit
    assert (folder / "README.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
    assert not [path for path in folder.iterdir() if os.path.getsize(path) > limit]
