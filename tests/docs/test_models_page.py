from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import transformers

from scripts.model_classes import subjects, survey
from scripts.model_classes.end_to_end import FamilyRow, run_family
from scripts.model_classes.families import FAMILIES, Family
from scripts.model_classes.page import (
    PAGE,
    family_row,
    family_rows_of_page,
    page,
    rows_of_page,
    table_row,
    versions,
    with_families,
)
from scripts.model_classes.survey import KINDS, Row, class_names, examine

TEXT = PAGE.read_text(encoding="utf-8")
COMMITTED = dict(rows_of_page(TEXT))
COMMITTED_FAMILIES = dict(family_rows_of_page(TEXT))
IS_SAME_VERSION = f"transformers {transformers.__version__} " in TEXT
# A class of each kind of row.
QUICK = (
    "LlamaForCausalLM",
    "BitNetForCausalLM",
    "BloomForCausalLM",
    "Gemma4ForCausalLM",
    "JetMoeForCausalLM",
    "Qwen3NextForCausalLM",
)


def check(name: str) -> None:
    row = examine(name)
    assert row.result != "wrong", table_row(row)
    if IS_SAME_VERSION:
        assert table_row(row) == COMMITTED[name]


@pytest.mark.parametrize("name", QUICK)
def test_a_class_is_gated_as_the_page_says(name: str) -> None:
    if hasattr(transformers, name):
        check(name)
    else:
        assert not IS_SAME_VERSION


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_class_is_gated_as_the_page_says(part: int) -> None:
    for name in [name for kind in KINDS for name in class_names(kind)][part::4]:
        check(name)


def test_the_page_has_every_class_once_and_counts_them() -> None:
    names = [name for name, _ in rows_of_page(TEXT)]
    assert len(names) == len(set(names))
    if IS_SAME_VERSION:
        assert names == [name for kind in KINDS for name in class_names(kind)]
    refused = sum("| refused: " in row for row in COMMITTED.values())
    not_built = sum("| not built: " in row for row in COMMITTED.values())
    assert f"has {len(names)} causal and image-text classes" in TEXT
    assert (
        f"Gated: {len(names) - refused - not_built}. Refused, with one line that says why: {refused}. "
        in TEXT
    )
    assert f"Not built in this way:\n{not_built}; " in TEXT
    assert not_built <= 20


def test_no_row_of_the_page_is_wrong() -> None:
    for row in COMMITTED.values():
        assert "RAW" not in row and "differ" not in row and "changes nothing" not in row


def test_a_row_with_special_characters_is_one_row_of_a_table() -> None:
    row = Row("AForCausalLM", note="refused: a | b *c* <d> [e]")
    found = dict(rows_of_page(page({"text": [row], "image-text": []})))
    assert found == {"AForCausalLM": r"| AForCausalLM |  |  |  |  |  | refused: a \| b \*c\* \<d> \[e] |"}
    assert versions() in page({"text": [], "image-text": []})


@pytest.mark.parametrize("name", ["q_proj", "gate_proj"])
def test_a_gate_at_another_module_is_reported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = survey.find_attention_layout

    def elsewhere(model: Any) -> Any:
        layout = find(model)
        projections = []
        for layer, p in zip(layout.layers, layout.projections, strict=True):
            module = next(m for path, m in layer.named_modules() if path.endswith(name))
            projections.append(dataclasses.replace(p, module=module))
        return dataclasses.replace(layout, projections=tuple(projections))

    monkeypatch.setattr(survey, "find_attention_layout", elsewhere)
    row = examine("LlamaForCausalLM")
    assert row.result == "wrong" and row.sites["pre"].startswith("heads differ by"), row


def test_a_gate_that_does_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoGate:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(survey, "attach", lambda *_args, **_options: NoGate())
    row = examine("LlamaForCausalLM")
    assert row.result == "wrong" and row.sites["post"] == "the gate changes nothing"


def test_a_folded_gate_that_differs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "fold", lambda *_args, **_options: None)
    row = examine("LlamaForCausalLM")
    assert row.result == "wrong" and row.sites["post"].startswith("folded gate differs from scaled weights")


def test_an_exception_of_the_search_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: Any) -> Any:
        raise KeyError("x")

    monkeypatch.setattr(survey, "find_attention_layout", fail)
    row = examine("LlamaForCausalLM")
    assert row.result == "wrong" and row.note == "RAW KeyError: 'x'"


def family(maker: str) -> Family:
    return next(family for family in FAMILIES if family.maker == maker)


@pytest.mark.slow
@pytest.mark.parametrize("maker", [family.maker for family in FAMILIES])
def test_a_family_works_from_end_to_end_as_the_page_says(maker: str) -> None:
    row = run_family(family(maker))
    assert row.is_right, family_row(row)
    if IS_SAME_VERSION:
        assert family_row(row) == COMMITTED_FAMILIES[row.family.name]


def test_the_page_has_every_family_once_and_nothing_differs() -> None:
    assert list(COMMITTED_FAMILIES) == [family.name for family in FAMILIES]
    for row in COMMITTED_FAMILIES.values():
        cells = row.split(" | ")
        assert cells[3:7] == ["equal"] * 4 and "RAW" not in row, row
        assert cells[7] == "shared" or cells[8].startswith(f"{cells[7]}: "), row


def test_another_table_of_families_leaves_the_rest_of_the_page() -> None:
    row = FamilyRow(family("llava"), "3 x 4", *["equal"] * 4, "shared", ["`a` [b]"])
    text = with_families(TEXT, [row])
    assert dict(rows_of_page(text)) == COMMITTED
    shown = r"| 3 x 4 | equal | equal | equal | equal | shared | `a` \[b] |"
    assert dict(family_rows_of_page(text)) == {row.family.name: f"| {row.family.name} | LLaVA-1.5 {shown}"}
    assert with_families(text, [row]) == text


@pytest.mark.slow
def test_answers_that_differ_from_plain_generate_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that is never attached: the vanilla texts are right, and the gated ones are not."""
    load = subjects.GatedHF

    def ungated(
        path: str, *, scores: str, lam: float = 0, norm: str = "", site: str = "", **options: Any
    ) -> Any:
        return load(path, scores="none", **{k: v for k, v in options.items() if k != "mode"})

    monkeypatch.setattr(subjects, "GatedHF", ungated)
    row = run_family(family("llama"))
    assert row.texts == row.probed == "equal" and not row.is_right
    assert row.live == row.folded and row.live.startswith("logits differ by ")


@pytest.mark.slow
def test_activations_of_another_token_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = subjects.capture

    def earlier(model: Any, sequences: Any, **options: Any) -> Any:
        return capture(model, [sequence[:-1] for sequence in sequences], **options)

    monkeypatch.setattr(subjects, "capture", earlier)
    row = run_family(family("llama"))
    assert row.probed.startswith("differs by ") and row.probed.endswith(" at post")


def test_an_exception_of_a_family_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: Any) -> Any:
        raise KeyError("x")

    monkeypatch.setattr(subjects, "find_attention_layout", fail)
    row = run_family(family("llama"))
    assert row.notes == ["RAW KeyError: 'x'"] and not row.is_right
