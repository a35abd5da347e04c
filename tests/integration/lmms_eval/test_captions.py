"""The captioning tasks in lmms-eval: CHAIR of a tiny model's texts, counted anew from the samples."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_vision_models as factories_vlm

from truthgate_eval.data.chair import prepare_chair_poll
from truthgate_eval.errors import DataError
from truthgate_eval.harness.cache_keys import digest
from truthgate_eval.harness.lmms_eval.captions import ratio_of_sums, score_caption, share_of_captions
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.harness.lmms_eval.tasks import on_load
from truthgate_eval.metrics.chair import METRICS, Vocabulary
from truthgate_eval.packaged.scenes import make_scene
from truthgate_eval.packaged.scenes_dataset import prepare_scenes
from truthgate_eval.paths import shipped

NUM_IMAGES = 6
PROMPT = "Please describe this image in detail."


@pytest.fixture(scope="module")
def manager() -> Any:
    from lmms_eval.tasks import TaskManager

    return TaskManager(include_path=str(shipped("tasks") / "lmms_eval"))


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def load(manager: Any, name: str) -> Any:
    from lmms_eval.tasks import get_task_dict

    return get_task_dict([name], manager)[name]


def prepare(folder: Path, objects: list[list[str]]) -> None:
    """Random images with these objects on them, prepared for `chair_poll`."""
    (folder / "images").mkdir()
    lines = []
    for n, own in enumerate(objects):
        factories_vlm.random_image(n, (40 + 10 * n, 60)).save(folder / "images" / f"{n}.png")
        lines.append(json.dumps({"image": f"{n}.png", "objects": own}) + "\n")
    (folder / "annotations.jsonl").write_text("".join(lines))
    prepare_chair_poll(folder / "annotations.jsonl", [folder / "images"], folder / "data")


def test_every_task_has_its_prompt_its_data_and_the_published_settings(manager: Any, tmp_path: Path) -> None:
    prepare(tmp_path, [["dog", "traffic cone"], ["cat"]])
    prepare_scenes(tmp_path / "data", {"probe": 6, "selection": 4, "test": 8})
    poll, scenes = load(manager, "chair_poll"), load(manager, "scenes_captions")
    settings = {"max_new_tokens": 64, "temperature": 0, "do_sample": False, "until": []}
    for task, prompt, images in ((poll, PROMPT, 2), (scenes, "Describe the image.", 12)):
        docs = task.test_docs()
        assert len(docs) == images and task.doc_to_text(docs[0]) == prompt
        assert task.config.generation_kwargs == settings and task.config.cluster_key == "image"
        assert set(task.aggregation()) == set(METRICS)
        assert [task.higher_is_better()[name] for name in ("chair_s", "chair_i")] == [False, False]
        assert task.doc_to_visual(docs[0])[0].mode == "RGB"
    assert poll.doc_to_target(poll.test_docs()[0]) == "dog, traffic cone"
    scene = make_scene("selection", 0)
    scored = scenes.process_results(scenes.test_docs()[0], [scene.caption])
    assert scored["recall"] == {"part": len(scene.objects), "whole": len(scene.objects)}
    assert scored["chair_i"] == {"part": 0, "whole": len(scene.objects)}


def test_the_names_that_count_are_recorded_as_a_digest_alone(manager: Any, tmp_path: Path) -> None:
    prepare(tmp_path, [["dog", "traffic cone"], ["cat"]])
    recorded = load(manager, "chair_poll").dump_config()
    assert "traffic cone" not in json.dumps(recorded, default=str)
    names = {name: name for name in ("dog", "traffic cone", "cat")}
    assert recorded["metadata"] == {"version": 1.0, "objects": digest(names)[:16]}


def test_without_data_the_command_that_makes_it_is_named(manager: Any) -> None:
    for task, command in (("chair", "data chair --images DIR --annotations FILE --synonyms"),
                          ("chair_poll", "data chair-poll --images DIR --annotations")):  # fmt: skip
        with pytest.raises(DataError, match=f"truthgate {command}"):
            load(manager, task)
        with pytest.raises(DataError, match=f"truthgate {command}"):
            on_load(f"score_caption_{task}")


def test_only_chair_s_has_a_score_whose_mean_lmms_eval_takes() -> None:
    vocabulary = Vocabulary.of([["dog", "puppy"], ["cat"]])
    docs = [{"image": "a.png", "objects": ["dog"]}, {"image": "b.png", "objects": ["cat"]}]
    texts = ["A puppy and cats, cats.", "A cat"]
    entries = [score_caption(doc, [text], vocabulary) for doc, text in zip(docs, texts, strict=True)]
    assert entries[0]["chair_s"] == {
        "score": 1.0, "image": "a.png", "mentioned": ["dog", "cat", "cat"], "hallucinated": ["cat", "cat"],
        "annotated": ["dog"], "words": 5,
    }  # fmt: skip
    assert all("score" not in entry[name] for entry in entries for name in ("chair_i", "recall"))
    by_metric = {name: [entry[name] for entry in entries] for name in METRICS}
    assert share_of_captions(by_metric["chair_s"]) == 0.5
    assert ratio_of_sums(by_metric["chair_i"]) == 2 / 4 and ratio_of_sums(by_metric["recall"]) == 1.0
    assert by_metric["length"] == [5.0, 2.0]
    assert math.isnan(ratio_of_sums([{"part": 0, "whole": 0}]))


def words_of(text: str) -> list[str]:
    return "".join(sign if sign.isalnum() else " " for sign in text.lower()).split()


@pytest.mark.slow
def test_the_results_of_a_run_equal_a_count_of_its_samples(
    vlm_checkpoint: Callable[[str], str], manager: Any, tmp_path: Path
) -> None:
    from lmms_eval.evaluator import simple_evaluate

    model = GatedVLM(vlm_checkpoint("llava"), device="cpu", scores="none", batch_size=4)
    # The objects are words that the model says about some image or other.
    said = []
    for n in range(NUM_IMAGES):
        image = factories_vlm.random_image(n, (40 + 10 * n, 60))
        inputs = model.vlm.encode([model.vlm.prompt(PROMPT, 1)], [[image]])
        ids = model.vlm.model.generate(**inputs, max_new_tokens=64, do_sample=False)
        text = model.vlm.processor.tokenizer.decode(
            ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        said += [word for word in words_of(text) if not word.endswith("s")]
    words = sorted(set(said))
    assert len(words) > 4
    prepare(tmp_path, [[words[n % len(words)], words[(3 * n + 1) % len(words)]] for n in range(NUM_IMAGES)])

    run = simple_evaluate(model=model, tasks=["chair_poll"], task_manager=manager, bootstrap_iters=0)
    assert run is not None
    results, samples = run["results"]["chair_poll"], run["samples"]["chair_poll"]
    objects = {word for sample in samples for word in sample["target"].split(", ")}
    mentions = wrong = recalled = annotated = 0
    hallucinating = []
    for sample in samples:
        on_image = set(sample["target"].split(", "))
        counts = Counter(word for word in words_of(sample["filtered_resps"][0]) if word in objects)
        entry = sample["chair_s"]
        assert Counter(entry["mentioned"]) == counts and set(entry["annotated"]) == on_image
        own_wrong = sum(times for word, times in counts.items() if word not in on_image)
        hallucinating.append(float(own_wrong > 0))
        mentions, wrong = mentions + counts.total(), wrong + own_wrong
        recalled, annotated = recalled + len(on_image & set(counts)), annotated + len(on_image)
    assert mentions and 0 < wrong
    assert results["chair_i,none"] == pytest.approx(wrong / mentions)
    assert results["chair_s,none"] == pytest.approx(np.mean(hallucinating))
    assert results["recall,none"] == pytest.approx(recalled / annotated)
    # One caption an image: clustered by image or not, the standard error is that of a share.
    expected = np.std(hallucinating, ddof=1) / math.sqrt(NUM_IMAGES)
    for kind in ("clt", "clustered"):
        assert results[f"chair_s_stderr_{kind},none"] == pytest.approx(expected)
        assert results[f"chair_i_stderr_{kind},none"] == "N/A"
