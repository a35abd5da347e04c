"""Probing with pictures: what is read, where, and from which text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from helpers import tiny_vision_models as factories_vlm
from PIL import Image

from truthgate_eval.data.author_sequences import file_answers
from truthgate_eval.data.images import PictureFolders
from truthgate_eval.data.store import write_set
from truthgate_eval.errors import DataError, ModelError, TaskError
from truthgate_eval.harness.lm_eval.probing import load_lm, probing_sequences
from truthgate_eval.harness.lm_eval.probing import task_answers as text_answers
from truthgate_eval.harness.lmms_eval.probing import load_for_probing, task_answers
from truthgate_eval.probing.dataset import Answered, Answers
from truthgate_eval.probing.image_capture import capture_pictured
from truthgate_eval.probing.image_conditions import BLACK, DOCUMENT, NONE, under_condition, write
from truthgate_eval.probing.run import probe_model, probe_vlm
from truthgate_eval.vision.model import VisionLanguageModel

DECODERS = {
    "llava": "model.language_model",
    "llava_next": "model.language_model",
    "qwen2_5_vl": "model.language_model",
    "qwen2_5_omni": "model.language_model",
}


def load(folder: str, *, chat: bool = False) -> VisionLanguageModel:
    return load_for_probing("vlm", {"pretrained": folder, "dtype": "float32"}, device="cpu", chat=chat)


def pictured_answers(number: int = 5) -> Answers:
    """Questions of different lengths about pictures of different sizes, one of them about two."""
    items = []
    for n in range(number):
        pictures = [factories_vlm.picture(10 * n + k, (30 + 12 * n, 40)) for k in range(1 + (n == 2))]
        for answer in (" yes", " no way"):
            text = f"Is there a {'very ' * n}big cat?"
            items.append(Answered(text, answer, answer == " yes", n, lambda pictures=pictures: pictures))
    return Answers(items, {}, {"task": "made"}, bare=True)


def from_scratch(vlm: VisionLanguageModel, name: str, item: Answered, site: str) -> np.ndarray:
    """One sequence alone, through transformers' own calls: [layers, features] at the very last token."""
    decoder = vlm.model.get_submodule(DECODERS[name])
    kept: list[torch.Tensor] = []

    def keep(_module: Any, args: Any, output: Any) -> None:
        kept.append((args[0] if site == "pre" else output)[0, -1])

    hooks = [layer.self_attn.o_proj.register_forward_hook(keep) for layer in decoder.layers]
    pictures = list(item.pictures()) if item.pictures else []
    frame = {"llava": "<image>", "llava_next": "<image>", "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
             "qwen2_5_omni": "<|vision_bos|><|IMAGE|><|vision_eos|>"}[name]  # fmt: skip
    text = " ".join([frame] * len(pictures)) + f"\n{item.context}\nASSISTANT:{item.answer}"
    with torch.no_grad():
        vlm.model(**vlm.processor(text=[text], images=[pictures], return_tensors="pt"))
    for hook in hooks:
        hook.remove()
    return torch.stack(kept).numpy()


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", factories_vlm.NAMES)
def test_the_last_token_is_read_after_the_pictures_are_expanded(
    name: str, site: str, vlm_checkpoint: Callable[[str], str]
) -> None:
    vlm, answers = load(vlm_checkpoint(name)), pictured_answers()
    together = capture_pictured(vlm, answers, site=site, batch_size=4)
    for found, item in zip(together, answers.items, strict=True):
        expected = from_scratch(vlm, name, item, site)
        np.testing.assert_allclose(
            found.reshape(expected.shape), expected, atol=1e-5 * np.abs(expected).max()
        )


@pytest.mark.parametrize(
    ("chat", "bare", "image", "expected"),
    [
        (False, True, DOCUMENT, "<image>\nIs it?\nASSISTANT: yes"),
        (False, True, NONE, "Is it?\nASSISTANT: yes"),
        (False, False, BLACK, "<image>\nIs it? yes"),
        (False, False, NONE, "Is it? yes"),
        (True, True, DOCUMENT, "USER: <image>\nIs it? ASSISTANT: yes"),
        (True, False, NONE, "USER: Is it? ASSISTANT: yes"),
    ],
)
def test_sequences_are_written_in_the_plain_or_the_chat_format(
    chat: bool, bare: bool, image: str, expected: str, vlm_checkpoint: Callable[[str], str]
) -> None:
    vlm = load(vlm_checkpoint("llava"), chat=chat)
    item = Answered("Is it?", " yes", True, 0, lambda: [factories_vlm.picture()])
    [shown] = under_condition(Answers([item], {}, {}, bare=bare), image).items
    assert shown.pictures is not None
    assert write(vlm, shown, len(shown.pictures()), bare=bare) == expected


def test_the_black_picture_is_black_and_a_text_has_no_picture_of_its_own() -> None:
    answers = Answers([Answered("Is it?", " yes", True, 0)], {}, {"task": "t"})
    [shown] = under_condition(answers, BLACK).items
    assert shown.pictures is not None
    [black] = shown.pictures()
    assert black.size == (336, 336) and black.getextrema() == ((0, 0), (0, 0), (0, 0))
    with pytest.raises(DataError, match="task t has no pictures: say --image none"):
        under_condition(answers, DOCUMENT)
    with pytest.raises(TaskError, match="--image grey is none of"):
        under_condition(answers, "grey")


def test_an_end_of_sequence_token_is_not_the_answer(vlm_checkpoint: Callable[[str], str]) -> None:
    vlm = load(vlm_checkpoint("llava"))
    inputs, last = vlm.read(["Is it? yes", "no</s>"], [[], []])
    ends = inputs["attention_mask"].sum(dim=1) - 1
    assert (ends - last).tolist() == [0, 1]


