"""Probing with images: which position is read, and from which text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from helpers import tiny_vision_models as factories_vlm
from PIL import Image
from tokenizers.processors import TemplateProcessing

from truthgate_eval.data.images import ImageFolders
from truthgate_eval.data.store import write_dataset
from truthgate_eval.errors import DataError, ModelError, TaskError, TruthGateError
from truthgate_eval.harness.lm_eval.probing import load_dataset as load_text_dataset
from truthgate_eval.harness.lm_eval.probing import load_lm, load_tokenized, tokenize
from truthgate_eval.harness.lmms_eval.probing import load_dataset, load_for_probing
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample, load_author_dataset
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.probing.image_conditions import BLACK, DOCUMENT, NONE, apply_image_condition, write_prompt
from truthgate_eval.probing.run import run_image_probing, run_probing
from truthgate_eval.vision.model import VisionLanguageModel

DECODERS = {
    "llava": "model.language_model",
    "llava_next": "model.language_model",
    "qwen2_5_vl": "model.language_model",
    "qwen2_5_omni": "model.language_model",
}


def load(folder: str, *, chat: bool = False) -> VisionLanguageModel:
    return load_for_probing("vlm", {"pretrained": folder, "dtype": "float32"}, device="cpu", chat=chat)


def image_dataset(number: int = 5) -> ProbeDataset:
    """Questions of different lengths about pictures of different sizes, one of them about two."""
    items = []
    for n in range(number):
        pictures = [factories_vlm.random_image(10 * n + k, (30 + 12 * n, 40)) for k in range(1 + (n == 2))]
        for answer in (" yes", " no way"):
            text = f"Is there a {'very ' * n}big cat?"
            items.append(ProbeExample(text, answer, answer == " yes", n, lambda pictures=pictures: pictures))
    return ProbeDataset(items, {}, {"task": "made"}, bare_questions=True)


def from_scratch(vlm: VisionLanguageModel, name: str, item: ProbeExample, site: str) -> np.ndarray:
    """One sequence alone, through transformers' own calls: [layers, features] at the very last token."""
    decoder = vlm.model.get_submodule(DECODERS[name])
    kept: list[torch.Tensor] = []

    def keep(_module: Any, args: Any, output: Any) -> None:
        kept.append((args[0] if site == "pre" else output)[0, -1])

    hooks = [layer.self_attn.o_proj.register_forward_hook(keep) for layer in decoder.layers]
    pictures = list(item.load_images()) if item.load_images else []
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
def test_the_last_token_is_read_after_placeholders_have_become_image_tokens(
    name: str, site: str, vlm_checkpoint: Callable[[str], str]
) -> None:
    vlm, answers = load(vlm_checkpoint(name)), image_dataset()
    together = capture_with_images(vlm, answers, site=site, batch_size=4)
    for found, item in zip(together, answers.examples, strict=True):
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
    item = ProbeExample("Is it?", " yes", True, 0, lambda: [factories_vlm.random_image()])
    [shown] = apply_image_condition(ProbeDataset([item], {}, {}, bare_questions=bare), image).examples
    assert shown.load_images is not None
    assert write_prompt(vlm, shown, len(shown.load_images()), bare_question=bare) == expected


def test_the_black_image_is_black_and_a_text_task_has_no_image_of_its_own() -> None:
    answers = ProbeDataset([ProbeExample("Is it?", " yes", True, 0)], {}, {"task": "t"})
    [shown] = apply_image_condition(answers, BLACK).examples
    assert shown.load_images is not None
    [black] = shown.load_images()
    assert black.size == (336, 336) and black.getextrema() == ((0, 0), (0, 0), (0, 0))
    with pytest.raises(DataError, match="task t has no images: say --image none"):
        apply_image_condition(answers, DOCUMENT)
    with pytest.raises(TaskError, match="--image grey is none of"):
        apply_image_condition(answers, "grey")


def test_an_end_of_sequence_token_is_not_the_answer(vlm_checkpoint: Callable[[str], str]) -> None:
    vlm = load(vlm_checkpoint("llava"))
    inputs, last = vlm.prepare_scoring(["Is it?", "n"], [" yes", "o</s>"], [[], []])
    ends = inputs["attention_mask"].sum(dim=1) - 1
    assert (ends - last).tolist() == [0, 1]


class LineBreakProcessor(hf.LlavaProcessor):
    """A processor that appends a line break to every text, as PaliGemma's does."""

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        return super().__call__(images=images, text=[one + "\n" for one in text], **options)


