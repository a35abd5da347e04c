"""Capture with images on the shared-prefix engine: what runs once, in which order, and what does not share."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_vision_models as factories_vlm
from helpers.decoding import count_decoded, count_encoded

from truthgate_eval.data.images import open_image
from truthgate_eval.harness.lmms_eval.probing import load_for_probing
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.probing import image_windows
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.probing.image_windows import split_into_windows
from truthgate_eval.vision import self_check
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImageQuestionEngine
from truthgate_eval.vision.self_check import load_question_engine
from truthgate_eval.vision.shared_prefix import SharedPrefixVLM

ANSWERS = (" yes", " no way")


@pytest.fixture(scope="module")
def vlm(vlm_checkpoint: Callable[[str], str]) -> VisionLanguageModel:
    arguments = {"pretrained": vlm_checkpoint("llava"), "dtype": "float32"}
    return load_for_probing("vlm", arguments, device="cpu", chat=False)


@pytest.fixture
def engine(vlm: VisionLanguageModel) -> ImageQuestionEngine:
    engine = load_question_engine(vlm)
    assert engine is not None
    return engine


def open_images(paths: list[Path]) -> list[Any]:
    return [open_image(path) for path in paths]


def poll(
    folder: Path, images: int = 5, questions: int = 3, *, with_keys: bool = True, lengths: int = 3
) -> ProbeDataset:
    """Questions about image files, in turns, each with two answers."""
    paths = [folder / f"{n}.png" for n in range(images)]
    for n, path in enumerate(paths):
        factories_vlm.random_image(n, (30 + 10 * n, 40)).save(path)
    examples = []
    for number in range(questions):
        for n, path in enumerate(paths):
            load = functools.partial(open_images, [path])
            key = str(path) if with_keys else None
            text, group = (
                f"Is there a {'very ' * (n % lengths)}big {'cat dog cup'.split()[number % 3]}?",
                number * images + n,
            )
            examples += [ProbeExample(text, answer, answer == " yes", group, load, key) for answer in ANSWERS]
    return ProbeDataset(examples, {}, {"task": "made"}, bare_questions=True)


@pytest.mark.parametrize("with_keys", [True, False])
def test_an_image_is_decoded_once_and_encoded_once(
    with_keys: bool, vlm: VisionLanguageModel, engine: ImageQuestionEngine, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    dataset = poll(tmp_path, with_keys=with_keys)
    decoded, encoded = count_decoded(monkeypatch), count_encoded(vlm.model)
    found = capture_with_images(vlm, dataset, batch_size=2, engine=engine)
    assert len(encoded) == len(set(encoded)) == 5
    # Without a key, an image's file is not known to be another question's: pixels tell after decoding.
    assert len(decoded) == (5 if with_keys else 15) and len(set(decoded)) == 5
    encoded.clear()
    plain = capture_with_images(vlm, dataset, batch_size=2, engine=None)
    assert len(encoded) == len(dataset) and len(set(encoded)) == 5
    np.testing.assert_allclose(found, plain, atol=1e-5 * np.abs(plain).max())


def test_the_tokens_that_answers_and_questions_share_run_once(
    vlm: VisionLanguageModel, engine: ImageQuestionEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_tokens, embed = [0], SharedPrefixVLM.embed

    def counted(self: SharedPrefixVLM, token_ids: torch.Tensor) -> Any:
        image_tokens[0] += int((token_ids >= self.first_image_id).sum())
        return embed(self, token_ids)

    monkeypatch.setattr(SharedPrefixVLM, "embed", counted)
    capture_with_images(vlm, poll(tmp_path), batch_size=2, engine=engine)
    features = [engine.feature_cache.get(key) for key in list(engine.feature_cache._features)]
    assert image_tokens[0] == sum(len(one) for one in features if one is not None) > 0


def test_images_are_decoded_when_their_window_begins(
    vlm: VisionLanguageModel, engine: ImageQuestionEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, at_progress = count_decoded(monkeypatch), list[tuple[int, int]]()
    dataset = poll(tmp_path)
    capture_with_images(
        vlm, dataset, batch_size=2, engine=engine, progress=lambda n: at_progress.append((len(decoded), n))
    )
    assert at_progress[0][0] == 2 and at_progress[-1][0] == 5
    assert sum(count for _, count in at_progress) == len(dataset)
    assert len(engine._decoded) == 0


def test_windows_hold_a_few_images_and_all_that_is_asked_about_them(tmp_path: Path) -> None:
    dataset = poll(tmp_path)
    windows = split_into_windows(dataset.examples, 2)
    assert sorted(i for window in windows for i in window) == list(range(len(dataset)))
    keys = [{dataset.examples[i].image_key for i in window} for window in windows]
    assert [len(own) for own in keys] == [2, 2, 1] and len(set.union(*keys)) == 5
    for window in windows:  # the two answers of a question are neighbours
        groups = [dataset.examples[i].group for i in window]
        assert groups[::2] == groups[1::2]


def test_many_questions_about_one_image_or_none_are_several_windows() -> None:
    examples = [ProbeExample(f"Is it {n}?", " yes", True, n, list) for n in range(100)]
    windows = split_into_windows(examples, 2)
    assert [len(window) for window in windows] == [32, 32, 32, 4]


def test_a_second_window_about_an_image_decodes_it_no_second_time(
    vlm: VisionLanguageModel, engine: ImageQuestionEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_windows, "_SEQUENCES_PER_IMAGE", 4)
    dataset = poll(tmp_path, images=1)
    assert len(split_into_windows(dataset.examples, 1)) == 2
    decoded, encoded = count_decoded(monkeypatch), count_encoded(vlm.model)
    capture_with_images(vlm, dataset, batch_size=1, engine=engine)
    assert len(decoded) == len(encoded) == 1


def test_a_model_that_cannot_share_runs_each_sequence_and_one_line_says_so(
    vlm: VisionLanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = poll(tmp_path)
    plain = capture_with_images(vlm, dataset, batch_size=3, engine=None)
    monkeypatch.setattr(self_check, "find_sharing_mismatch", lambda _: "they differ")
    decoded, encoded = count_decoded(monkeypatch), count_encoded(vlm.model)
    with caplog.at_level(logging.WARNING, "truthgate_eval"):
        found = capture_with_images(vlm, dataset, batch_size=3)
    np.testing.assert_array_equal(found, plain)
    assert len(decoded) == 5 and len(encoded) >= len(dataset)
    assert [
        record.message for record in caplog.records if "own" in record.message or "shares" in record.message
    ] == ["LlavaForConditionalGeneration shares no prefixes, every sequence runs by itself: they differ"]


def test_where_sharing_fails_the_whole_model_runs_from_there_on_and_one_line_says_so(
    vlm: VisionLanguageModel, engine: ImageQuestionEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    dataset, calls, run = poll(tmp_path), [0], SharedPrefixModel.run
    plain = capture_with_images(vlm, dataset, batch_size=2, engine=None)

    def fails_later(self: Any, *args: Any) -> None:
        calls[0] += 1
        if calls[0] >= 2:
            raise RuntimeError("something inside\nwith details")
        run(self, *args)

    monkeypatch.setattr(SharedPrefixModel, "run", fails_later)
    progress: list[int] = []
    with caplog.at_level(logging.WARNING, "truthgate_eval"):
        found = capture_with_images(vlm, dataset, batch_size=2, engine=engine, progress=progress.append)
    np.testing.assert_allclose(found, plain, atol=1e-5 * np.abs(plain).max())
    assert sum(progress) == len(dataset)
    messages = [record.message for record in caplog.records]
    assert messages[0].startswith("capturing without shared prefixes, which failed: RuntimeError: something")
    assert len(messages) == 2 and "ran through the whole model" in messages[1]


def test_a_batch_that_memory_does_not_hold_is_halved_for_good(
    vlm: VisionLanguageModel, engine: ImageQuestionEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, sizes, run = poll(tmp_path, images=8, lengths=1), list[int](), SharedPrefixModel.run
    memory = 10**9

    def small(self: Any, batch: Any, cache: Any = None) -> None:
        sizes.append(batch.token_ids.numel())
        if sizes[-1] > memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        run(self, batch, cache)

    monkeypatch.setattr(SharedPrefixModel, "run", small)
    expected = capture_with_images(vlm, dataset, batch_size=4, engine=engine)
    memory = max(sizes) - 1
    assert sizes.count(max(sizes)) >= 2  # in either of the two windows, which ask the same
    sizes.clear()
    found = capture_with_images(vlm, dataset, batch_size=4, engine=engine)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert sum(size > memory for size in sizes) == 1


def test_several_images_run_through_the_whole_model_where_sharing_mixes_them(
    vlm: VisionLanguageModel, engine: ImageQuestionEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    dataset = poll(tmp_path, images=2, questions=1)
    both = functools.partial(open_images, [tmp_path / "0.png", tmp_path / "1.png"])
    dataset.examples.append(ProbeExample("Which one?", " this", True, 9, both, "both"))
    expected = capture_with_images(vlm, dataset, batch_size=4, engine=None)
    found = capture_with_images(vlm, dataset, batch_size=4, engine=engine)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert not caplog.records
    monkeypatch.setattr(engine.model, "supports_multi_image", False)
    np.testing.assert_allclose(
        capture_with_images(vlm, dataset, batch_size=4, engine=engine),
        expected,
        atol=1e-5 * np.abs(expected).max(),
    )
    assert [record.message for record in caplog.records] == [
        "1 of 5 sequences ran through the whole model: they share nothing that can be computed once"
    ]


def test_features_are_dropped_where_they_fill_their_memory(
    vlm: VisionLanguageModel, engine: ImageQuestionEngine, tmp_path: Path
) -> None:
    dataset = poll(tmp_path)
    expected = capture_with_images(vlm, dataset, batch_size=1, engine=engine)
    one = next(iter(engine.feature_cache._features.values())).memory
    engine.feature_cache.for_model(None).memory = 2 * one
    np.testing.assert_array_equal(capture_with_images(vlm, dataset, batch_size=1, engine=engine), expected)
    assert engine.feature_cache._used_memory <= 2 * one and len(engine.feature_cache._features) <= 2


def test_one_engine_encodes_an_image_once_for_all_captures(
    vlm: VisionLanguageModel, engine: ImageQuestionEngine, tmp_path: Path
) -> None:
    """A run captures its data set again for each control."""
    dataset, encoded = poll(tmp_path), count_encoded(vlm.model)
    first = capture_with_images(vlm, dataset, batch_size=2, engine=engine)
    np.testing.assert_array_equal(capture_with_images(vlm, dataset, batch_size=2, engine=engine), first)
    assert len(encoded) == 5
