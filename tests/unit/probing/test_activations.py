"""Activations in a file: the same numbers as in memory, in little memory, and no file left over."""

from __future__ import annotations

import gc
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories

from truthgate_eval.errors import ProbeError
from truthgate_eval.probing import activations
from truthgate_eval.probing.activations import allocate_activations, drop_pages, head_blocks, row_chunks
from truthgate_eval.probing.capture import capture
from truthgate_eval.probing.config import CaptureConfig, ProbeConfig
from truthgate_eval.probing.dataset import TokenizedDataset
from truthgate_eval.probing.run import run_probing

SHAPE = (50, 3, 4, 8)


def filled(array: np.ndarray) -> np.ndarray:
    array[:] = np.random.default_rng(0).normal(size=array.shape)
    return array


def test_activations_above_the_limit_go_to_a_file_that_disappears_with_the_array(tmp_path: Path) -> None:
    small = allocate_activations(SHAPE, memory=1.0, folder=tmp_path)
    assert not isinstance(small, np.memmap) and small.shape == SHAPE
    large = allocate_activations(SHAPE, memory=0, folder=tmp_path)
    assert isinstance(large, np.memmap) and large.shape == SHAPE and large.dtype == np.float32
    assert large[:, 1].flags.c_contiguous  # layer by layer
    assert not list(tmp_path.iterdir())  # the file has no name, so no interrupt can leave it
    del large
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_by_default_half_of_the_free_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4 * np.prod(SHAPE)
    monkeypatch.setattr(activations, "free_memory", lambda: 2 * size)
    assert not isinstance(allocate_activations(SHAPE), np.memmap)
    monkeypatch.setattr(activations, "free_memory", lambda: 2 * size - 2)
    assert isinstance(allocate_activations(SHAPE), np.memmap)
    monkeypatch.undo()
    assert 2**20 < activations.free_memory() < 2**60


def test_dropped_pages_keep_what_was_written(tmp_path: Path) -> None:
    mapped = allocate_activations(SHAPE, memory=0, folder=tmp_path)
    expected = filled(np.empty(SHAPE, dtype=np.float32))
    filled(mapped)
    drop_pages(mapped)
    np.testing.assert_array_equal(mapped, expected)
    private = np.memmap(tmp_path / "x", dtype=np.float32, mode="w+", shape=(4,))
    private.flush()
    copy = np.memmap(tmp_path / "x", dtype=np.float32, mode="c", shape=(4,))
    copy[:] = 1
    drop_pages(copy)
    assert (copy == 1).all()  # a private map has no file to read it from again


@pytest.mark.parametrize("block_bytes", [1, 8 * 50 * 8 * 3, 8 * 50 * 8 * 9, 10**9])
def test_blocks_are_the_same_of_arrays_files_and_tensors(
    block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_MAX_RESIDENT", 4000)  # a few rows at once
    x = filled(np.empty(SHAPE, dtype=np.float32))
    mapped = filled(allocate_activations(SHAPE, memory=0, folder=tmp_path))
    expected = x.reshape(50, 12, 8).transpose(1, 0, 2)
    for array in (x, mapped, torch.from_numpy(x)):
        blocks = list(head_blocks(array, torch.device("cpu"), block_bytes))
        assert [first for first, _ in blocks] == np.cumsum([0, *(len(b) for _, b in blocks[:-1])]).tolist()
        assert max(b.numel() for _, b in blocks) * 8 <= max(block_bytes, 8 * 50 * 8)
        assert all(b.is_contiguous() for _, b in blocks)
        np.testing.assert_array_equal(np.concatenate([b.numpy() for _, b in blocks]), expected)
    chunks = list(row_chunks(mapped, slice(1, 2), slice(2, 4)))
    assert len(chunks) > 1 and sum(len(part) for _, part in chunks) == 50


@pytest.mark.parametrize("solver", ["newton", "adamw"])
def test_probing_through_a_file_gives_the_same_artifact_bit_for_bit(solver: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = [rng.integers(3, factories.VOCABULARY, size=n).tolist() for n in rng.integers(2, 9, size=60)]
    groups = np.repeat(np.arange(30), 2)
    sequences = TokenizedDataset(tokens, np.tile([1, 0], 30), groups, {}, "0")
    model = factories.tiny_model("llama")
    config = ProbeConfig(solver=solver)
    in_memory, in_file = (
        run_probing(model, sequences, config, name="tiny", capture_config=capture_config)
        for capture_config in (CaptureConfig(memory=1.0), CaptureConfig(memory=0, scratch=tmp_path))
    )
    for name in ("scores", "stderr", "auroc", "train_accuracy", "probe_weight", "probe_bias"):
        np.testing.assert_array_equal(getattr(in_file, name), getattr(in_memory, name))
    assert not list(tmp_path.iterdir())


def test_capture_fills_a_file_with_the_same_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_MAX_RESIDENT", 1)  # dropped after every sequence
    model = factories.tiny_model("llama")
    tokens = [[3, 4, 5], [6, 7], [3, 4, 5], [3, 4, 9, 8]]
    in_file = capture(model, tokens, allocate=partial(allocate_activations, memory=0, folder=tmp_path))
    assert isinstance(in_file, np.memmap) or isinstance(in_file.base, np.memmap)
    np.testing.assert_array_equal(in_file, capture(model, tokens))


MEASURED = """
import sys, numpy as np, torch
from pathlib import Path
from truthgate_eval.probing.activations import ActivationWriter, allocate_activations
from truthgate_eval.probing.config import ProbeConfig
from truthgate_eval.probing.cross_validation import cross_validate_heads
torch.set_num_threads(1)
memory = float(sys.argv[1])
shape = (1000, 16, 32, 128)  # 256 MiB
rng = np.random.default_rng(0)
def fit(shape, array):
    writer = ActivationWriter(array)
    for i in range(shape[0]):
        writer.put([i], rng.standard_normal(shape[1:], dtype=np.float32))
    writer.drop()
    labels, groups = np.arange(shape[0]) % 2, np.arange(shape[0]) // 2
    return cross_validate_heads(array, labels, groups, ProbeConfig(solver="newton"))
fit((100, 1, 2, 128), allocate_activations((100, 1, 2, 128), memory=1))  # libraries are loaded
status = lambda name: int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])
Path("/proc/self/clear_refs").write_text("5")
start = status("VmRSS")
fit(shape, allocate_activations(shape, memory=memory, folder=sys.argv[2]))
print((status("VmHWM") - start) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's memory counters")
def test_fitting_through_a_file_takes_a_fraction_of_the_activations_memory(tmp_path: Path) -> None:
    def peak(memory: float) -> int:
        command = [sys.executable, "-c", MEASURED, str(memory), str(tmp_path)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak(1.0) > 256
    assert peak(0.0) < 256 / 3  # mapped pages count; what a block's fit takes does not shrink with the data


@pytest.mark.parametrize(
    ("options", "message"),
    [({"memory": -1.0}, "memory=-1.0: expected a number of GiB"), ({"memory": float("nan")}, "memory=nan")],
)
def test_a_limit_must_be_a_number(options: dict, message: str) -> None:
    for make in (lambda: allocate_activations(SHAPE, **options), lambda: CaptureConfig(**options)):
        with pytest.raises(ProbeError, match=message):
            make()


def test_a_full_disk_is_one_line_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"GiB of activations fit neither in memory .* nor in .*--memory"):
        allocate_activations((10**6, 10**3, 32, 128), memory=0, folder=tmp_path)
