"""Features of images: what they are, how long they are kept, and what identifies an image."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_vision_models as factories_vlm
from PIL import ExifTags, Image, ImageOps
from transformers.image_utils import load_image

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.vision import self_check
from truthgate_eval.vision.image_features import (
    ImageFeatureCache,
    ImageFeatures,
    encode_images,
    image_key,
)
from truthgate_eval.vision.image_tokens import ImageMismatchError, expand_images, find_image_token
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
    images = [factories_vlm.random_image(n, (40 + 30 * n, 90)) for n in range(3)]
    decoder = find_attention_layout(vlm.model).decoder
    runs: list[int] = []
    decoder.register_forward_hook(lambda *_: runs.append(1))
    for image, found in zip(images, encode_images(vlm, decoder, images), strict=True):
        inputs = vlm.encode([vlm.prompt("what?", 1)], [[image]])
        count = int((inputs["input_ids"] == find_image_token(vlm)).sum())
        wanted = {k: inputs[k] for k in ("pixel_values", "image_sizes", "image_grid_thw") if k in inputs}
        with torch.no_grad():
            [own] = vlm.model.get_image_features(**wanted).pooler_output
        assert len(found) == count > 1 and own.numel() >= found.features.numel()
        if name != "llava_next":  # whose tiles are put together afterwards, with line breaks
            torch.testing.assert_close(found.features, own.reshape(count, -1), atol=1e-5, rtol=1e-5)
    assert runs == []


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_5_omni"])
def test_position_ids_are_those_of_the_models_rope_index(name: str, vlm_checkpoint: Folder) -> None:
    vlm = load(vlm_checkpoint(name))
    shared = self_check.load(vlm, find_attention_layout(vlm.model).decoder)
    images = [factories_vlm.random_image(n, (112, 60 + 50 * n)) for n in range(2)]
    model = shared.with_images(encode_images(vlm, shared.decoder, images))
    assert model.position_ids is not None
    for order in ([0], [1], [0, 1], [1, 0, 1]):
        text = vlm.prompt("what is it?", len(order))
        inputs = vlm.encode([text], [[images[n] for n in order]])
        given = {
            k: inputs[k] for k in ("image_grid_thw", "attention_mask", "mm_token_type_ids") if k in inputs
        }
        expected, delta = vlm.model.model.get_rope_index(inputs["input_ids"], **given) if name == "qwen2_5_vl" else vlm.model.get_rope_index(inputs["input_ids"], given["image_grid_thw"], attention_mask=given["attention_mask"])  # fmt: skip
        token_ids = model.expand(vlm.tokens(text), order)
        positions = model.position_ids(token_ids)
        assert np.array_equal(positions[:, :-1], expected[:, 0].numpy())
        assert (positions[:, -1] == len(token_ids) + int(delta)).all()
        assert int(delta) < 0


def test_equal_pixels_are_one_image() -> None:
    one = factories_vlm.random_image(1)
    assert image_key(one) == image_key(one.copy())
    changed = one.copy()
    changed.putpixel((3, 3), (0, 0, 0))
    turned = one.resize((one.height, one.width))
    assert len({image_key(image) for image in (one, changed, turned, one.convert("L"))}) == 4


def saved(image: Image.Image, file_format: str = "PNG", **options: Any) -> Image.Image:
    """The image as it is read back from a file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return Image.open(file)


def test_the_same_file_read_twice_is_one_image() -> None:
    image = factories_vlm.random_image(1).quantize(16)
    assert image_key(saved(image, transparency=3)) == image_key(saved(image, transparency=3))


def test_equal_indices_into_other_palettes_are_other_images() -> None:
    one = factories_vlm.random_image(1).quantize(16)
    other = one.copy()
    other.putpalette([255 - value for value in one.getpalette() or []])
    assert one.tobytes() == other.tobytes() and one.mode == other.mode == "P"
    assert one.convert("RGB").tobytes() != other.convert("RGB").tobytes()
    assert image_key(one) != image_key(other)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_color_makes_another_image(mode: str) -> None:
    plain = factories_vlm.random_image(1).convert(mode)
    clear = saved(plain, transparency=plain.getpixel((0, 0)))
    assert clear.tobytes() == plain.tobytes() and clear.mode == plain.mode
    assert clear.convert("RGBA").tobytes() != plain.convert("RGBA").tobytes()
    assert image_key(clear) != image_key(saved(plain))


