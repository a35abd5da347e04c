"""All images of a run are looked at before its first answer."""

from __future__ import annotations

import io
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers import lmms_eval_runs as kit
from helpers import tiny_vision_models as factories_vlm
from PIL import EpsImagePlugin, Image, ImageFile

from truthgate_eval.errors import DataError
from truthgate_eval.harness.lmms_eval import tasks
from truthgate_eval.harness.lmms_eval.image_check import check_images
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.harness.lmms_eval.requests import ImageRequest


class CountedPatches:
    """A processor whose image processor refuses long images, as Qwen2-VL's does."""

    image_processor: Any

    def __init__(self) -> None:
        self.image_processor = self

    def get_number_of_image_patches(self, height: int, width: int, _options: dict[str, Any]) -> int:
        if max(height, width) > 20 * min(height, width):
            raise ValueError(f"absolute aspect ratio must be smaller than 20, got {width / height}")
        return height * width


def encoded(seed: int, file_format: str = "JPEG", size: tuple[int, int] = (90, 60)) -> bytes:
    content = io.BytesIO()
    factories_vlm.random_image(seed, size).save(content, file_format)
    return content.getvalue()


def hub_dataset(contents: list[bytes]) -> datasets.Dataset:
    """As lmms-eval has data sets of the hub: images are in the rows, and are decoded when a row is read."""
    rows = {"image": [{"bytes": content, "path": None} for content in contents]}
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict(rows, features=features)


def requests(documents: Any, doc_to_visual: Callable[[Any], Any], copies: int = 1) -> list[ImageRequest]:
    return [
        ImageRequest("?", doc_to_visual, lambda n=n: documents[n], "t", n, documents=documents)  # type: ignore[misc]
        for n in range(len(documents))
        for _ in range(copies)
    ]


