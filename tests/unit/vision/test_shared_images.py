"""Classes whose images are more than one run of one token: shared as the plain model computes them, or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.prompts import image_prompts, questions
from helpers.tiny_vision_models import random_image

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.inference.prefix_plan import PackedPrompt, PrefixGroup
from truthgate_eval.inference.self_check import cache_lower_layers
from truthgate_eval.vision import self_check
from truthgate_eval.vision.image_features import encode_images
from truthgate_eval.vision.image_tokens import ImageMismatchError
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImageQuestionEngine
from truthgate_eval.vision.shared_prefix import SharedPrefixVLM

Folder = Callable[[str], str]
SHARED = ("idefics3", "smolvlm_whole", "qwen2_vl", "qwen3_vl", "internvl", "pixtral", "mistral3")
NEW_TOKENS = 6


def load(folder: str) -> VisionLanguageModel:
    return load_vlm(LoadOptions(folder, device="cpu"))


def share(vlm: VisionLanguageModel) -> SharedPrefixVLM:
    return self_check.load(vlm, find_attention_layout(vlm.model).decoder)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_texts_and_losses_are_those_of_the_plain_model_alone(name: str, vlm_checkpoint: Folder) -> None:
    vlm = load(vlm_checkpoint(name))
    shared = share(vlm)
    assert shared.supports_sharing and shared.supports_multi_image
    engine = ImageQuestionEngine(vlm, shared)
    prompts = [(vlm.prompt(text, len(images)), images) for text, images in questions()]
    expected = [
        vlm.generate([prompt], [images], max_new_tokens=NEW_TOKENS, do_sample=False)[0]
        for prompt, images in prompts
    ]
    found = engine.generate(image_prompts(engine), max_new_tokens=NEW_TOKENS, batch_size=8)
    assert found == expected and len(set(expected)) > 3
    losses = engine.losses(image_prompts(engine, [" Yes, it is"]), batch_size=8)
    for mine, (prompt, images) in zip(losses, prompts, strict=True):
        [plain] = vlm.losses([prompt], [" Yes, it is"], [images])
        assert mine == (pytest.approx(plain[0], abs=1e-4), plain[1])


def test_what_an_image_adds_to_the_first_layers_is_the_vision_towers(vlm_checkpoint: Folder) -> None:
    vlm = load(vlm_checkpoint("qwen3_vl"))
    images = [random_image(n, (60 + 50 * n, 60)) for n in range(3)]
    decoder = find_attention_layout(vlm.model).decoder
    for image, found in zip(images, encode_images(vlm, decoder, images), strict=True):
        inputs = vlm.encode([vlm.prompt("what?", 1)], [[image]])
        with torch.no_grad():
            own = vlm.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        assert found.layer_features is not None and found.layer_features.shape == (2, len(found), 32)
        for layer, [features] in zip(found.layer_features, own.deepstack_features, strict=True):
            torch.testing.assert_close(layer, features, atol=1e-5, rtol=1e-5)
        assert found.memory == 3 * 4 * found.features.numel()


def test_a_pass_without_what_an_image_adds_is_found(
    vlm_checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = share(load(vlm_checkpoint("qwen3_vl")))
    assert shared.supports_sharing and shared.supports_multi_image
    with_images = SharedPrefixVLM._set_images

    def without(self: SharedPrefixVLM, images: list) -> None:
        with_images(self, images)
        self._layer_features = None

    monkeypatch.setattr(SharedPrefixVLM, "_set_images", without)
    reason = self_check.find_sharing_mismatch(shared)
    assert reason is not None and reason.startswith("with packed prompts, logits differ by ")


def test_a_shared_prefix_with_an_image_has_what_the_image_adds(vlm_checkpoint: Folder) -> None:
    model = share(load(vlm_checkpoint("qwen3_vl"))).for_self_check()
    whole = model.make_reference().prompt
    assert max(whole.prefix) >= model.first_image_id
    after = PackedPrompt((), whole.suffixes, whole.sequence_ids)
    cache = model.compute_prefix(PrefixGroup(whole.prefix, ()))
    expected, found = (
        model.logits(batch, *batch.last_tokens([prompt]), prefix)
        for prompt, prefix in ((whole, None), (after, cache))
        for batch in [model.pack([prompt], prefix)]
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_lower_layers_are_cached_where_an_image_adds_to_them(vlm_checkpoint: Folder) -> None:
    vlm = load(vlm_checkpoint("qwen3_vl"))
    layout = find_attention_layout(vlm.model)
    shared = share(vlm)
    engine = ImageQuestionEngine(vlm, shared)
    prompts = image_prompts(engine)[:8]
    expected = engine.losses(image_prompts(engine, [" Yes"])[:8], batch_size=4)
    texts = engine.generate(prompts, max_new_tokens=2, batch_size=4)
    assert cache_lower_layers(shared, layout.layers[:2]) is not None
    for _ in range(2):
        assert engine.generate(prompts, max_new_tokens=2, batch_size=4) == texts
        found = engine.losses(image_prompts(engine, [" Yes"])[:8], batch_size=4)
        assert found == expected
    assert shared.lower_layers is not None and shared.lower_layers.num_reused > 0


def test_line_breaks_around_an_image_are_not_shared(vlm_checkpoint: Folder) -> None:
    """Gemma 3's processor writes two before and after an image, which are one token with the prompt's."""
    vlm = load(vlm_checkpoint("gemma3"))
    with pytest.raises(ImageMismatchError, match="changes the text around an image"):
        encode_images(vlm, find_attention_layout(vlm.model).decoder, [random_image()])
    assert not share(vlm).supports_sharing


def test_images_that_are_cut_into_tiles_only_alone_are_shared_only_alone(vlm_checkpoint: Folder) -> None:
    shared = share(load(vlm_checkpoint("llava_onevision")))
    assert shared.supports_sharing and not shared.supports_multi_image
