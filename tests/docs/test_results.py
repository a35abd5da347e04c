"""The study of docs/results.md: its plan, its runner, the permuted child, and the page, which its data makes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_vision_models

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(
    0, str(DOCS.parent / "studies")
)  # the study's scripts import each other by name, as scripts do

import results_material  # noqa: E402
import results_numbers  # noqa: E402
import results_plan  # noqa: E402
import results_run  # noqa: E402
import results_tables  # noqa: E402


def test_every_step_reads_only_what_earlier_steps_made() -> None:
    made: set[str] = set()
    names: set[str] = set()
    for stage in results_plan.stages(results_plan.FULL):
        assert all(set(step.needs) <= names for step in stage), stage
        for step in stage:
            assert not made & set(step.makes)
            made |= set(step.makes)
        names |= {step.name for step in stage}
    assert len(names) > 50


def test_questions_about_one_image_are_in_the_same_half_of_the_scenes() -> None:
    rows = [{"image": f"{n // 3}.png", "object": n} for n in range(30)]
    halves = results_material.split_rows(rows)
    assert sum(map(len, halves.values())) == 30
    one, other = ({row["image"] for row in half} for half in halves.values())
    assert one and other and not one & other


def test_the_permuted_child_is_the_same_function_under_other_head_numbers() -> None:
    torch.manual_seed(0)
    model, processor = tiny_vision_models.llava()
    model.eval()
    image = np.full((28, 28, 3), 90, dtype=np.uint8)
    inputs = processor(text=["<image>\nIs there a cat?"], images=[image], return_tensors="pt")
    outputs: list[torch.Tensor] = []
    layers = model.model.language_model.layers
    for layer in layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given: outputs.append(given[0].detach()))
        layer.self_attn.o_proj.register_forward_hook(lambda _, __, out: outputs.append(out.detach()))
    with torch.no_grad():
        before = model(**inputs).logits
        first = [*outputs]
        orders, slices = results_material.permute_heads(model, seed=3)
        outputs.clear()  # finding the attention layout runs a pass, too
        after = model(**inputs).logits
    assert torch.allclose(before, after, atol=1e-5)
    assert not np.array_equal(slices, np.arange(len(slices)))
    assert any(not np.array_equal(order, np.arange(len(order))) for order in orders)
    for number, (old, new) in enumerate(zip(first, outputs, strict=True)):
        heads = [x.unflatten(-1, (tiny_vision_models.HEADS, -1)) for x in (old, new)]
        order = slices if number % 2 else orders[number // 2]
        assert torch.allclose(heads[0][..., order, :], heads[1], atol=1e-5), number


def test_every_pair_that_is_correlated_is_probed_and_shares_no_document() -> None:
    known = set(results_plan.PROBED) | set(results_plan.FLOORS)
    for pairs in results_numbers.PAIRS.values():
        for pair in pairs:
            names, halves = zip(*(name.rsplit("-", 1) for name in pair), strict=True)
            assert set(names) <= known and set(halves) == {"a", "b"}, pair


@pytest.mark.slow
def test_a_step_is_run_once_and_again_when_what_it_reads_was_made_anew(tmp_path: Path) -> None:
    np.save(tmp_path / "scores.npy", np.linspace(0.5, 0.9, 12).reshape(3, 4))
    words = ("--model", "m", "--task", "t")
    first = results_plan.Step(
        "first", "truthgate", ("import", "scores.npy", *words, "--output", "1.npz"), ("1.npz",)
    )
    then = results_plan.Step(
        "then", "truthgate", ("import", "1.npz", *words, "--output", "2.npz"), ("2.npz",), ("first",)
    )
    folder = results_run.StudyFolder(tmp_path)
    assert folder.run([[first], [then]]) == ["first", "then"]
    assert folder.run([[first], [then]]) == []
    (tmp_path / "1.npz").unlink()
    assert folder.run([[first], [then]]) == ["first", "then"]
    assert not folder.is_done(
        results_plan.Step("then", "truthgate", (*then.words, "--note", "x"), ("2.npz",))
    )


@pytest.mark.slow
def test_a_step_that_fails_is_not_done_and_names_its_log(tmp_path: Path) -> None:
    step = results_plan.Step(
        "bad",
        "truthgate",
        ("import", "nothing.npy", "--model", "m", "--task", "t", "-o", "x.npz"),
        ("x.npz",),
    )
    folder = results_run.StudyFolder(tmp_path)
    with pytest.raises(Exception, match=r"bad failed, see .*bad\.txt"):
        folder.run([[step]])
    assert not folder.is_done(step)
    assert "nothing.npy" in (tmp_path / "logs" / "bad.txt").read_text()


def test_the_page_is_what_the_committed_data_makes() -> None:
    results: dict[str, Any] = json.loads((DOCS / "results.json").read_text())
    page = (DOCS / "results.md").read_text()
    assert results_tables.fill(page, results) == page
    assert set(results["probed"]) == {*results_plan.PROBED, *results_plan.FLOORS}
