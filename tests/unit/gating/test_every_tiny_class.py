"""Every class of which the tests make a tiny model is gated; scripts/version_matrix.py runs this in each version.

A class that the installed transformers lacks is skipped, as "not in transformers ...": it has not passed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import transformers as hf
from helpers import tiny_models, tiny_vision_models

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import Gate, attach, make_gate
from truthgate_eval.vision.loading import LoadOptions, load_vlm

T = TypeVar("T")
# Their processors have no chat template.
PLAIN = ("paligemma", "instructblip", "blip_2")
SITES = ("post", "pre")


def built(make: Callable[[], T]) -> T:
    """What `make` makes; skips the test where it asks for a class that this transformers does not have."""
    try:
        return make()
    except AttributeError as error:
        if error.obj is not hf:
            raise
        pytest.skip(f"not in transformers {hf.__version__}: {error.name}")


def some_gate(site: str) -> Gate:
    scores = np.random.default_rng(0).uniform(
        0.4, 0.9, size=(tiny_vision_models.LAYERS, tiny_vision_models.HEADS)
    )
    return make_gate(scores, lam=3.0, norm="centered", site=site)


def check(logits: Callable[[], torch.Tensor], model: object, site: str) -> None:
    """A gate changes the logits, a gate of ones and one that is removed do not."""
    layout, plain, gate = find_attention_layout(model), logits(), some_gate(site)
    ones = make_gate(np.full_like(gate.values, 0.5), lam=0.0, norm="centered", site=site)
    with attach(model, gate, layout=layout) as handle:
        gated = logits()
        handle.set(ones)
        assert torch.equal(logits(), plain)
    assert torch.isfinite(gated).all() and (gated - plain).abs().max() > 1e-3
    assert torch.equal(logits(), plain)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", {**tiny_models.CONFIGS, **tiny_models.MORE_CONFIGS})
def test_a_language_model_is_gated(name: str, site: str) -> None:
    model = built(lambda: tiny_models.tiny_model(name))

    @torch.no_grad()
    def logits() -> torch.Tensor:
        return model(input_ids=tiny_models.prompts()).logits

    check(logits, model, site)


@pytest.mark.parametrize("name", tiny_vision_models.ALL_NAMES)
def test_a_vision_language_model_is_gated_on_a_question_about_an_image(name: str, tmp_path: Path) -> None:
    folder = built(lambda: tiny_vision_models.save(tmp_path, name))
    thinker = getattr(hf.AutoConfig.from_pretrained(folder), "thinker_config", None)
    if thinker is not None and type(thinker) not in hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        # transformers 5.0 has the class, but not as one that its auto class loads.
        pytest.skip(f"not in transformers {hf.__version__}: {type(thinker).__name__}")
    vlm = load_vlm(LoadOptions(folder, device="cpu", chat_template="plain" if name in PLAIN else None))
    prompt, images = vlm.prompt("Is there a dog?", 1), [tiny_vision_models.random_image()]
    for site in SITES:
        check(lambda: vlm.next_token_logits(prompt, images), vlm.model, site)


def test_only_a_class_that_transformers_lacks_is_skipped() -> None:
    with pytest.raises(pytest.skip.Exception, match=rf"^not in transformers {hf.__version__}: NoSuchConfig$"):
        built(lambda: hf.NoSuchConfig())
    with pytest.raises(AttributeError, match="no_such_attribute"):
        built(lambda: hf.LlamaConfig().no_such_attribute)
