"""What decides activations besides the model itself: part of the key under which they are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from truthgate_eval.probing.dataset import ProbeDataset


def capture_settings(
    model: Any, device: torch.device, *, inputs: str, batches: Iterable[Sequence[int]], **more: Any
) -> dict[str, Any]:
    """What decides the activations of a capture, JSON-serializable.

    Args:
        model: A transformers model.
        device: Where it runs. Other kernels, and on a CPU another number of threads, round differently.
        inputs: Digest of the sequences.
        batches: The sequences of all batches: a row of a batch rounds as its batch does.
        **more: What else decides them.
    """
    is_cpu = device.type == "cpu"
    return {
        "inputs": inputs,
        "batches": numbers_digest(batches),
        "attention": getattr(model.config, "_attn_implementation", None),
        "device": torch.backends.cpu.get_cpu_capability() if is_cpu else _device_name(device),
        "threads": torch.get_num_threads() if is_cpu else None,
        "precision": torch.get_float32_matmul_precision(),
        **more,
    }


def numbers_digest(sequences: Iterable[Sequence[int]]) -> str:
    """SHA-256 of sequences of integers, such as token ids, in order.

    Example:
        >>> numbers_digest([[1, 2], [3]]) == numbers_digest([[1], [2, 3]])
        False
    """
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(np.array([len(sequence), *sequence], dtype="<i8").tobytes())
    return digest.hexdigest()


def texts_digest(dataset: ProbeDataset) -> str:
    """SHA-256 of the texts of a data set's sequences, without its images."""
    digest = hashlib.sha256(str(dataset.bare_questions).encode())
    for example in dataset.examples:
        for text in (example.context, example.answer):
            content = text.encode("utf-8", "surrogatepass")
            digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
