"""The benchmarks' measuring: memory that is really needed, seconds of the right clock, the page's tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import table  # noqa: E402
from benchmarks.measure import Result, Side, compare, own_peak  # noqa: E402

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's memory counters")


def fill(mib: int) -> float:
    return float(np.ones(mib * 2**17).sum())


@linux
def test_a_sides_peak_is_its_own_whatever_was_freed_before() -> None:
    result = compare(
        "x", "work", 1, ("peer", lambda: fill(200)), ("ours", lambda: fill(60)), lambda *_: {}, rounds=1
    )
    assert result.baseline.peak_mib == pytest.approx(200, abs=15)
    assert result.ours.peak_mib == pytest.approx(60, abs=15)  # also in the 200 MiB that the peer gave back
    assert own_peak(lambda: None) < 15


def test_a_gpus_ratio_is_of_wall_seconds() -> None:
    sides = Side("peer", [1.0], [9.0], 1.0), Side("ours", [1.0], [3.0], 1.0)
    assert Result("x", "work", 1, *sides, {}).ratios == [1.0]
    assert Result("x", "work", 1, *sides, {}, "cuda").ratios == [3.0]


def test_without_a_gpu_the_gpu_variant_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no GPU"):
        command.require_gpu("capture", SimpleNamespace(DEVICES=("cpu", "cuda")))
    with pytest.raises(SystemExit, match="has no GPU variant"):
        command.require_gpu("pope", SimpleNamespace())


def test_the_committed_results_make_the_pages_tables() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    import json

    results = [
        json.loads(p.read_text()) for p in sorted(table.RESULTS.glob("*.json")) if ".quick" not in p.name
    ]
    assert table.tables(results) in page  # else: python -m benchmarks table


@pytest.mark.real  # for its tokenizer
def test_the_gpu_variant_of_pope_saves_a_checkpoint_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its branch on this machine's CPU, in a small shape; the real one needs a GPU."""
    import torch
    import transformers as hf

    from benchmarks import pope, work

    def small(vocabulary: int) -> hf.LlamaConfig:
        config = work.config_7b(vocabulary)
        config.hidden_size, config.intermediate_size, config.num_hidden_layers = 64, 96, 2
        config.num_attention_heads = config.num_key_value_heads = 4
        config.head_dim = 16
        return config

    monkeypatch.setattr(pope, "config_7b", small)
    monkeypatch.setattr(pope, "_LARGE_TOWER", (32, 2, 2, 64))
    pope.save_model(str(tmp_path), "cpu:0")
    model = hf.AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(model).__name__ == "LlavaForConditionalGeneration" and model.dtype == torch.bfloat16
    assert model.config.text_config.vocab_size == len(hf.AutoProcessor.from_pretrained(tmp_path).tokenizer)
