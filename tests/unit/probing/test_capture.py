from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories

from truthgate_eval.errors import ProbeError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.inference import self_check
from truthgate_eval.inference.packing import PackedBatch
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.probing.capture import LastTokenHooks, capture
from truthgate_eval.processes import Processes


def sequences() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, factories.VOCABULARY, size=n).tolist() for n in (5, 12, 1, 9, 9, 3, 7)]


def by_hand(model, tokens: list[int], site: str) -> np.ndarray:
    """One sequence alone through the full model; the last token of each projection."""
    kept: list[torch.Tensor] = []
    hooks = [
        projection.module.register_forward_hook(
            lambda _, args, output: kept.append((output if site == "post" else args[0])[0, -1])
        )
        for projection in find_attention_layout(model).projections
    ]
    with torch.no_grad():
        model(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    return torch.stack(kept).float().reshape(3, 4, -1).numpy()


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", factories.CONFIGS)
def test_activations_are_those_of_each_sequence_alone(name: str, site: str) -> None:
    model = factories.tiny_model(name)
    expected = np.stack([by_hand(model, tokens, site) for tokens in sequences()])
    for batch_size in (1, 3, 8):
        found = capture(model, sequences(), site=site, batch_size=batch_size)
        assert found.dtype == np.float32 and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def related() -> list[list[int]]:
    """Sequences that share prefixes in every way: equal, one inside another, pairs, a long instruction."""
    rng = np.random.default_rng(1)
    stem = rng.integers(3, factories.VOCABULARY, size=60).tolist()
    pairs = [[*own, answer] for own in rng.integers(3, 90, (4, 9)).tolist() for answer in (5, 6)]
    return [[4, 5, 6], [4, 5, 6], [4, 5], *pairs, *([*stem, *pair] for pair in pairs), stem[:20]]


@pytest.mark.parametrize("name", {**factories.CONFIGS, **factories.MORE_CONFIGS})
def test_shared_prefixes_change_no_activation(name: str) -> None:
    model = factories.tiny_model(name)
    expected = np.stack([by_hand(model, tokens, "post") for tokens in related()])
    for batch_size in (1, 4, "auto"):
        found = capture(model, related(), batch_size=batch_size)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_shared_tokens_run_once() -> None:
    model, embedded = factories.tiny_model("llama"), []
    capture(model, [])  # nothing to do is no error
    hook = model.get_decoder().embed_tokens.register_forward_hook(
        lambda _, args, __: embedded.append(args[0])
    )
    forward = self_check.load(model)
    before = sum(tokens.numel() for tokens in embedded)
    embedded.clear()
    capture(model, related(), layout=find_attention_layout(model), batch_size=1)
    hook.remove()
    assert forward.supports_sharing
    extra = before + 2  # the self check, and the two tokens of find_attention_layout
    assert sum(tokens.numel() for tokens in embedded) - extra < 0.5 * sum(map(len, related()))


@pytest.mark.parametrize("site", ["post", "pre"])
def test_the_pass_ends_after_the_last_projection(site: str) -> None:
    model, ran = factories.tiny_model("llama"), []
    layout, layers = find_attention_layout(model), model.get_decoder().layers
    self_check.load(model)  # runs whole passes, which must leave nothing behind
    hooks = [layer.mlp.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, layer in enumerate(layers)]
    with torch.no_grad(), LastTokenHooks(layout, torch.tensor([2]), site, 3) as kept:
        model(torch.tensor([[3, 4, 5]]))
    assert ran == [0, 1] and kept.stacked().shape[:2] == (1, 3)
    for hook in hooks:
        hook.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with (
        pytest.raises(IndexError),
        LastTokenHooks(layout, torch.tensor([9]), site, 3),
    ):  # other errors come through
        model(torch.tensor([[3, 4, 5]]))


def test_a_window_shorter_than_the_sequence_is_honoured() -> None:
    import transformers as hf

    torch.manual_seed(0)
    config = factories.CONFIGS["mistral"]()
    config.sliding_window = 16
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    rng = np.random.default_rng(0)
    stem = rng.integers(3, 90, size=12).tolist()
    mixed = [[*stem, *rng.integers(3, 90, size=n).tolist()] for n in (1, 2, 3, 4, 5, 20, 21)]
    expected = np.stack([by_hand(model, tokens, "post") for tokens in mixed])
    np.testing.assert_allclose(capture(model, mixed), expected, atol=1e-5 * np.abs(expected).max())


def test_activations_are_written_into_the_allocated_array(tmp_path: Path) -> None:
    model = factories.tiny_model("llama")
    expected = capture(model, sequences())
    disk = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=expected.shape)
    shapes: list[tuple[int, ...]] = []

    def allocate(shape: tuple[int, int, int, int]) -> np.ndarray:
        shapes.append(shape)
        return disk

    assert capture(model, sequences(), allocate=allocate) is disk
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    assert shapes == [expected.shape]


def test_progress_counts_every_sequence_once() -> None:
    done: list[int] = []
    capture(factories.tiny_model("llama"), [*sequences(), *sequences()], batch_size=3, progress=done.append)
    assert sum(done) == 14 and len(done) > 1


def test_out_of_memory_halves_the_batch_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tried = factories.tiny_model("llama"), []
    expected = capture(model, related(), batch_size=1)
    run = SharedPrefixModel.run

    def small_memory(self: SharedPrefixModel, batch: PackedBatch, store: Any = None) -> None:
        tried.append(batch.token_ids.shape)
        if batch.token_ids.numel() > 11:
            raise torch.OutOfMemoryError
        run(self, batch, store)

    monkeypatch.setattr(SharedPrefixModel, "run", small_memory)
    monkeypatch.setattr(self_check, "find_mismatch", lambda _: None)
    found = capture(model, related()[:-9], batch_size=7)
    np.testing.assert_allclose(found, expected[:-9], atol=1e-5)
    assert tried[0][0] > 2 and tried[-1].numel() <= 11
    with pytest.raises(torch.OutOfMemoryError):
        capture(model, [[3] * 12], batch_size=7)


class OneProcess(Processes):
    """A process whose others are not there: they have its budget, and its rows are all."""

    def exchange(self, value: Any) -> list[Any]:
        return [value] * self.count

    def gather_rows(self, rows: Any, values: Any, put: Any) -> list[int]:
        gathered.append((list(rows), values))
        return list(range(len(related())))


gathered: list[tuple[list[int], np.ndarray]] = []


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_processes_share_the_batches_of_one_and_round_like_it(batch_size: Any) -> None:
    model = factories.tiny_model("llama")
    expected = capture(model, related(), batch_size=batch_size)
    gathered.clear()
    for rank in range(3):
        found = capture(model, related(), batch_size=batch_size, processes=OneProcess(rank, 3))
        rows = gathered[-1][0]
        assert len(found) == (len(expected) if rank == 0 else len(rows))  # the first has room for all
        np.testing.assert_array_equal(found[rows] if rank == 0 else found, expected[rows])
    assert sorted(row for rows, _ in gathered for row in rows) == list(range(len(expected)))


def test_activations_that_are_missing_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OneProcess, "gather_rows", lambda *_: [0, 1])
    with pytest.raises(ProbeError, match=r"the processes have run 2 of \d+ sequences"):
        capture(factories.tiny_model("llama"), related(), processes=OneProcess(0, 2))