def add_end_token(tokenizer: Any) -> None:
    """Make a tokenizer end every sequence with its end-of-sequence token."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )


@pytest.mark.parametrize("appended", ["end token", "line break", "both"])
def test_what_tokenizer_and_processor_append_is_not_read(
    appended: str, vlm_checkpoint: Callable[[str], str]
) -> None:
    """What follows a token does not change its activation, so the plain processor's are expected."""
    folder, dataset = vlm_checkpoint("llava"), image_dataset()
    expected = capture_with_images(load(folder), dataset)
    vlm = load(folder)
    if appended != "line break":
        add_end_token(vlm.processor.tokenizer)
    if appended != "end token":
        vlm.processor.__class__ = LineBreakProcessor
    inputs, last = vlm.prepare_scoring(["Is it?", "n"], [" yes", "o"], [[], []])
    extra = inputs["attention_mask"].sum(dim=1) - 1 - last
    assert extra.tolist() == 2 * [2 if appended == "both" else 1]
    found = capture_with_images(vlm, dataset, batch_size=4)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_text_sequences_end_with_the_answer_where_the_tokenizer_adds_an_end_token(
    checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    tokenizer = hf.AutoTokenizer.from_pretrained(checkpoint)
    add_end_token(tokenizer)
    tokenizer.save_pretrained(tmp_path / "model")
    options = {"limit": 5, "metadata": {"halueval_path": halueval_folder}}
    plain, ended = (
        load_lm("hf", {"pretrained": folder}, batch_size=4, device="cpu")
        for folder in (checkpoint, str(tmp_path / "model"))
    )
    assert ended.tok_encode("a")[-1] == ended.tokenizer.eos_token_id != plain.tok_encode("a")[-1]
    expected = load_tokenized(plain, ["probe_halueval_qa"], **options).tokens
    assert load_tokenized(ended, ["probe_halueval_qa"], **options).tokens == expected
    alone = ProbeDataset([ProbeExample("", "yes", True, 0)], {}, {})
    assert tokenize(ended, alone).tokens == tokenize(plain, alone).tokens


def test_text_scores_of_a_multimodal_child_equal_those_of_its_base(
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
    sequences = load_tokenized(lm, ["probe_halueval_qa"], **options)
    answers = apply_image_condition(load_text_dataset(["probe_halueval_qa"], **options), NONE)
    of_base = run_probing(lm.model, sequences, name="base")
    of_child = run_image_probing(vlm, answers)
    np.testing.assert_array_equal(of_child.scores, of_base.scores)
    assert of_child.metadata["data_sha256"] == of_base.metadata["data_sha256"]
    black = run_image_probing(vlm, apply_image_condition(answers, BLACK))
    assert black.metadata["image"] == "black" and not np.array_equal(black.scores, of_base.scores)


def image_rows(folder: Path) -> list[dict[str, Any]]:
    """Four questions, no two alike, about two images."""
    return [
        {
            "row": 7 + n, "question_id": n, "image": f"{n % 2}.png", "question": f"Is it {n // 2}?",
            "answer": "no", "choices": ["yes", "no"], "target": 1, "image_path": str(folder / f"{n % 2}.png"),
        }
        for n in range(4)
    ]  # fmt: skip


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data for every probing task, over two pictures."""
    for n in range(2):
        factories_vlm.random_image(n).save(tmp_path / f"{n}.png")
    rows = image_rows(tmp_path)
    files = {"phd": "image", "rlhf_v": "qa", "minimal_pairs": "pairs"}
    for folder, file in files.items():
        write_dataset(tmp_path / folder, {file: rows}, source={})
    write_dataset(tmp_path / "poll", {"random": rows, "probe": rows[:2]}, source={})
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_probing_tasks_give_every_answer_with_its_label_and_image(prepared: Path) -> None:
    instruction = "\nAnswer the question using a single word or phrase."
    for name, data, documents, is_yes_no in [
        ("probe_phd_image", "phd/image", 4, True), ("probe_rlhf_v", "rlhf_v/qa", 4, False),
        ("probe_minimal_pairs", "minimal_pairs/pairs", 4, False), ("probe_poll", "poll/probe", 2, True),
    ]:  # fmt: skip
        plain = load_dataset([name], format="authors")
        assert [item.answer for item in plain.examples] == [" yes", " no"] * documents
        assert {item.context for item in plain.examples} == {f"Is it {n // 2}?" for n in range(documents)}
        answers = load_dataset([name])
        words = [" Yes", " No"] if is_yes_no else [" yes", " no"]
        assert [item.answer for item in answers.examples] == words * documents
        assert [item.context for item in answers.examples] == [
            item.context + instruction * is_yes_no for item in plain.examples
        ]
        assert (answers.bare_questions, plain.bare_questions) == (False, True)
        assert answers.labels.tolist() == [0, 1] * documents
        assert answers.groups.tolist() == [n // 2 for n in range(2 * documents)]
        assert answers.rows == {data: [7 + n for n in range(documents)]}
        last = answers.examples[-1]
        assert last.load_images is not None
        assert last.load_images()[0].tobytes() == factories_vlm.random_image(1).tobytes()
    assert len(load_dataset(["probe_phd_image", "probe_poll"], limit=1)) == 4


def test_groups_of_two_tasks_differ_where_the_first_ends_in_a_repeated_question(prepared: Path) -> None:
    rows = image_rows(prepared)
    for folder, file in (("phd", "image"), ("rlhf_v", "qa")):
        write_dataset(prepared / folder, {file: [*rows, {**rows[0], "row": 20}]}, source={})
    alone = load_dataset(["probe_phd_image"]).groups
    assert alone[-1] == alone[0] == 0  # so the last group is not the one with the highest number
    both = load_dataset(["probe_phd_image", "probe_rlhf_v"]).groups
    np.testing.assert_array_equal(both, [*alone, *(alone + alone.max() + 1)])


@pytest.mark.parametrize("limit", [-3, 0, float("nan")])
def test_a_limit_that_leaves_no_document_is_refused(limit: float, prepared: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    line = {"question_id": 1, "question": "Q", "answer": "x", "label": "gold", "image_path": "a.png"}
    (tmp_path / "lines.jsonl").write_text(4 * (json.dumps(line) + "\n"))
    for load_limited in (
        lambda: load_dataset(["probe_phd_image"], limit=limit),
        lambda: load_text_dataset(["probe_halueval_qa"], limit=limit),
        lambda: load_author_dataset(tmp_path / "lines.jsonl", ImageFolders([tmp_path]), limit=limit),
    ):
        with pytest.raises(TruthGateError, match="expected a number of documents, 1 or more, or a fraction"):
            load_limited()


def test_a_poll_with_nothing_set_aside_is_probed_on_its_random_split(
    prepared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (prepared / "poll" / "probe.parquet").unlink()
    assert list(load_dataset(["probe_poll"]).rows) == ["poll/random"]
    assert "--probe-share" in caplog.text


def test_the_message_names_a_broken_image(prepared: Path, vlm_checkpoint: Callable[[str], str]) -> None:
    (prepared / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"'probe_phd_image', document \d: .*1\.png"):
        capture_with_images(load(vlm_checkpoint("llava")), load_dataset(["probe_phd_image"]))


def test_wrong_tasks_and_models_are_one_line(prepared: Path) -> None:
    with pytest.raises(TaskError, match="no task 'probe_phd_imag': did you mean probe_phd_image"):
        load_dataset(["probe_phd_imag"])
    for name in ("scores", "lam", "yes_offset", "contrast", "contrast_image"):
        with pytest.raises(ModelError, match=f"without a gate and without a contrast: leave {name} out"):
            load_for_probing("vlm", {name: "a.npz"}, device="cpu", chat=False)
    with pytest.raises(ModelError, match="no effect on sequences without a chat template"):
        load_for_probing("vlm", {"pretrained": "x", "chat_template": "t.jinja"}, device="cpu", chat=False)


def test_the_authors_sequences_are_read_with_their_images(tmp_path: Path) -> None:
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
    folders = ImageFolders([images])
    answers = load_author_dataset(file, folders, limit=3)
    assert answers.labels.tolist() == [1, 0, 1] and answers.groups.tolist() == [0, 0, 1]
    with pytest.raises(DataError, match=r"1 images are not in .*c\.png; --allow-missing"):
        load_author_dataset(file, folders)
    left = load_author_dataset(file, folders, allow_missing=True)
    assert len(left) == 3 and left.settings["missing_pictures"] == 1


def test_one_image_with_two_names_is_in_one_group(tmp_path: Path) -> None:
    """Else the same question about it could be on both sides of a split."""
    Image.new("RGB", (4, 4)).save(tmp_path / "COCO_val2014_000000000025.jpg")
    lines = [
        {"question_id": n, "question": "Q", "answer": "x", "label": "gold", "image_path": name}
        for n, name in enumerate(["COCO_val2014_000000000025.jpg", "000000000025.jpg", "25"])
    ]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers = load_author_dataset(tmp_path / "lines.jsonl", ImageFolders([tmp_path]))
    assert answers.groups.tolist() == [0, 0, 0]


def test_equal_names_in_two_tasks_are_other_images(prepared: Path) -> None:
    """A control swaps images by these keys, and takes the image of an equal key."""
    for number, (folder, file) in enumerate((("phd", "image"), ("rlhf_v", "qa"))):
        (prepared / folder / "own").mkdir()
        path = prepared / folder / "own" / "a.png"
        factories_vlm.random_image(number).save(path)
        rows = [{**row, "image": "a.png", "image_path": str(path)} for row in image_rows(prepared)]
        write_dataset(prepared / folder, {file: rows}, source={})
    examples = load_dataset(["probe_phd_image", "probe_rlhf_v"]).examples
    images: dict[Any, set[bytes]] = {}
    for example in examples:
        assert example.load_images is not None
        images.setdefault(example.image_key, set()).add(example.load_images()[0].tobytes())
    assert [len(found) for found in images.values()] == [1, 1]
