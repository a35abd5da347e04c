"""Where images come from: the order in which questions read them, and what is decoded for several."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from helpers import tiny_vision_models as factories_vlm
from helpers.decoding import count_decoded
from PIL import ImageDraw

from truthgate_eval.harness.lmms_eval import tasks
from truthgate_eval.harness.lmms_eval.image_sources import ImageSources
from truthgate_eval.harness.lmms_eval.requests import ImageRequest
from truthgate_eval.vision.image_features import image_keys


def encoded(seed: int, file_format: str = "PNG") -> bytes:
    content = io.BytesIO()
    factories_vlm.random_image(seed, (90, 60)).save(content, file_format)
    return content.getvalue()


def hub_dataset(number: int, distinct: int) -> datasets.Dataset:
    """As lmms-eval has data sets of the hub: each row holds its image, encoded."""
    rows = {
        "image": [{"bytes": encoded(n % distinct), "path": None} for n in range(number)],
        "other": [
            None if n % distinct % 3 else {"bytes": encoded(9, "JPEG"), "path": None} for n in range(number)
        ],
        "question": [f"Is it {n}?" for n in range(number)],
    }
    image = datasets.Image()
    features = datasets.Features({"image": image, "other": image, "question": datasets.Value("string")})
    return datasets.Dataset.from_dict(rows, features=features)


def own_image(doc: Any) -> list[Any]:
    return [doc["image"].convert("RGB")]


def painted_on(doc: Any) -> list[Any]:
    """Different for each document, though their stored images are equal."""
    ImageDraw.Draw(doc["image"]).rectangle((0, 0, int(doc["question"][6:-1]), 5), fill="red")
    return [doc["image"]]


def questions(documents: Any, doc_to_visual: Any = own_image) -> list[ImageRequest]:
    return [
        ImageRequest("?", doc_to_visual, lambda n=n: documents[n], "t", n, documents=documents)  # type: ignore[misc]
        for n in range(len(documents))
    ]


def load_in_order(requested: list[ImageRequest]) -> dict[int, list[Any]]:
    sources = ImageSources()
    return {i: sources.load(requested[i]) for part in sources.parts(requested, 3) for i in part}


def test_a_stored_image_that_many_documents_have_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = count_decoded(monkeypatch)
    requested = questions(hub_dataset(100, 10))
    found = load_in_order(requested)
    assert len(decoded) == 11 and sorted(found) == list(range(100))
    for i, question in enumerate(requested):
        assert image_keys(found[i]) == image_keys(question.load_images())


def test_a_task_that_changes_a_stored_image_changes_no_other_documents() -> None:
    requested = questions(hub_dataset(12, 2), painted_on)
    found = load_in_order(requested)
    for i, question in enumerate(requested):
        assert image_keys(found[i]) == image_keys(question.load_images())
    assert len({image_keys(images) for images in found.values()}) == 12


def test_a_task_gets_the_document_that_it_would_read() -> None:
    documents, seen = hub_dataset(6, 2), list[Any]()
    requested = questions(documents, lambda doc: seen.append(doc) or [])
    load_in_order(requested)
    assert len(seen) == 6
    for doc in seen:
        i = int(doc["question"][6:-1])
        plain = documents[i]
        assert doc.keys() == plain.keys() and doc["question"] == plain["question"]
        assert doc["image"].format == plain["image"].format == "PNG"
        assert (doc["other"] is None) == (plain["other"] is None)


def test_questions_about_one_image_are_neighbours_and_in_one_part() -> None:
    documents = hub_dataset(12, 4).remove_columns("other")
    assert list(ImageSources().parts(questions(documents), 3)) == [[0, 4, 8, 1, 5, 9, 2, 6, 10], [3, 7, 11]]


def test_only_a_task_that_shows_the_named_file_is_taken_at_its_word(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(1))
    documents = [{"image_path": str(path), "question": f"Is it {n}?"} for n in range(3)]

    class Task:
        """As lmms-eval's, whose method calls what its config names."""

        config = SimpleNamespace(doc_to_visual=tasks.doc_to_visual)

        def doc_to_visual(self, doc: Any) -> Any:
            return self.config.doc_to_visual(doc)

    sources = ImageSources()
    for visual in (tasks.doc_to_visual, Task().doc_to_visual):
        own = questions(documents, visual)
        first = sources.file(own[0])
        assert first is not None and first == sources.file(own[2])
        assert list(sources.parts(own, 1)) == [[0, 1, 2]]
    other = questions(documents, lambda doc: tasks.doc_to_visual(doc))
    assert sources.file(other[0]) is None and list(sources.parts(other, 2)) == [[0, 1], [2]]


def test_a_file_is_decoded_once_for_its_keys_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(1))
    [question] = questions([{"image_path": str(path)}], tasks.doc_to_visual)
    decoded, sources = count_decoded(monkeypatch), ImageSources()
    first = sources.keys(question, image_keys)
    assert sources.keys(question, image_keys) == first and len(decoded) == 1
    factories_vlm.random_image(2, (91, 60)).save(path)
    assert sources.keys(question, image_keys) != first and len(decoded) == 2


def test_questions_without_an_image_are_one_source() -> None:
    requested = [ImageRequest(f"{n}?", None, dict, "t", n) for n in range(5)]
    assert list(ImageSources().parts(requested, 2)) == [[0, 1, 2, 3, 4]]
