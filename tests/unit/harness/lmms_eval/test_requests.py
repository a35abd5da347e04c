"""lmms-eval's requests: generation settings, batches that fail, and documents that cannot be answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import lmms_eval_runs as kit
from helpers import tiny_vision_models as factories_vlm
from PIL import Image

from truthgate_eval.errors import DataError, ModelError, TaskError
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.harness.lmms_eval.requests import batches, generation_options
from truthgate_eval.vision.image_features import image_keys


@pytest.fixture(scope="module")
def llava(vlm_checkpoint: Callable[[str], str]) -> GatedVLM:
    return GatedVLM(vlm_checkpoint("llava"), device="cpu", scores="none")


@pytest.fixture(scope="module")
def plain(vlm_checkpoint: Callable[[str], str]) -> GatedVLM:
    """The same without shared prefixes."""
    return GatedVLM(vlm_checkpoint("llava"), device="cpu", scores="none", engine="off")


def test_settings_of_generation_are_obeyed(llava: GatedVLM, tmp_path: Path) -> None:
    docs = kit.documents(tmp_path)
    long = kit.generate(llava, docs, {"max_new_tokens": 12, "until": ["\n\n"]})
    short = kit.generate(llava, docs, {"max_new_tokens": 3})
    assert all(len(text) <= 3 for text in short) and any(len(text) > 3 for text in long)
    stop = next(text for text in long if len(text) > 4)[3]
    cut = kit.generate(llava, docs, {"max_new_tokens": 12, "until": stop})
    assert cut == [text.split(stop)[0] for text in long]
    sampled = kit.generate(llava, docs, {"max_new_tokens": 12, "temperature": 3.0, "top_p": 0.99})
    assert sampled != long
    assert all(kit.generate(llava, docs, {"num_beams": 2, "max_new_tokens": 3}))


def test_generation_settings_mean_what_they_mean_to_lmms_evals_models() -> None:
    options, until = generation_options({})
    assert options == {
        "max_new_tokens": 1024,
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
    }
    assert until == []
    options, until = generation_options({"temperature": "0.5", "top_k": 4, "until": ["\n\n", "", "Q:"]})
    assert (options["do_sample"], options["temperature"], options["top_k"]) == (True, 0.5, 4)
    assert until == ["Q:"]
    with pytest.raises(TaskError, match="wrong value"):
        generation_options({"max_new_tokens": "many"})
    with pytest.raises(TaskError, match="until=3"):
        generation_options({"until": 3})


def test_a_batch_that_does_not_fit_is_halved(
    plain: GatedVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = kit.documents(tmp_path)
    expected = kit.generate(plain, docs)
    generate_, sizes = plain.vlm.model.generate, []

    def generate(**options: Any) -> Any:
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate_(**options)

    monkeypatch.setattr(plain, "batch_size", 8)
    monkeypatch.setattr(plain.vlm.model, "generate", generate)
    assert kit.generate(plain, docs) == expected
    assert sizes == [8, 4, 2, 2, 4, 2, 2]


def test_equal_questions_about_equal_images_are_answered_once(
    plain: GatedVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POPE's splits repeat questions. Pixels decide whether images are equal, and not the files they come from."""
    one, same, other = (tmp_path / name for name in ("one.png", "same.png", "other.png"))
    for path, seed in ((one, 1), (same, 1), (other, 2)):
        factories_vlm.random_image(seed).save(path)
    docs = [
        {"question": question, "pictures": [str(path)]}
        for question, path in [("a?", one), ("b?", one), ("a?", other), ("a?", same), ("a?", one)]
    ]
    answered: list[str] = []

    def answers(questions: Any, options: Any) -> list[str]:
        answered.extend(question.text for question in questions)
        return [f"{question.text} {image_keys(question.load_images())}" for question in questions]

    monkeypatch.setattr(plain, "_answers", answers)
    found = kit.generate(plain, docs)
    assert sorted(answered) == ["a?", "a?", "b?"]
    assert found[0] == found[3] == found[4] != found[2] and found[1].startswith("b?")
    answered.clear()
    kit.generate(plain, docs, {**kit.SETTINGS, "temperature": 0.7})
    assert len(answered) == 5  # every request gets a sample of its own
    answered.clear()
    with_paths = [{**doc, "image_path": doc["pictures"][0]} for doc in docs]
    assert kit.generate(plain, with_paths) == found
    assert len(answered) == 3
    answered.clear()
    turned = {**with_paths[0], "visual": lambda doc: [Image.open(doc["image_path"]).rotate(180)]}
    kit.generate(plain, [with_paths[0], turned])
    assert len(answered) == 2  # one file, but a task that turns its image


def test_the_document_that_fails_is_named(
    plain: GatedVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = kit.documents(tmp_path)
    bad = next(n for n, doc in enumerate(docs) if not doc["pictures"])

    def encode(texts: Any, pictures: Any, **options: Any) -> Any:
        if any(
            docs[bad]["question"] in text and not found for text, found in zip(texts, pictures, strict=True)
        ):
            raise RuntimeError("something inside the model\nwith details")
        return type(plain.vlm).encode(plain.vlm, texts, pictures, **options)

    monkeypatch.setattr(plain, "batch_size", 8)
    monkeypatch.setitem(plain.vlm.__dict__, "encode", encode)
    with pytest.raises(
        ModelError, match=f"task 'tiny_pictures', document {bad} failed: RuntimeError: something"
    ):
        kit.generate(plain, docs)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: path.write_text("no picture"), "UnidentifiedImageError: cannot identify image file"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "OSError: image file is truncated"),
        (lambda path: path.unlink(), "FileNotFoundError"),
    ],
)
def test_a_broken_image_is_named(
    break_it: Callable[[Path], None], message: str, llava: GatedVLM, tmp_path: Path
) -> None:
    docs = kit.documents(tmp_path)
    break_it(Path(docs[3]["pictures"][0]))
    with pytest.raises(
        DataError, match="task 'tiny_pictures', document 3: its picture cannot be read"
    ) as error:
        kit.generate(llava, docs)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_image_is_named(llava: GatedVLM) -> None:
    docs = [{"question": "what?", "visual": lambda _: ["film.mp4"]}]
    with pytest.raises(DataError, match="document 0: gated models take pictures, got a str"):
        kit.generate(llava, docs)
    docs = [{"question": "<image> <image>?", "visual": lambda _: [factories_vlm.random_image()]}]
    with pytest.raises(DataError, match="document 0: the text has 2 placeholders"):
        kit.generate(llava, docs)
    assert len(kit.generate(llava, [{"question": "what?", "visual": lambda _: None}])) == 1
    with pytest.raises(TaskError, match="document 0: the request has lost its images"):
        kit.generate(llava, [{"question": "what?", "visual": None}])


def test_batches_hold_equal_settings_and_begin_with_the_longest_texts() -> None:
    settings = [{"a": 1, "b": 2}, {"a": 3}, {"b": 2, "a": 1}, {"a": 1, "b": 2}]
    assert list(batches(settings, ["22", "1", "4444", "333"], 2)) == [[2, 3], [0], [1]]