def own_image(doc: Any) -> list[Any]:
    return [doc["image"].convert("RGB")]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every image that Pillow decodes."""
    count: list[int] = []
    load = ImageFile.ImageFile.load

    def counted(self: Any) -> Any:
        if getattr(self, "tile", None):
            count.append(1)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    return count


@pytest.mark.parametrize("lmms_eval_accepts_truncated", [False, True])
def test_all_broken_images_of_a_data_set_are_named_at_once(
    lmms_eval_accepts_truncated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lmms_eval_accepts_truncated)
    contents = [encoded(n, ("JPEG", "PNG", "WEBP")[n % 3]) for n in range(200)]
    contents[3] = contents[3][: len(contents[3]) // 2]
    contents[100] = b"no image"
    contents[199] = contents[199][:-200]
    with pytest.raises(DataError) as error:
        check_images(requests(hub_dataset(contents), own_image), CountedPatches())
    message = str(error.value)
    assert message.startswith("3 images cannot be used, nothing was answered yet: task 't', document 3: ")
    assert "document 100: its picture cannot be read: UnidentifiedImageError" in message
    assert "document 199: its picture cannot be read: OSError" in message
    assert message.count("document") == 3 and "\n" not in message
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lmms_eval_accepts_truncated


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "MPO"])
def test_whole_images_are_not_decoded(file_format: str, decoded: list[int]) -> None:
    contents = [encoded(n % 4, file_format) for n in range(20)]
    check_images(requests(hub_dataset(contents), own_image, copies=3), CountedPatches())
    assert decoded == []
    contents[3] = contents[3][: len(contents[3]) * 2 // 3]
    with pytest.raises(DataError, match="document 3: its picture cannot be read"):
        check_images(requests(hub_dataset(contents), own_image), CountedPatches())


def test_images_whose_end_their_format_does_not_show_are_decoded_once(decoded: list[int]) -> None:
    contents = [encoded(n % 4, "BMP") for n in range(20)]
    check_images(requests(hub_dataset(contents), own_image, copies=3), CountedPatches())
    assert len(decoded) == 4


def test_what_a_camera_writes_after_the_end_is_no_fault(decoded: list[int]) -> None:
    contents = [encoded(0) + b"more", encoded(1) + bytes(5000)]
    check_images(requests(hub_dataset(contents), own_image), CountedPatches())
    assert len(decoded) == 1  # the second's end is not among the last bytes, so that it is decoded


def test_a_broken_image_of_many_documents_is_named_once() -> None:
    contents = [encoded(0) if n % 2 else b"no image" for n in range(100)]
    with pytest.raises(DataError, match=r"^task 't', document 0: its picture cannot be read") as error:
        check_images(requests(hub_dataset(contents), own_image), CountedPatches())
    assert str(error.value).count("document") == 1


def test_many_broken_images_are_counted() -> None:
    contents = [b"no image %d" % n for n in range(60)]
    with pytest.raises(DataError, match=r"^60 images .*document 49: .*; and 10 more$"):
        check_images(requests(hub_dataset(contents), own_image), CountedPatches())


def test_files_that_documents_name_are_looked_at(tmp_path: Path, decoded: list[int]) -> None:
    """As in this package's own data sets, which have each image's path."""
    for n in range(3):
        (tmp_path / f"{n}.jpg").write_bytes(encoded(n))
    rows = [{"image": f"{n % 3}.jpg", "image_path": str(tmp_path / f"{n % 3}.jpg")} for n in range(60)]
    documents = datasets.Dataset.from_list(rows)
    check_images(requests(documents, tasks.doc_to_visual), CountedPatches())
    assert decoded == []
    (tmp_path / "1.jpg").unlink()
    (tmp_path / "2.jpg").write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"^2 images .*document 1: .*no image at .*1\.jpg.*document 2: .*2\.jpg"
    ):
        check_images(requests(documents, tasks.doc_to_visual), CountedPatches())


def test_on_the_command_line_our_own_tasks_do_not_end_the_program_at_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["lmms_eval"])
    documents = [{"image_path": str(tmp_path / f"{n}.jpg")} for n in range(2)]
    with pytest.raises(SystemExit):
        tasks.doc_to_visual(documents[0])
    with pytest.raises(DataError, match=r"^2 images .*document 0: .*no image at .*0\.jpg.*document 1: "):
        check_images(requests(documents, tasks.doc_to_visual), CountedPatches())


def test_images_that_only_the_task_can_find_are_read_as_for_an_answer(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(encoded(1))
    documents = [{"name": "1.jpg"}, {"name": "2.jpg"}]
    with pytest.raises(DataError, match=r"^task 't', document 1: .*FileNotFoundError"):
        check_images(requests(documents, lambda doc: [Image.open(tmp_path / doc["name"])]), CountedPatches())


def test_a_broken_image_that_the_task_does_not_read_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    documents = [{"other": str(tmp_path / "broken.jpg"), "texts": ["a", None, 3], "seed": 1}]
    check_images(requests(documents, lambda doc: [factories_vlm.random_image(doc["seed"])]), CountedPatches())


def test_an_image_over_pillows_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [encoded(0, size=(20, 20)), encoded(1, size=(90, 60))]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"document 1: its picture cannot be read: DecompressionBombError"):
        check_images(requests(hub_dataset(contents), own_image), CountedPatches())


def test_a_size_that_the_image_processor_refuses_is_named() -> None:
    documents = hub_dataset([encoded(0), encoded(1, size=(2000, 30))])
    with pytest.raises(DataError, match=r"document 1: .* no picture of 2000 x 30 pixels: absolute aspect"):
        check_images(requests(documents, own_image), CountedPatches())
    check_images(requests(documents, own_image), object())  # a processor that takes every size


def test_qwens_processor_refuses_in_the_check_what_it_refuses_in_the_run(
    vlm_checkpoint: Callable[[str], str],
) -> None:
    vlm = GatedVLM(vlm_checkpoint("qwen2_5_vl"), device="cpu", scores="none").vlm
    long = factories_vlm.random_image(0, (2, 700))
    with pytest.raises(ValueError, match="aspect ratio") as refused:
        vlm.encode([vlm.prompt("what?", 1)], [[long]])
    with pytest.raises(DataError, match=r"document 0: .* 2 x 700 pixels") as error:
        check_images(requests([{"image": long}], own_image), vlm.processor)
    assert str(refused.value) in str(error.value)


@pytest.mark.parametrize("stored", [True, False])
def test_only_a_few_images_are_in_memory_at_once(stored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are decoded from what the documents hold, or read by the task's own function."""
    images: list[weakref.ref[Any]] = []  # images are not hashable
    most = [0]
    load = ImageFile.ImageFile.load

    def loaded(self: Any) -> Any:
        images.append(weakref.ref(self))
        most[0] = max(most[0], len({id(image) for ref in images if (image := ref()) is not None}))
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", loaded)
    contents = [encoded(n, "BMP") for n in range(200)]  # a format that is decoded
    documents: Any = hub_dataset(contents) if stored else [{"number": n} for n in range(200)]

    def read(doc: Any) -> list[Any]:
        return [Image.open(io.BytesIO(contents[doc["number"]]))]

    check_images(requests(documents, own_image if stored else read), CountedPatches())
    assert 0 < most[0] <= 16


