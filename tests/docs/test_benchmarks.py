"""The benchmarks: peak memory, the clock of each device, results as files, the tables of the page."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import measure, memory, probes, suite, table  # noqa: E402
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
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for given in (["capture", "--device", "cuda"], ["all", "--device", "cuda"]):
        arguments = command.parse(given)
        with pytest.raises(SystemExit, match="torch sees no GPU"):
            command.run_all(arguments) if given[0] == "all" else command.run_one(given[0], arguments)
    with pytest.raises(SystemExit, match="memory: this benchmark has no GPU variant"):
        command.run_one("memory", command.parse(["memory", "--device", "cuda"]))


def test_every_gpu_variant_has_its_needs_and_each_of_them_fits_in_the_time() -> None:
    """Read from the source: importing every module would import both harnesses."""
    with_gpu = {
        name
        for name, module in command.MODULES.items()
        if 'DEVICES = ("cpu", "cuda")' in (ROOT / "benchmarks" / f"{module}.py").read_text()
    }
    assert set(suite.ON_GPU) == with_gpu and with_gpu < set(command.NAMES)
    assert sum(need.seconds for need in suite.ON_GPU.values()) < 60 * suite.GPU_MINUTES


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to collect: with all that tests have loaded, that takes seconds."""
    monkeypatch.setattr(suite, "release_memory", lambda: None)


class Clock:
    """Seconds that pass only where a benchmark takes them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def run(self, name: str) -> None:
        self.ran.append(name)
        self.now += suite.ON_GPU[name].seconds


@pytest.mark.usefixtures("no_models")
def test_all_benchmarks_run_in_the_order_of_a_gpu_and_what_does_not_fit_is_left_out_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    failed = suite.run_all(command.NAMES, clock.run, free_gib=40, minutes=8, clock=lambda: clock.now)
    assert failed == {}
    fitting = [name for name, need in suite.ON_GPU.items() if need.gib <= 40]
    assert clock.ran == fitting and 3 < len(fitting) < len(suite.ON_GPU)
    lines = capsys.readouterr().out.splitlines()
    assert "gradient: left out: it takes 48 GiB of GPU memory, and 40 are free" in lines
    assert "memory: left out: it has no GPU variant" in lines
    assert len(lines) == len(command.NAMES) - len(fitting)


@pytest.mark.usefixtures("no_models")
def test_what_would_take_longer_than_the_time_that_is_left_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    suite.run_all(command.NAMES, clock.run, free_gib=79, minutes=7, clock=lambda: clock.now)
    assert clock.ran == [name for name in suite.ON_GPU if name != "gate_cost_compiled"]
    assert clock.now <= 420
    left_out = f"gate_cost_compiled: left out: it takes about 75 s, and {420 - clock.now:.0f} s are left"
    assert left_out in capsys.readouterr().out


@pytest.mark.usefixtures("no_models")
def test_all_go_on_after_one_that_fails_and_end_with_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def run_one(name: str, arguments: Any) -> None:
        ran.append(name)
        if name == "probes":
            raise RuntimeError("CUDA out of memory\nwith details")
        if name == "sweep":
            raise SystemExit("sweep: the outputs differ")

    monkeypatch.setattr(command, "run_one", run_one)
    with pytest.raises(SystemExit) as ended:
        command.run_all(command.parse(["all", "--quick"]))
    assert ran == list(command.NAMES)
    message = "probes: RuntimeError: CUDA out of memory\nsweep: SystemExit: sweep: the outputs differ"
    assert ended.value.code == f"2 benchmarks have failed:\n{message}"
    assert "probes: failed, going on" in capsys.readouterr().err
    monkeypatch.setattr(command, "run_one", lambda *_, **__: None)
    command.run_all(command.parse(["all", "--quick"]))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs the system's timer")
@pytest.mark.usefixtures("no_models")
def test_a_benchmark_that_takes_longer_than_expected_is_stopped_and_its_results_stay(tmp_path: Path) -> None:
    def endless(_: str) -> None:
        (tmp_path / "first.json").write_text("{}")
        while True:
            time.sleep(0.01)

    failed = suite.run_all(["capture", "probes"], endless, minutes=0.2 / 60)
    assert list(failed) == ["capture"] and "the time of all benchmarks has ended" in failed["capture"]
    assert (tmp_path / "first.json").exists()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


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
