"""Finished activations on disk: what continues, what does not, and what is left afterwards."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories
from helpers import tiny_vision_models as factories_vlm

from truthgate_eval.errors import ModelError
from truthgate_eval.harness.lmms_eval.probing import load_for_probing
from truthgate_eval.inference import self_check
from truthgate_eval.inference.packing import PackedBatch
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.probing import kept_batches
from truthgate_eval.probing.activations import allocate_activations
from truthgate_eval.probing.capture import capture
from truthgate_eval.probing.capture_store import CaptureStore
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.processes import Processes

DIGEST = "the model's"


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every finished batch is written at once."""
    monkeypatch.setattr(kept_batches, "_SECONDS", 0.0)
    monkeypatch.setattr(kept_batches, "_SHARE", 1e9)


def store(folder: Path, digest: str = DIGEST) -> CaptureStore:
    return CaptureStore(folder / "a.npz.partial", lambda: digest)


def sequences() -> list[list[int]]:
    """Some that share a prefix, some that are equal, and some that have nothing in common."""
    rng = np.random.default_rng(0)
    stem = rng.integers(3, factories.VOCABULARY, size=50).tolist()
    lengths = (5, 12, 1, 9, 9, 40, 3, 45, 7, 50, 33)
    return [*(rng.integers(3, 90, n).tolist() for n in lengths), *([*stem, n, n] for n in range(5)), [4], [4]]


@pytest.fixture(scope="module")
def model() -> Any:
    return factories.tiny_model("llama")


def interrupted(run: Callable[[], Any], after: int) -> None:
    """Run until so many sequences are done."""
    done = 0
    original = kept_batches.KeptBatches.add

    def add(self: Any, number: int, limit: int, content: str = "") -> None:
        nonlocal done
        original(self, number, limit, content)
        done += len(self._batches[number])
        if done >= after:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(kept_batches.KeptBatches, "add", add)
        run()


class Ran:
    """Counts the sequences that go through the model, not those that are found."""

    def __init__(self) -> None:
        self.count = 0


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ran]:
    found, original = Ran(), kept_batches.KeptBatches.add

    def add(self: Any, number: int, limit: int, content: str = "") -> None:
        found.count += len(self._batches[number])
        original(self, number, limit, content)

    monkeypatch.setattr(kept_batches.KeptBatches, "add", add)
    yield found


@pytest.mark.parametrize(("after", "in_a_file"), [(1, False), (5, False), (9, False), (9, True)])
def test_a_killed_capture_continues_and_is_equal_bit_for_bit(
    after: int, in_a_file: bool, model: Any, tmp_path: Path, ran: Ran, caplog: pytest.LogCaptureFixture
) -> None:
    total = len(sequences())
    own: Any = {"allocate": partial(allocate_activations, memory=0)} if in_a_file else {}
    expected = capture(model, sequences(), batch_size=1)
    ran.count = 0
    interrupted(lambda: capture(model, sequences(), batch_size=1, store=store(tmp_path), **own), after)
    before, progress = ran.count, list[int]()
    kept = store(tmp_path)
    found = capture(model, sequences(), batch_size=1, store=kept, progress=progress.append, **own)
    np.testing.assert_array_equal(found, expected)
    assert ran.count == total and 0 < before < total and sum(progress) == total
    assert f"a.npz.partial: {before} of {total} sequences have run already" in caplog.text
    kept.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_another_command_has_left_is_not_used(model: Any, tmp_path: Path, ran: Ran) -> None:
    interrupted(lambda: capture(model, sequences(), batch_size=1, store=store(tmp_path)), 9)
    other = sequences()
    other[0] = [*other[0][:-1], other[0][-1] + 1]
    half, forward = factories.tiny_model("llama").to(torch.bfloat16), self_check.load(model)
    changes: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "one token": (model, other, {}),
        "order": (model, sequences()[::-1], {}),
        "site": (model, sequences(), {"site": "pre"}),
        "dtype": (half, sequences(), {"store": store(tmp_path, "the model's in bfloat16")}),
        # With the model as it was checked, so that the batches are the same.
        "autocast": (model, sequences(), {"mixed_precision_dtype": torch.bfloat16, "forward": forward}),
        "batches": (model, sequences(), {"batch_size": 2}),
        "weights": (model, sequences(), {"store": store(tmp_path, "another model's")}),
    }
    for name, (own, tokens, options) in changes.items():
        given = {"batch_size": 1, **options}
        expected = capture(own, tokens, **{**given, "store": None})
        ran.count = 0
        found = capture(own, tokens, **{"store": store(tmp_path), **given})
        np.testing.assert_array_equal(found, expected, err_msg=name)
        assert ran.count == len(tokens), name