def test_a_childs_text_scores_are_its_bases(
    tmp_path: Path, vlm_checkpoint: Callable[[str], str], halueval_folder: str
) -> None:
    """The same language weights, once inside a LLaVA and once as a Llama under lm-eval's `hf`."""
    vlm = load(vlm_checkpoint("llava"))
    base = hf.LlamaForCausalLM(vlm.model.config.text_config).eval()
    base.model.load_state_dict(vlm.model.model.language_model.state_dict())
    base.lm_head.load_state_dict(vlm.model.lm_head.state_dict())
    base.save_pretrained(tmp_path)
    vlm.processor.tokenizer.save_pretrained(tmp_path)
    lm = load_lm("hf", {"pretrained": str(tmp_path)}, batch_size=4, device="cpu")
    options = {"limit": 20, "metadata": {"halueval_path": halueval_folder}}
    sequences = probing_sequences(lm, ["probe_halueval_qa"], **options)
    answers = under_condition(text_answers(["probe_halueval_qa"], **options), NONE)
    of_base = probe_model(lm.model, sequences, name="base")
    of_child = probe_vlm(vlm, answers)
    np.testing.assert_array_equal(of_child.scores, of_base.scores)
    assert of_child.metadata["data_sha256"] == of_base.metadata["data_sha256"]
    black = probe_vlm(vlm, under_condition(answers, BLACK))
    assert black.metadata["image"] == "black" and not np.array_equal(black.scores, of_base.scores)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data for every probing task, over two pictures."""
    for n in range(2):
        factories_vlm.picture(n).save(tmp_path / f"{n}.png")
    rows = [
        {
            "row": 7 + n, "question_id": n, "image": f"{n % 2}.png", "question": f"Is it {n // 2}?",
            "answer": "no", "choices": ["yes", "no"], "target": 1, "image_path": str(tmp_path / f"{n % 2}.png"),
        }
        for n in range(4)
    ]  # fmt: skip
    files = {"phd": "image", "rlhf_v": "qa", "minimal_pairs": "pairs"}
    for folder, file in files.items():
        write_set(tmp_path / folder, {file: rows}, source={})
    write_set(tmp_path / "poll", {"random": rows, "probe": rows[:2]}, source={})
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_probing_tasks_give_every_answer_with_its_label_and_picture(prepared: Path) -> None:
    for name, data, documents in [
        ("probe_phd_image", "phd/image", 4), ("probe_rlhf_v", "rlhf_v/qa", 4),
        ("probe_minimal_pairs", "minimal_pairs/pairs", 4), ("probe_poll", "poll/probe", 2),
    ]:  # fmt: skip
        answers = task_answers([name])
        assert [item.answer for item in answers.items] == [" yes", " no"] * documents
        assert answers.labels.tolist() == [0, 1] * documents
        assert answers.groups.tolist() == [n // 2 for n in range(2 * documents)]
        assert answers.rows == {data: [7 + n for n in range(documents)]}
        last = answers.items[-1]
        assert last.pictures is not None
        assert last.pictures()[0].tobytes() == factories_vlm.picture(1).tobytes()
    assert len(task_answers(["probe_phd_image", "probe_poll"], limit=1)) == 4


def test_a_poll_with_nothing_set_aside_is_probed_on_its_random_split(
    prepared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (prepared / "poll" / "probe.parquet").unlink()
    assert list(task_answers(["probe_poll"]).rows) == ["poll/random"]
    assert "--probe-share" in caplog.text


def test_a_broken_picture_is_named(prepared: Path, vlm_checkpoint: Callable[[str], str]) -> None:
    (prepared / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"'probe_phd_image', document \d: .*1\.png"):
        capture_pictured(load(vlm_checkpoint("llava")), task_answers(["probe_phd_image"]))


def test_wrong_tasks_and_models_are_one_line(prepared: Path) -> None:
    with pytest.raises(TaskError, match="no task 'probe_phd_imag': did you mean probe_phd_image"):
        task_answers(["probe_phd_imag"])
    with pytest.raises(TaskError, match="generate_until: probing needs a multiple-choice task"):
        task_answers(["poll_random"])
    with pytest.raises(ModelError, match="without a gate"):
        load_for_probing("vlm", {"scores": "a.npz"}, device="cpu", chat=False)
    with pytest.raises(ModelError, match="no effect without --apply_chat_template"):
        load_for_probing("vlm", {"pretrained": "x", "chat_template": "t.jinja"}, device="cpu", chat=False)


def test_the_authors_lines_are_read_with_their_pictures(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(images / name)
    lines = [
        {"question_id": n, "question": question, "answer": answer, "label": label, "image_path": image}
        for n, (question, answer, label, image) in enumerate(
            [
                ("Q", "x", "gold", "a.png"),
                ("Q", "y", "hallucinated", "a.png"),
                ("Q", "x", "gold", "b.png"),
                ("R", "z", "gold", "c.png"),
            ]
        )
    ]
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folders = PictureFolders([images])
    answers = file_answers(file, folders, limit=3)
    assert answers.labels.tolist() == [1, 0, 1] and answers.groups.tolist() == [0, 0, 1]
    with pytest.raises(DataError, match=r"1 pictures are not in .*c\.png; --allow-missing"):
        file_answers(file, folders)
    left = file_answers(file, folders, allow_missing=True)
    assert len(left) == 3 and left.settings["missing_pictures"] == 1
