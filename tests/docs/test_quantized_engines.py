"""The section of docs/engines.md about quantized and adapted models is what a run gives."""

from __future__ import annotations

import re

import pytest

from scripts.engines.page import PAGE, page
from scripts.engines.quantized import (
    DTYPES,
    LORA,
    MODELS,
    QLORA,
    Key,
    measure_all,
    rows_of_section,
    section,
)
from scripts.engines.sections import all_sections, read_section, replace_section
from truthgate_eval.gating.attention_layout import SITES

TEXT = PAGE.read_text(encoding="utf-8")
COMMITTED = dict(rows_of_section(TEXT))
NUMBER = re.compile(r"0|[\d.]+e[-+]\d+")


def check_row(key: Key, row: dict[str, str]) -> None:
    """What the page says in words holds for the figures."""
    name, dtype, _ = key
    gate = float(row["gate"])
    assert gate > 0.1 and row["live"] == "0"
    if name == QLORA:
        assert row["peft"] == "merge first"
    elif name.startswith("bitsandbytes") and dtype == "bfloat16":
        assert row["peft"] == "stops with an error"
    elif name == LORA:  # merged weights round in another place
        assert float(row["peft"]) < (1e-4 if dtype == "float32" else gate / 4)
    else:
        assert row["peft"] == "0"
    if name == "GGUF Q8_0":
        assert float(row["folded"]) < (1e-4 if dtype == "float32" else gate / 4)
        assert row["checkpoint"] == "no safetensors"
    else:
        assert row["folded"] == "refused" and float(row["checkpoint"]) < gate


def test_the_section_has_every_model_at_both_sites() -> None:
    expected = [
        (name, str(dtype).removeprefix("torch."), site)
        for name in MODELS
        for dtype in DTYPES
        for site in SITES
    ]
    assert list(COMMITTED) == expected
    for key, row in COMMITTED.items():
        check_row(key, row)


@pytest.mark.slow
def test_a_run_gives_the_section_again() -> None:
    for key, row in rows_of_section(replace_section("", "quantized", section(measure_all()))):
        check_row(key, row)
        committed = COMMITTED[key]
        assert float(row["gate"]) == pytest.approx(float(committed["gate"]), rel=0.1)
        for column in ("peft", "folded", "checkpoint"):
            assert bool(NUMBER.fullmatch(row[column])) == bool(NUMBER.fullmatch(committed[column]))


def test_a_section_is_kept_when_the_page_is_written_and_replaced_alone() -> None:
    row = dict.fromkeys(["gate", "folded", "peft", "peft merged", "checkpoint"], 0.5)
    row |= dict.fromkeys(["lm-eval, peft", "lm-eval, checkpoint", "lmms-eval, checkpoint"], 0.5)
    assert all_sections(page({("LlamaForCausalLM", "post"): row})) == all_sections(TEXT)
    twice = replace_section(replace_section("# A page\n", "one", "1\n"), "two", "2\n")
    changed = replace_section(twice, "one", "other\n")
    assert read_section(changed, "one") == "other\n" and read_section(changed, "two") == "2\n"
    assert changed.startswith("# A page\n") and changed.count("writes from here") == 2
