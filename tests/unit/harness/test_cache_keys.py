"""Fingerprints of models: equal for equal answers, and another one for everything that changes an answer."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import peft
import pytest
import torch
from helpers import tiny_models as factories
from PIL import Image

from truthgate_eval.errors import ModelError
from truthgate_eval.gating.gate import Gate, attach, random_gate
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.harness.cache_keys import digest, gate_state, model_fingerprint


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return factories.tiny_tokenizer()


def adapted(alpha: int = 4, seed: int = 0) -> Any:
    config = peft.LoraConfig(target_modules=["o_proj"], r=2, lora_alpha=alpha, init_lora_weights=False)
    model = factories.tiny_model("llama")
    torch.manual_seed(seed)
    return peft.get_peft_model(model, config)


def with_generation_config(**settings: Any) -> Any:
    model = factories.tiny_model("llama")
    model.generation_config.update(**settings)
    return model


def with_config(**settings: Any) -> Any:
    model = factories.tiny_model("llama")
    model.config.update(settings)
    return model


def test_equal_models_have_one_fingerprint_and_a_live_gate_does_not_change_it(tokenizer: Any) -> None:
    expected = model_fingerprint(factories.tiny_model("llama"), tokenizer, {"a": 1})
    model = factories.tiny_model("llama")
    attach(model, random_gate((3, 4), seed=1))
    assert model_fingerprint(model, copy.deepcopy(tokenizer), {"a": 1}) == expected
    assert model_fingerprint(adapted(), tokenizer, {}) == model_fingerprint(adapted(), tokenizer, {})


def test_everything_that_changes_an_answer_changes_the_fingerprint(tokenizer: Any) -> None:
    other_words, other_template = factories.tiny_tokenizer(), factories.tiny_tokenizer()
    other_words.add_tokens(["hello"])
    other_template.chat_template = "{{ messages[0].content }}"
    one_weight = factories.tiny_model("llama")
    with torch.no_grad():
        one_weight.model.layers[2].mlp.up_proj.weight[3, 5] += 1e-3
    models = [
        factories.tiny_model("llama"), factories.tiny_model("llama", torch.bfloat16), one_weight,
        with_config(rms_norm_eps=1e-2), with_generation_config(repetition_penalty=1.5), adapted(),
        # The same matrices, multiplied by another factor.
        adapted(alpha=8), adapted(seed=1),
    ]  # fmt: skip
    found = {model_fingerprint(model, tokenizer, {}) for model in models}
    found |= {model_fingerprint(models[0], words, {}) for words in (other_words, other_template)}
    found |= {model_fingerprint(models[0], tokenizer, {"max_length": 8})}
    assert len(found) == len(models) + 3


def test_what_cannot_be_told_apart_is_refused(tokenizer: Any) -> None:
    with torch.device("meta"):  # as accelerate leaves weights that it has put on the disk
        offloaded = factories.CONFIGS["llama"]()
        model = type(factories.tiny_model("llama"))(offloaded)
    with pytest.raises(
        ModelError, match=r"embed_tokens\.weight cannot be read .*: leave --use_cache out, or load"
    ):
        model_fingerprint(model, tokenizer, {})
    with pytest.raises(
        ModelError, match=r"object cannot be saved \(AttributeError: .*: leave --use_cache out"
    ):
        model_fingerprint(factories.tiny_model("llama"), object(), {})


def test_the_state_of_a_gate_is_that_of_the_model_now() -> None:
    config = GateConfig.parse("random:1")
    handle = config.apply(factories.tiny_model("llama"), "tiny")
    assert handle is not None
    states = [gate_state(config, handle)]
    handle.set(random_gate((3, 4), seed=2))
    states.append(gate_state(config, handle))
    handle.remove()
    states.append(gate_state(config, handle))
    assert len({digest(state) for state in states}) == 3
    assert states[2] == gate_state(config, None) and states[2]["attached"] is None


def test_a_digest_sees_all_of_an_object_and_takes_what_cannot_be_saved_for_new() -> None:
    long = np.zeros(5000)
    changed = long.copy()
    changed[2500] = 1  # `str` leaves the middle out
    assert digest(long) == digest(long.copy()) != digest(changed)
    image = Image.new("P", (2, 2))
    recolored = image.copy()
    recolored.putpalette([255, 0, 0] * 256)
    assert digest(image) == digest(Image.new("P", (2, 2))) != digest(recolored)
    lock = threading.Lock()
    assert digest(lock) != digest(lock)


def test_the_state_of_a_gate_has_its_shift_and_its_positions() -> None:
    model, config = factories.tiny_model("llama"), GateConfig.parse("random:1")
    ones, shift = np.ones((3, 4)), np.zeros((3, 4, 8))
    other = shift.copy()
    other[2, 3, 7] = 1e-3
    gates = [
        Gate(ones), Gate(ones, "pre"), Gate(ones, "pre", shift=shift), Gate(ones, "pre", shift=other),
        Gate(ones, "pre", shift=other, positions="last"), Gate(ones, "pre", positions="last"),
    ]  # fmt: skip
    handle = attach(model, gates[0])
    states = set()
    for gate in gates:
        handle.set(gate)
        states.add(digest(gate_state(config, handle)))
    assert len(states) == len(gates)
    handle.set(Gate(ones.copy(), "pre", shift=other.copy()))
    assert digest(gate_state(config, handle)) in states


def test_a_digest_is_the_same_in_every_process() -> None:
    script = (
        "from pathlib import Path; from truthgate_eval.harness.cache_keys import digest\n"
        "print(digest({'b': set('abcdefgh'), 'a': [digest, Path('a'), 1.5, None]}))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": seed}, check=True,
            capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found[0] == found[1] and len(found[0].strip()) == 64
