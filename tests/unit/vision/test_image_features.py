"""Pictures as a decoder sees them: what is kept, for how long, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_vision_models as factories_vlm

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.vision.image_features import (
    ImageFeatureCache,
    ImageFeatures,
    ImageMismatchError,
    encode_images,
    expand_images,
    find_image_token,
    image_key,
)
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.model import VisionLanguageModel

Folder = Callable[[str], str]


def load(folder: str) -> VisionLanguageModel:
    return load_vlm(LoadOptions(folder, device="cpu"))


@pytest.mark.parametrize("name", factories_vlm.NAMES)
def test_features_are_the_models_own_and_there_are_as_many_as_placeholders(
    name: str, vlm_checkpoint: Folder
) -> None:
    vlm = load(vlm_checkpoint(name))
    pictures = [factories_vlm.picture(n, (40 + 30 * n, 90)) for n in range(3)]
    decoder = find_attention_layout(vlm.model).decoder
    runs: list[int] = []
    decoder.register_forward_hook(lambda *_: runs.append(1))
    for picture, seen in zip(pictures, encode_images(vlm, decoder, pictures), strict=True):
        inputs = vlm.encode([vlm.prompt("what?", 1)], [[picture]])
        count = int((inputs["input_ids"] == find_image_token(vlm)).sum())
        wanted = {k: inputs[k] for k in ("pixel_values", "image_sizes", "image_grid_thw") if k in inputs}
        with torch.no_grad():
            [own] = vlm.model.get_image_features(**wanted).pooler_output
        assert len(seen) == count > 1 and own.numel() >= seen.features.numel()
        if name != "llava_next":  # whose tiles are put together afterwards, with line breaks
            torch.testing.assert_close(seen.features, own.reshape(count, -1), atol=1e-5, rtol=1e-5)
    assert runs == []


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_5_omni"])
def test_places_are_those_of_the_models_rope_index(name: str, vlm_checkpoint: Folder) -> None:
    from truthgate_eval.vision.shared_prefix import SharedPrefixVLM

    vlm = load(vlm_checkpoint(name))
    forward = SharedPrefixVLM(vlm, find_attention_layout(vlm.model).decoder)
    pictures = [factories_vlm.picture(n, (112, 60 + 50 * n)) for n in range(2)]
    showing = forward.with_images(encode_images(vlm, forward.decoder, pictures))
    assert showing.position_ids is not None
    for order in ([0], [1], [0, 1], [1, 0, 1]):
        text = vlm.prompt("what is it?", len(order))
        inputs = vlm.encode([text], [[pictures[n] for n in order]])
        given = {
            k: inputs[k] for k in ("image_grid_thw", "attention_mask", "mm_token_type_ids") if k in inputs
        }
        expected, delta = vlm.model.model.get_rope_index(inputs["input_ids"], **given) if name == "qwen2_5_vl" else vlm.model.get_rope_index(inputs["input_ids"], given["image_grid_thw"], attention_mask=given["attention_mask"])  # fmt: skip
        tokens = showing.expand(vlm.tokens(text), order)
        places = showing.position_ids(tokens)
        assert np.array_equal(places[:, :-1], expected[:, 0].numpy())
        assert (places[:, -1] == len(tokens) + int(delta)).all()
        assert int(delta) < 0


def test_equal_pixels_are_one_picture() -> None:
    one = factories_vlm.picture(1)
    assert image_key(one) == image_key(one.copy())
    changed = one.copy()
    changed.putpixel((3, 3), (0, 0, 0))
    turned = one.resize((one.height, one.width))
    assert len({image_key(p) for p in (one, changed, turned, one.convert("L"))}) == 4


def seen(tokens: int) -> ImageFeatures:
    return ImageFeatures(torch.zeros(tokens, 8), None, tokens)


def test_the_longest_unused_are_dropped_where_memory_is_bounded() -> None:
    kept = ImageFeatureCache(memory=3 * 4 * 8 * 4).for_model("a model")
    for key in "abc":
        kept.add(key, seen(4))
    assert kept.get("a") is not None
    kept.add("d", seen(4))
    assert [key for key in "abcd" if kept.get(key)] == ["a", "c", "d"]
    assert all(kept.for_model("a model").get(key) for key in "acd")
    assert not any(kept.for_model("another").get(key) for key in "acd")


def test_another_adapter_sees_anew() -> None:
    class Adapted(torch.nn.Module):
        active_adapters = ("one",)

    model, kept = Adapted(), ImageFeatureCache()
    kept.for_model(model).add("a", seen(1))
    assert kept.for_model(model).get("a") is not None
    model.active_adapters = ("two",)
    assert kept.for_model(model).get("a") is None


def test_placeholders_become_runs_in_order_and_must_be_as_many() -> None:
    assert expand_images([1, 9, 2, 9], 9, [[20, 21], [30]]) == [1, 20, 21, 2, 30]
    with pytest.raises(ImageMismatchError, match="2 placeholders, not 1"):
        expand_images([1, 9, 9], 9, [[20]])


def test_a_processor_that_writes_more_around_a_picture_is_found(
    vlm_checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load(vlm_checkpoint("llava"))
    plain = type(vlm.processor).__call__

    def call(self: Any, *args: Any, text: list[str], **kwargs: Any) -> Any:
        return plain(self, *args, text=[one.replace("<image>", "<image>!") for one in text], **kwargs)

    monkeypatch.setattr(type(vlm.processor), "__call__", call)
    with pytest.raises(ImageMismatchError, match="more than one run"):
        encode_images(vlm, find_attention_layout(vlm.model).decoder, [factories_vlm.picture()])
