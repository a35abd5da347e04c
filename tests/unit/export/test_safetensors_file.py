"""Headers are read with bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from truthgate_eval.errors import ModelError
from truthgate_eval.export.safetensors_file import read_header, write_tensor


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_one_tensor_is_read_and_replaced(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.randn(3, 5).to(dtype), "b": torch.arange(7), "c": torch.randn(2).to(dtype)}
    save_file(tensors, path, metadata={"format": "pt"})
    file = read_header(path)
    assert file.entries.keys() == tensors.keys()
    assert torch.equal(file.read("a"), tensors["a"]) and torch.equal(file.read("c"), tensors["c"])
    write_tensor(path, file.entries["a"], tensors["a"] + 1)
    found = load_file(path)
    assert torch.equal(found["a"], tensors["a"] + 1)
    assert torch.equal(found["b"], tensors["b"]) and torch.equal(found["c"], tensors["c"])
    with pytest.raises(ValueError, match="does not take the place"):
        write_tensor(path, file.entries["a"], tensors["c"])


def entry(**values: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **values}}


@pytest.mark.parametrize(
    "header",
    [
        entry(data_offsets=[0, 16]), entry(data_offsets=[4, 12]), entry(data_offsets=[-8, 0]), entry(data_offsets=[0]),
        entry(shape=[3]), entry(shape=[-2]), entry(shape=["2"]), entry(shape=[True, 2]), entry(dtype=1), {"a": 1}, {"a": {}},
    ],
)  # fmt: skip
def test_a_header_that_does_not_fit_the_file_is_refused(header: dict[str, Any], tmp_path: Path) -> None:
    content = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(8))
    with pytest.raises(ModelError, match="tensor a does not fit the file") as error:
        read_header(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"abc", (1 << 60).to_bytes(8, "little"), (100).to_bytes(8, "little") + b"{}"]
)
def test_files_that_are_cut_off_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cut off or no safetensors file"):
        read_header(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ModelError, match="cannot read"):
        read_header(path)
    path.write_bytes((2).to_bytes(8, "little") + b"[]")
    with pytest.raises(ModelError, match="no JSON object"):
        read_header(path)
    path.write_bytes((2).to_bytes(8, "little") + b"{x")
    with pytest.raises(ModelError, match="not JSON"):
        read_header(path)
