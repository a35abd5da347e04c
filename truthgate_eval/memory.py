"""How much memory is free, and whether an error says that it ended.

A container's limit counts as well as the machine's memory: what the kernel kills a process for is the smaller
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size

_MEMBERSHIP = Path("/proc/self/cgroup")
_V2, _V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")


def free_memory(device: torch.device | None = None) -> int:
    """Bytes that may still be allocated on a device.

    On a CPU this is the least of what the machine has available and what each control group of this process
    (cgroup v1 or v2: a container's limit, a systemd slice's) leaves of its limit.

    Args:
        device: A CUDA device, or the CPU, which is also the default.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return max(0, min([psutil.virtual_memory().available, *_left_in_control_groups()]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed because memory ended, so that a smaller batch may succeed.

    True for torch's and Python's own out-of-memory errors, and for the RuntimeErrors of allocators that have
    no class of their own (the CPU's, MPS, XPU, HPU, cuDNN without room for its workspace), which accelerate
    knows by their messages.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
        True
        >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        False
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and should_reduce_batch_size(error)


def _left_in_control_groups() -> Iterator[int]:
    """Limit less usage of every control group that this process is in and that has a limit."""
    for folder in _control_groups():
        for limit_file, usage_file in (
            ("memory.max", "memory.current"),  # v2
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),  # v1, where no limit is a number near 2**63
        ):
            limit, usage = _read(folder / limit_file), _read(folder / usage_file)
            if limit.isdigit() and usage.isdigit():
                yield int(limit) - int(usage)


def _control_groups() -> Iterator[Path]:
    """Folders of this process's control groups, from its own up to the root of the hierarchy.

    A container sees its own group as the root, whatever path `/proc/self/cgroup` gives: folders that are not
    there are passed over by `_read`.
    """
    for line in _read(_MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _V1 if controllers else _V2
        own = Path(path.lstrip("/"))
        yield from (root / ancestor for ancestor in (own, *own.parents))


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:  # not Linux, no such version of control groups, or not visible from within a container
        return ""
