"""The benchmarks: peak memory, the clock of each device, results as files, the tables of the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import measure, memory, probes, table  # noqa: E402
from benchmarks.measure import Result, Side, compare, own_peak  # noqa: E402

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's memory counters")


def fill(mib: int) -> float:
    return float(np.ones(mib * 2**17).sum())


@linux
def test_a_sides_peak_memory_does_not_depend_on_what_the_other_side_freed() -> None:
    result = compare(
        "x", "work", 1, ("baseline", lambda: fill(200)), ("ours", lambda: fill(60)), lambda *_: {}, rounds=1
    )
    assert result.baseline.peak_mib == pytest.approx(200, abs=15)
    assert result.ours.peak_mib == pytest.approx(60, abs=15)  # also in the 200 MiB that the baseline freed
    assert own_peak(lambda: None) < 15


def test_the_ratio_is_of_cpu_seconds_and_on_a_gpu_of_wall_seconds() -> None:
    sides = Side("baseline", [1.0], [9.0], 1.0), Side("ours", [1.0], [3.0], 1.0)
    assert Result("x", "work", 1, *sides, {}).ratios == [1.0]
    assert Result("x", "work", 1, *sides, {}, "cuda").ratios == [3.0]


def test_without_a_gpu_the_gpu_variant_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no GPU"):
        command.require_gpu("capture", SimpleNamespace(DEVICES=("cpu", "cuda")))
    with pytest.raises(SystemExit, match="has no GPU variant"):
        command.require_gpu("pope", SimpleNamespace())


def test_a_saved_result_can_be_put_into_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    sides = Side("the other", [3.0], [3.0], 2.0), Side("ours", [1.0], [1.0], None)
    path = Result("x", "work", 1, *sides, {"passed": True, "different": 0}).save(quick=False)
    line = table.table([json.loads(path.read_text())]).splitlines()[-1]
    assert line == "| x: work | the other | 3.00 | 1.00 | **3.00x** (3.00 to 3.00, 1) | 2 /  | different 0 |"


@pytest.mark.slow  # torch's AdamW imports a compiler at its first step
def test_the_time_of_200_epochs_is_extrapolated_from_fewer() -> None:
    result = probes.exact("probes", heads=32, n=60, width=4, epochs=2, rounds=1)
    assert result.check["passed"] and result.baseline.cpu[0] >= 0
    assert result.baseline.name.startswith("torch AdamW, 200 epochs")


def test_probing_gives_the_same_scores_from_memory_and_from_a_file(tmp_path: Path) -> None:
    in_memory, in_a_file = (memory._probe((20, 2, 2, 4), limit, str(tmp_path)) for limit in (1.0, 0.0))
    assert in_memory == in_a_file > 0


@pytest.mark.real  # for its tokenizer and HaluEval
def test_probing_by_number_of_documents_counts_seconds_of_each_step() -> None:
    from benchmarks import linear, work

    tokenizer = work.load_model()[1]
    found = linear.probe(linear.tiny(len(tokenizer)), tokenizer, 10)
    assert found["sequences"] == 20 and 0 < found["tokens_planned"]
    assert set(linear.STEPS) <= set(found)


def test_the_committed_results_make_the_pages_tables() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    results = [
        json.loads(p.read_text()) for p in sorted(table.RESULTS.glob("*.json")) if ".quick" not in p.name
    ]
    assert table.tables(results) in page  # else: python -m benchmarks table


@pytest.mark.real  # for its tokenizer
def test_the_gpu_variant_of_pope_saves_a_checkpoint_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The code of the GPU variant, run on the CPU in a small shape."""
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


def test_a_command_that_was_timed_alone_has_a_table_of_its_own() -> None:
    machine = {"processor": "x", "dtype": "float32", "torch": "2", "transformers": "5", "load_at_end": 1.0}
    timed = {"name": "study", "command": "truthgate study", "cores": 2, "gates": 9, "minutes": 12.34}
    text = table.tables([{**timed, "machine": machine}])
    assert "| `truthgate study` | 2 | 9 | 12.3 |" in text
