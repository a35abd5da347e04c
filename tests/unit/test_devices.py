"""Which device a name means, on machines with and without CUDA."""

from __future__ import annotations

import pytest
import torch

from truthgate_eval.devices import find_device, weights_device
from truthgate_eval.errors import ModelError


def test_without_cuda_the_best_device_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device(None).type == "cpu"
    assert find_device("cuda:0", harness_default="cuda:0").type == "cpu"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_a_cuda_device_that_a_user_names_must_be_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = f"device={name}, but torch finds no CUDA device here; use device=cpu"
    with pytest.raises(ModelError, match=message):
        find_device(name)
    if name != "cuda:0":
        with pytest.raises(ModelError, match=message):
            find_device(name, harness_default="cuda:0")


def test_a_word_that_is_no_device_is_named() -> None:
    with pytest.raises(ModelError, match="device=gpu is no device of torch"):
        find_device("gpu")


def test_with_cuda_it_is_the_default_and_its_number_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device(None).type == "cuda"
    assert find_device("cuda:1").index == 1
    assert find_device("cpu", harness_default="cuda:0").type == "cpu"
    with pytest.raises(ModelError, match="device=cuda:2, but there are only 2"):
        find_device("cuda:2", harness_default="cuda:0")


def test_offloaded_weights_take_their_inputs_on_the_cpu() -> None:
    assert weights_device(torch.nn.Linear(2, 2)) == torch.device("cpu")
    assert weights_device(torch.nn.Linear(2, 2, device="meta")) == torch.device("cpu")
