from __future__ import annotations

import factories
import numpy as np
import pytest
import torch

from truthgate_eval import capture as capture_module
from truthgate_eval.anatomy import find_anatomy
from truthgate_eval.capture import capture


def sequences() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, factories.VOCABULARY, size=n).tolist() for n in (5, 12, 1, 9, 9, 3, 7)]


def by_hand(model, tokens: list[int], site: str) -> np.ndarray:
    """One sequence alone through the full model; the last token of each projection."""
    seen: list[torch.Tensor] = []
    hooks = [
        projection.module.register_forward_hook(
            lambda _, args, output: seen.append((output if site == "post" else args[0])[0, -1])
        )
        for projection in find_anatomy(model).projections
    ]
    with torch.no_grad():
        model(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    return torch.stack(seen).float().reshape(3, 4, -1).numpy()


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", factories.CONFIGS)
def test_activations_are_those_of_each_sequence_alone(name: str, site: str) -> None:
    model = factories.tiny_model(name)
    expected = np.stack([by_hand(model, tokens, site) for tokens in sequences()])
    for batch_size in (1, 3, 8):
        found = capture(model, sequences(), site=site, batch_size=batch_size)
        assert found.dtype == np.float32 and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_progress_counts_every_sequence_once() -> None:
    done: list[int] = []
    capture(factories.tiny_model("llama"), sequences(), batch_size=3, progress=done.append)
    assert done == [3, 3, 1]


def test_out_of_memory_halves_the_batch_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tried = factories.tiny_model("llama"), []
    forward = capture_module._forward

    def small_memory(anatomy, batch, site):
        tried.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return forward(anatomy, batch, site)

    expected = capture(model, sequences(), batch_size=1)
    monkeypatch.setattr(capture_module, "_forward", small_memory)
    np.testing.assert_allclose(capture(model, sequences(), batch_size=7), expected, atol=1e-5)
    assert tried == [7, 3, 1, 1, 1, 1, 1, 1, 1]
