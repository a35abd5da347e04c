"""One decode and one pass of the vision tower for each image: probing a poll, and evaluating its three splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_vision_models as factories_vlm
from helpers.decoding import count_decoded, count_encoded

from truthgate_eval.data.store import write_dataset
from truthgate_eval.harness.lmms_eval import prefix_sharing
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.harness.lmms_eval.probing import load_dataset, load_for_probing
from truthgate_eval.metrics.pope import SPLITS
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.vision.question_engine import ImageQuestionEngine
from truthgate_eval.vision.self_check import load_question_engine

IMAGES, THINGS = 5, ("dog", "cat", "small cup")

# lmms-eval's own tasks take seconds to find.
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three splits of a poll, and its probing data: every one asks three things of each of five images."""
    for n in range(IMAGES):
        factories_vlm.random_image(n, (40 + 10 * n, 60)).save(tmp_path / f"{n}.jpg", quality=95)

    def rows(split: str) -> list[dict[str, Any]]:
        return [
            {
                "row": i, "question_id": i, "image": f"{i % IMAGES}.jpg",
                "question": f"Is there a {split} {THINGS[i // IMAGES]} in the image?",
                "answer": ("yes", "no")[i % 2], "choices": ["yes", "no"], "target": i % 2,
                "image_path": str(tmp_path / f"{i % IMAGES}.jpg"),
            }
            for i in range(IMAGES * len(THINGS))
        ]  # fmt: skip

    write_dataset(tmp_path / "poll", {name: rows(name) for name in (*SPLITS, "probe")}, source={})
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_probing_a_poll_decodes_and_encodes_each_image_once(
    folder: Path, vlm_checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load_for_probing("vlm", {"pretrained": vlm_checkpoint("llava")}, device="cpu", chat=True)
    engine = load_question_engine(vlm)  # encodes images of its own
    decoded, encoded = count_decoded(monkeypatch), count_encoded(vlm.model)
    dataset = load_dataset(["probe_poll"])
    assert len(dataset) == 2 * IMAGES * len(THINGS)
    capture_with_images(vlm, dataset, batch_size=2, engine=engine)
    assert sorted(decoded) == [str(folder / f"{n}.jpg") for n in range(IMAGES)]
    assert len(encoded) == len(set(encoded)) == IMAGES


def test_evaluating_three_splits_decodes_and_encodes_each_image_once(
    folder: Path, vlm_checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    monkeypatch.setattr(prefix_sharing, "_IMAGES_OF_A_PART", 2)
    model = GatedVLM(vlm_checkpoint("llava"), device="cpu", scores="none")
    assert model.question_engine is not None  # encodes images of its own
    decoded, encoded = count_decoded(monkeypatch), count_encoded(model.vlm.model)
    decoded_at_answers: list[int] = []
    generate = ImageQuestionEngine.generate

    def watched(self: Any, prompts: Any, *, progress: Any, **options: Any) -> Any:
        def tell(count: int) -> None:
            decoded_at_answers.append(len(decoded))
            progress(count)

        return generate(self, prompts, progress=tell, **options)

    monkeypatch.setattr(ImageQuestionEngine, "generate", watched)
    run = evaluator.simple_evaluate(
        model=model,
        tasks=[f"poll_{split}" for split in SPLITS],
        task_manager=TaskManager(),
        bootstrap_iters=0,
    )
    assert run is not None and all(len(run["samples"][f"poll_{s}"]) == IMAGES * len(THINGS) for s in SPLITS)
    assert sorted(decoded) == [str(folder / f"{n}.jpg") for n in range(IMAGES)]
    assert len(encoded) == len(set(encoded)) == IMAGES
    # The bar moves when the first part's images are there, and before the others are.
    assert decoded_at_answers[0] == 2 and decoded_at_answers[-1] == IMAGES