def test_another_commands_shards_are_named_and_stay_until_fresh(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(lambda: capture(model, sequences(), batch_size=1, store=store(tmp_path)), 9)
    kept = store(tmp_path, "another model's")
    capture(model, sequences(), batch_size=1, store=kept)
    kept.remove()
    assert caplog.text.count("holds 0.0 MB of another command") == 1 and "--fresh removes them" in caplog.text
    [left] = kept.folder.iterdir()
    (kept.folder / "notes.txt").touch()
    kept.clear()
    assert not left.exists() and (kept.folder / "notes.txt").exists()  # a user's file is not ours to remove


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.shard"))


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "a bit":
        content = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
    elif kind == "header":
        content = content.replace(b"[[", b"[[1", 1)
    elif kind == "cut off":
        content = content[: len(content) // 2]
    elif kind == "longer":
        content += b"\0"
    elif kind == "empty":
        content = b""
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["a bit", "header", "cut off", "longer", "empty"])
def test_a_damaged_shard_is_run_again(
    kind: str, model: Any, tmp_path: Path, ran: Ran, caplog: pytest.LogCaptureFixture
) -> None:
    expected = capture(model, sequences(), batch_size=1)
    interrupted(lambda: capture(model, sequences(), batch_size=1, store=store(tmp_path)), 9)
    before, ran.count = ran.count, 0
    bad = shards(tmp_path)[1]
    damage(bad, kind)
    found = capture(model, sequences(), batch_size=1, store=store(tmp_path))
    np.testing.assert_array_equal(found, expected)
    assert f"{bad.name}" in caplog.text and "its sequences are run again" in caplog.text
    assert len(sequences()) - before < ran.count < len(sequences())


def test_a_shard_moved_from_another_capture_is_refused(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its key is part of its checksum."""
    for site in ("post", "pre"):
        interrupted(
            lambda site=site: capture(model, sequences(), site=site, batch_size=1, store=store(tmp_path)), 9
        )
    post, pre = (path for path in (tmp_path / "a.npz.partial").iterdir())
    shutil.copytree(post, pre, dirs_exist_ok=True)
    for site in ("post", "pre"):
        expected = capture(model, sequences(), site=site, batch_size=1)
        found = capture(model, sequences(), site=site, batch_size=1, store=store(tmp_path))
        np.testing.assert_array_equal(found, expected)
    assert "is damaged: its sequences are run again" in caplog.text


def test_two_shards_that_have_changed_their_names_are_refused(model: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tokens = [rng.integers(3, 90, 40).tolist() for _ in range(6)]
    interrupted(lambda: capture(model, tokens, batch_size=1, store=store(tmp_path)), 4)
    first, second, *_ = shards(tmp_path)
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0]), first.write_bytes(contents[1])
    assert len(contents[0]) == len(contents[1])
    found = capture(model, tokens, batch_size=1, store=store(tmp_path))
    np.testing.assert_array_equal(found, capture(model, tokens, batch_size=1))


def test_batches_that_memory_has_halved_are_halved_again(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row rounds as its batch does, so the continued run must make the batches of the undisturbed one."""
    run, tried, forward = SharedPrefixModel.run, list[int](), self_check.load(model)

    def small_memory(self: SharedPrefixModel, batch: PackedBatch, cache: Any = None) -> None:
        tried.append(batch.token_ids.numel())
        if batch.token_ids.numel() > 20:
            raise torch.OutOfMemoryError
        run(self, batch, cache)

    monkeypatch.setattr(SharedPrefixModel, "run", small_memory)
    monkeypatch.setattr("truthgate_eval.inference.tuning.CAPTURE_TOKENS_PER_THREAD", 64)
    rng = np.random.default_rng(1)
    tokens = [rng.integers(3, 90, 9).tolist() for _ in range(24)]
    expected = capture(model, tokens, forward=forward)
    undisturbed, failed = [*tried], [n for n in tried if n > 20]
    interrupted(lambda: capture(model, tokens, forward=forward, store=store(tmp_path)), 9)
    tried.clear()
    found = capture(model, tokens, forward=forward, store=store(tmp_path))
    np.testing.assert_array_equal(found, expected)
    assert failed and tried and tried == undisturbed[-len(tried) :]


def test_a_full_disk_ends_the_keeping_and_not_the_capture(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No small file system can be mounted here: the write itself fails as on a full one."""
    expected = capture(model, sequences(), batch_size=1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("truthgate_eval.files.writing.os.fdopen", full)
    kept = store(tmp_path)
    np.testing.assert_array_equal(capture(model, sequences(), batch_size=1, store=kept), expected)
    assert caplog.text.count("an interruption from here on loses what is not on disk yet") == 1
    assert "No space left on device" in caplog.text
    kept.remove()
    assert list(tmp_path.iterdir()) == []


def test_room_is_left_for_what_the_run_itself_writes(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    size = capture(model, sequences()).nbytes
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(kept_batches.shutil, "disk_usage", lambda _: usage._replace(free=size))
    capture(model, sequences(), batch_size=1, store=store(tmp_path))
    assert "too little space is left" in caplog.text and shards(tmp_path) == []


def test_a_model_without_a_digest_is_captured_all_the_same(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> str:
        raise ModelError("weight x cannot be read")

    found = capture(model, sequences(), store=CaptureStore(tmp_path / "a", fail))
    np.testing.assert_array_equal(found, capture(model, sequences()))
    assert "weight x cannot be read" in caplog.text and list(tmp_path.iterdir()) == []


def test_a_quick_capture_writes_nothing_and_asks_for_no_digest(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_batches, "_SECONDS", 30.0)
    kept = CaptureStore(tmp_path / "a", lambda: pytest.fail("asked"))
    capture(model, sequences(), store=kept)
    kept.remove()
    assert list(tmp_path.iterdir()) == []


def test_writing_waits_until_it_is_a_small_part_of_the_time(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_batches, "_SHARE", 1e-9)
    interrupted(lambda: capture(model, sequences(), batch_size=1, store=store(tmp_path)), 9)
    assert len(shards(tmp_path)) == 1  # the first, after which the others wait


def test_each_process_keeps_its_own(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection between them, whose rows `tests/integration` compares."""
    monkeypatch.setattr(Processes, "exchange", lambda _self, value: [value])
    monkeypatch.setattr(Processes, "gather_rows", lambda *_: list(range(len(sequences()))))
    for rank in (0, 1):
        options = {"batch_size": 1, "processes": Processes(rank, 2), "allocate": np.zeros}
        expected = capture(model, sequences(), **options)
        interrupted(lambda own=options: capture(model, sequences(), store=store(tmp_path), **own), 3)
        np.testing.assert_array_equal(capture(model, sequences(), store=store(tmp_path), **options), expected)
    assert {path.parent.name for path in shards(tmp_path)} == {"0-of-2", "1-of-2"}


def image_dataset(red: int = -1) -> ProbeDataset:
    examples = []
    for n in range(6):
        image = factories_vlm.random_image(n + 100 * (n == red), (30 + 8 * n, 40))
        for answer in (" yes", " no way"):
            examples.append(
                ProbeExample(f"Is it {n}?", answer, answer == " yes", n, lambda image=image: [image])
            )
    return ProbeDataset(examples, {}, {"task": "made"}, bare_questions=True)


def test_a_capture_with_images_continues_but_for_those_that_have_changed(
    vlm_checkpoint: Callable[[str], str], tmp_path: Path, ran: Ran, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"pretrained": vlm_checkpoint("llava"), "dtype": "float32"}
    vlm = load_for_probing("vlm", arguments, device="cpu", chat=False)
    expected = capture_with_images(vlm, image_dataset(), batch_size=2)
    run = lambda: capture_with_images(vlm, image_dataset(), batch_size=2, store=store(tmp_path))  # noqa: E731
    interrupted(run, 7)
    ran.count = 0
    np.testing.assert_array_equal(run(), expected)
    assert ran.count == 4 and "8 of 12 sequences have run already" in caplog.text
    changed = capture_with_images(vlm, image_dataset(red=2), batch_size=2)
    ran.count = 0
    found = capture_with_images(vlm, image_dataset(red=2), batch_size=2, store=store(tmp_path))
    np.testing.assert_array_equal(found, changed)
    assert 0 < ran.count < 12 and "images have changed" in caplog.text
    assert not np.array_equal(changed, expected)