def test_an_exif_orientation_makes_another_image() -> None:
    """Transformers' `load_image` turns an image by it before anything else."""
    image = factories_vlm.random_image(1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = saved(image, exif=exif)
    assert turned.tobytes() == image.tobytes() and turned.size == image.size
    assert ImageOps.exif_transpose(turned).size != image.size
    assert image_key(turned) != image_key(saved(image))


def upright(image: Image.Image) -> Any:
    """The pixels of transformers' `load_image`, which turns an image by its EXIF orientation."""
    return np.asarray(load_image(image))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_counts_in_every_format_that_has_one(file_format: str) -> None:
    image, exif = factories_vlm.random_image(1), Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    turned, plain = saved(image, file_format, exif=exif), saved(image, file_format)
    assert not np.array_equal(upright(turned), upright(plain))
    assert image_key(turned) != image_key(plain)


def test_an_orientation_in_xmp_alone_counts_as_pillow_reads_it() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image = factories_vlm.random_image(1)
    turned, plain = saved(image, "WEBP", lossless=True, xmp=xmp), saved(image, "WEBP", lossless=True)
    turned.info["XML:com.adobe.xmp"] = xmp.decode()
    assert upright(turned).shape != upright(plain).shape
    assert image_key(turned) != image_key(plain)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP"])
def test_another_frame_is_another_image(file_format: str) -> None:
    frames = [factories_vlm.random_image(n).quantize(16) for n in range(2)]
    if file_format == "WEBP":
        frames = [frame.convert("RGB") for frame in frames]
    options = {"save_all": True, "append_images": frames[1:]}
    first, second = saved(frames[0], file_format, **options), saved(frames[0], file_format, **options)
    assert image_key(first) == image_key(second)
    second.seek(1)
    assert not np.array_equal(upright(first), upright(second))
    assert image_key(first) != image_key(second)


def palette_alpha(alpha: int) -> Image.Image:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 255, 9, 8, 7, alpha], "RGBA")
    return image


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (palette_alpha(255), palette_alpha(0)),
        (Image.new("LA", (4, 3), (9, 255)), Image.new("LA", (4, 3), (9, 0))),
        (Image.new("CMYK", (4, 3), (1, 2, 3, 4)), Image.new("RGBA", (4, 3), (1, 2, 3, 4))),
        (Image.new("YCbCr", (4, 3), (9, 8, 7)), Image.new("RGB", (4, 3), (9, 8, 7))),
        (Image.new("I", (4, 3), 1), Image.frombytes("F", (4, 3), Image.new("I", (4, 3), 1).tobytes())),
        (Image.new("1", (8, 1), 1), Image.frombytes("L", (1, 1), b"\xff")),
    ],
)  # fmt: skip
def test_equal_stored_values_of_other_modes_or_opacity_are_other_images(
    one: Image.Image, other: Image.Image
) -> None:
    same = one.tobytes() == other.tobytes()
    assert same or one.mode == "LA"  # where the values differ themselves
    assert image_key(one) != image_key(other) and image_key(one) == image_key(one.copy())


def features(tokens: int) -> ImageFeatures:
    return ImageFeatures(torch.zeros(tokens, 8), None, tokens)


def test_the_least_recently_used_features_are_dropped_where_memory_is_short() -> None:
    cache = ImageFeatureCache(memory=3 * 4 * 8 * 4).for_model("a model")
    for key in "abc":
        cache.add(key, features(4))
    assert cache.get("a") is not None
    cache.add("d", features(4))
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]
    assert all(cache.for_model("a model").get(key) for key in "acd")
    assert not any(cache.for_model("another").get(key) for key in "acd")


def test_another_adapter_encodes_images_again() -> None:
    class Adapted(torch.nn.Module):
        active_adapters = ("one",)

    model, cache = Adapted(), ImageFeatureCache()
    cache.for_model(model).add("a", features(1))
    assert cache.for_model(model).get("a") is not None
    model.active_adapters = ("two",)
    assert cache.for_model(model).get("a") is None


def test_placeholders_become_runs_in_order_and_must_be_as_many() -> None:
    assert expand_images([1, 9, 2, 9], 9, [[20, 21], [30]]) == [1, 20, 21, 2, 30]
    with pytest.raises(ImageMismatchError, match="2 placeholders, not 1"):
        expand_images([1, 9, 9], 9, [[20]])


def test_a_processor_that_writes_more_around_an_image_is_found(
    vlm_checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load(vlm_checkpoint("llava"))
    plain = type(vlm.processor).__call__

    def call(self: Any, *args: Any, text: list[str], **kwargs: Any) -> Any:
        return plain(self, *args, text=[one.replace("<image>", "<image>!") for one in text], **kwargs)

    monkeypatch.setattr(type(vlm.processor), "__call__", call)
    with pytest.raises(ImageMismatchError, match="begins or ends an image with ordinary text"):
        encode_images(vlm, find_attention_layout(vlm.model).decoder, [factories_vlm.random_image()])
