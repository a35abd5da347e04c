"""POPE-like polls, 18 questions about each image: `gated_vlm` without a gate against lmms-eval's `llava_hf`.

The language model is the real SmolLM2-135M. The vision tower is a small CLIP of random weights that makes
LLaVA-1.5's 576 tokens of an image. Its features mean nothing, and it costs far less than a real tower; the
baseline runs it for every question. On a GPU both halves have LLaVA-1.5-7B's shape, with random weights made
there.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image

from benchmarks.halueval import checked, same_texts
from benchmarks.measure import Result, compare
from benchmarks.work import config_7b, load_model
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

DEVICES = ("cpu", "cuda")
THINGS = (
    "person dog cat car chair table cup bottle bird boat tree truck bench book clock umbrella horse bicycle"
).split()
# POPE's answers are one word and the token that ends it; this model, which sees noise, may say more.
_MOST = 4
_SMALL_TOWER, _LARGE_TOWER = (64, 4, 4, 128), (1024, 24, 16, 4096)
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def run(name: str, *, quick: bool, rounds: int, device: str = "cpu") -> Iterator[Result]:
    """Yield `pope`, `pope_duplicates` (repeated as in POPE's splits) or `pope_batch8` (with engine=off)."""
    torch.set_num_threads(1)
    folder = checkpoint(device)
    options = {"device": device, "dtype": "float32" if device == "cpu" else "bfloat16"}
    ours = GatedVLM(folder, scores="none", batch_size=8, **options)
    if name == "pope_batch8":
        theirs: Any = GatedVLM(folder, scores="none", batch_size=8, engine="off", **options)
        baseline = "gated_vlm, engine=off, batch_size=8"
    else:
        theirs = get_model("llava_hf", force_simple=True)(folder, device_map=device, batch_size=1, **options)
        baseline = "lmms-eval llava_hf, batch_size=1 (it takes no other)"
    images, documents = poll(1 if quick else 2, duplicates=name == "pope_duplicates")
    shared = ours.question_engine  # runs the self check before the clock starts
    assert shared is not None

    def ask(model: Any) -> list[str]:
        if shared is not None:
            shared.feature_cache.for_model(None)  # every round encodes the images again
        return answers(model, documents)

    yield compare(
        name,
        f"{len(documents)} questions about {images} images of 576 tokens, {_MOST} new tokens at most",
        len(documents),
        (baseline, lambda: ask(theirs)),
        ("gated_vlm, batch_size=8", lambda: ask(ours)),
        checked(same_texts, device),
        rounds=rounds,
        device=device,
    )


def poll(images: int, *, duplicates: bool) -> tuple[int, list[dict[str, Any]]]:
    """(images, 18 questions about each); duplicates are as in POPE's splits, which share their 3 "yes"."""
    things = [*THINGS[:3] * 3, *THINGS[3:12]] if duplicates else THINGS
    found = []
    for seed in range(images):
        image = make_image(seed)
        found += [{"image": image, "thing": thing} for thing in things]
    return images, found


def make_image(seed: int) -> Image.Image:
    """A few colored patches, which are the same for the same seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((336, 336))


def answers(model: Any, documents: list[dict[str, Any]]) -> list[str]:
    """The model's answers to the requests that lmms-eval would make."""
    model.task_dict["pope"] = {"test": documents}
    requests = [
        Instance(
            "generate_until",
            (
                f"Is there a {document['thing']} in the image?\n"
                "Answer the question using a single word or phrase.",
                {"max_new_tokens": _MOST, "temperature": 0, "until": ["\n\n"]},
                lambda doc: [doc["image"]], number, "pope", "test",
            ),
            0,
            {"task": "pope", "doc_id": number, "repeats": 1},
        )
        for number, document in enumerate(documents)
    ]  # fmt: skip
    return model.generate_until(requests)


def checkpoint(device: str) -> str:
    """A folder with the model, which is made once and removed when the program ends."""
    return _checkpoint(device).name


@functools.cache
def _checkpoint(device: str) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    save_model(folder.name, device)
    return folder


def save_model(folder: str, device: str) -> None:
    """A LLaVA as a checkpoint: on the packaged SmolLM2-135M, or, for a GPU, of random weights throughout."""
    import transformers as hf

    words = hf.AutoTokenizer.from_pretrained(resolve_smollm2(SMOLLM2))
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    words.padding_side, words.chat_template = "left", _TEMPLATE
    torch.manual_seed(0)
    if device == "cpu":
        language: Any = load_model()[0]
        language.resize_token_embeddings(len(words), mean_resizing=False)
        model: Any = hf.LlavaForConditionalGeneration(llava_config(language.config, words, _SMALL_TOWER))
        model.model.language_model.load_state_dict(language.model.state_dict())
        model.lm_head.load_state_dict(language.lm_head.state_dict())
    else:
        config = llava_config(config_7b(len(words)), words, _LARGE_TOWER)
        with torch.device(device):
            model = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    images = hf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    hf.LlavaProcessor(
        images, words, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=_TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip


def llava_config(text: Any, words: Any, tower: tuple[int, int, int, int]) -> Any:
    """LLaVA's config; the tower's width, layers, heads and inner width are given."""
    import transformers as hf

    width, layers, heads, inner = tower
    vision = hf.CLIPVisionConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner,
        image_size=336, patch_size=14,
    )  # fmt: skip
    return hf.LlavaConfig(
        vision_config=vision, text_config=text, image_seq_length=576,
        image_token_index=int(words.encode("<image>", add_special_tokens=False)[0]),
    )  # fmt: skip