def test_no_program_is_started_for_a_stored_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript"))
    documents = [{"image": {"bytes": encoded(0, "EPS")}}]  # the task has its images from elsewhere
    check_images(requests(documents, lambda _: [factories_vlm.random_image(0)]), CountedPatches())


@pytest.mark.parametrize("engine", ["auto", "off"])
def test_the_model_answers_nothing_where_a_late_image_is_broken(
    engine: str, vlm_checkpoint: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GatedVLM(vlm_checkpoint("llava"), device="cpu", scores="none", engine=engine)
    docs = kit.documents(tmp_path)
    assert all(kit.generate(model, docs))
    for n in (3, 7):
        Path(docs[n]["pictures"][0]).write_bytes(b"no image")
    monkeypatch.setattr(model, "answer", lambda *_: pytest.fail("it began to answer"))
    monkeypatch.setattr(model, "score", lambda *_: pytest.fail("it began to answer"))
    monkeypatch.setattr(model, "answer_rounds", lambda *_, **__: pytest.fail("it began to answer"))
    both = r"^2 images cannot .*'tiny_pictures', document 3: .*'tiny_pictures', document 7: "
    with pytest.raises(DataError, match=both):
        kit.generate(model, docs)
    with pytest.raises(DataError, match=both):
        model.loglikelihood(
            [kit.instance("loglikelihood", n, "?", " yes", kit.open_images) for n in range(8)]
        )
    with pytest.raises(DataError, match=both):
        model.generate_until_multi_round(
            [kit.instance("generate_until_multi_round", n, "?", {}, kit.open_images, None) for n in range(8)]
        )


def test_a_run_of_two_kinds_of_tasks_is_checked_before_either(
    vlm_checkpoint: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lmms-eval sends the requests of each type together, one type after the other."""
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    include, other = kit.save_tasks(tmp_path / "tasks"), kit.save_tasks(tmp_path / "other")
    choices = include / "tiny_choice.yaml"
    choices.write_text(choices.read_text().replace(str(include / "data"), str(other / "data")))
    model = GatedVLM(vlm_checkpoint("llava"), device="cpu", scores="none")
    calls: list[str] = []
    answer, score = model.answer, model.score
    monkeypatch.setattr(model, "answer", lambda *given: calls.append("answer") or answer(*given))
    monkeypatch.setattr(model, "score", lambda *given: calls.append("score") or score(*given))

    def run() -> Any:
        return evaluator.simple_evaluate(
            model=model,
            tasks=["tiny_pictures", "tiny_choice"],
            task_manager=TaskManager(include_path=str(include)),
            limit=4,
            bootstrap_iters=0,
        )

    assert run() is not None and sorted(calls) == ["answer", "score"]
    calls.clear()
    for folder in (include, other):
        (folder / "3_0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^2 images cannot") as error:
        run()
    for task in ("tiny_pictures", "tiny_choice"):
        assert f"task '{task}', document 3: its picture cannot be read" in str(error.value)
    assert calls == []
    (other / "3_0.png").unlink()  # a call outside of a run looks at its own requests only
    factories_vlm.random_image(0).save(include / "3_0.png")
    assert kit.generate(model, [{"question": "?", "pictures": [str(include / "3_0.png")]}])
