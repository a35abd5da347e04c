"""Free memory respects containers; out-of-memory errors are told from all others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from truthgate_eval import memory
from truthgate_eval.inference import self_check
from truthgate_eval.memory import free_memory, is_out_of_memory

MIB = 2**20


@pytest.fixture
def control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of /sys/fs/cgroup, on a machine with 1 GiB available."""
    monkeypatch.setattr(memory, "_V2", tmp_path)
    monkeypatch.setattr(memory, "_V1", tmp_path / "memory")
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1024 * MIB))
    return tmp_path


def write_group(folder: Path, limit: str, usage: int, *, version: int = 2) -> None:
    names = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names[version], (limit, usage), strict=True):
        (folder / name).write_text(f"{value}\n")


def test_without_a_limit_the_machine_decides(control_groups: Path) -> None:
    assert free_memory() == 1024 * MIB
    (control_groups / "membership").write_text("0::/\n")
    write_group(control_groups, "max", 300 * MIB)
    assert free_memory() == 1024 * MIB


@pytest.mark.parametrize(
    ("membership", "version"), [("0::/\n", 2), ("12:cpu:/\n4:hugetlb,memory:/docker/1f\n0::/docker/1f\n", 1)]
)
def test_a_containers_limit_counts(control_groups: Path, membership: str, version: int) -> None:
    """As root of its hierarchy, which is how a container sees its own group."""
    (control_groups / "membership").write_text(membership)
    root = control_groups / "memory" if version == 1 else control_groups
    write_group(root, str(500 * MIB), 100 * MIB, version=version)
    assert free_memory() == free_memory(torch.device("cpu")) == 400 * MIB
    write_group(root, str(500 * MIB), 600 * MIB, version=version)  # the kernel may be late
    assert free_memory() == 0


def test_the_tightest_of_nested_limits_counts(control_groups: Path) -> None:
    (control_groups / "membership").write_text("0::/user.slice/job.scope\n")
    write_group(control_groups / "user.slice" / "job.scope", str(900 * MIB), 10 * MIB)
    write_group(control_groups / "user.slice", str(800 * MIB), 500 * MIB)
    assert free_memory() == 300 * MIB


def test_an_unlimited_group_of_version_1_is_no_limit(control_groups: Path) -> None:
    (control_groups / "membership").write_text("4:memory:/\n")
    write_group(control_groups / "memory", str(2**63 - 4096), 100 * MIB, version=1)
    assert free_memory() == 1024 * MIB


def test_the_lower_layer_cache_respects_a_containers_limit(control_groups: Path) -> None:
    from helpers import tiny_models as factories

    from truthgate_eval.gating.attention_layout import find_attention_layout

    (control_groups / "membership").write_text("0::/\n")
    write_group(control_groups, str(100 * MIB), 60 * MIB)
    model = factories.tiny_model("llama")
    cache = self_check.cache_lower_layers(self_check.load(model), find_attention_layout(model).layers[:1])
    assert cache is not None and cache.memory == 10 * MIB  # a quarter of 40 MiB


def test_this_machine_has_some_memory_left() -> None:
    assert MIB < free_memory() < 2**60


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        torch.OutOfMemoryError(),
        MemoryError("Unable to allocate 8.00 TiB for an array"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("CUDA error: out of memory."),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.4 GB)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."),
        RuntimeError("FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size"),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:24]}",
)
def test_out_of_memory_errors_are_known(error: BaseException) -> None:
    assert is_out_of_memory(error)


def test_a_real_failed_allocation_on_the_cpu_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError(),
        ValueError(" out of memory."),
        OSError(28),
    ],
)
def test_other_errors_are_not_out_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)
