"""The words in which a vision-language model is probed are those in which it is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_vision_models as factories_vlm
from helpers.command_line import truthgate

from truthgate_eval.data.store import write_dataset
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.metrics.pope import SPLITS
from truthgate_eval.vision.question_engine import ImageQuestionEngine


@pytest.fixture
def polls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Polls of twelve questions about six images; those for probing are the same as those of the splits."""
    rows = []
    for number in range(12):
        image = tmp_path / f"{number // 2}.png"
        factories_vlm.random_image(number // 2).save(image)
        rows.append(
            {
                "question_id": number, "image": image.name, "question": f"Is there a thing {number}?",
                "answer": "yes" if number % 4 in (0, 3) else "no", "image_path": str(image), "row": number,
            }
        )  # fmt: skip
    write_dataset(tmp_path / "data" / "poll", dict.fromkeys((*SPLITS, "probe"), rows), source={})
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def evaluated(vlm_folder: str, monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, ...]]:
    """Token ids of the prompts of `lmms_eval --model gated_vlm --tasks poll_random`."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    found: set[tuple[int, ...]] = set()
    original = ImageQuestionEngine.generate

    def generate(self: ImageQuestionEngine, prompts: Any, **options: Any) -> Any:
        for prompt in prompts:
            inputs = self.vlm.encode([prompt.prompt], [prompt.load_images()])
            found.add(tuple(inputs["input_ids"][0].tolist()))
        return original(self, prompts, **options)

    monkeypatch.setattr(ImageQuestionEngine, "generate", generate)
    simple_evaluate(
        model="gated_vlm", model_args=f"pretrained={vlm_folder},dtype=float32,device=cpu,scores=none",
        tasks=["poll_random"], batch_size="4", task_manager=TaskManager(), log_samples=False,
    )  # fmt: skip
    return found


def probed(
    arguments: tuple[str, ...], folder: str, monkeypatch: pytest.MonkeyPatch, cwd: Path
) -> tuple[TruthScores, set[tuple[int, ...]]]:
    """`truthgate probe --tasks probe_poll`, and the token ids that run through the model, without padding."""
    found: set[tuple[int, ...]] = set()
    original = ImageQuestionEngine.sequences

    def sequences(self: ImageQuestionEngine, prompts: Any, **options: Any) -> Any:
        for prompt in prompts:
            inputs, last = self.vlm.prepare_scoring([prompt.prompt], [prompt.answer], [prompt.load_images()])
            found.add(tuple(inputs["input_ids"][0, : int(last[0]) + 1].tolist()))
        return original(self, prompts, **options)

    monkeypatch.setattr(ImageQuestionEngine, "sequences", sequences)
    done = truthgate(
        "probe", "--model", "vlm", "--model_args", f"pretrained={folder},dtype=float32", "--device", "cpu",
        "--solver", "newton", "--output", "a.npz", *arguments, cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return TruthScores.load(cwd / "a.npz"), found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_probed_tokens_are_the_evaluated_ones_and_an_answer_word(
    name: str, polls: Path, vlm_checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = vlm_checkpoint(name)
    prompts = evaluated(folder, monkeypatch)
    scores, sequences = probed(("--tasks", "probe_poll"), folder, monkeypatch, polls)
    words = scores.metadata["answer_words"]
    assert words == ["Yes", "No"]
    assert scores.metadata["format"] == "task" and scores.metadata["chat_template"] is True
    from truthgate_eval.harness.lmms_eval.probing import load_for_probing

    vlm = load_for_probing("vlm", {"pretrained": folder, "dtype": "float32"}, device="cpu", chat=True)
    space = (
        " " if name == "llava" else ""
    )  # LLaVA's template ends with `ASSISTANT:`, Qwen's with a line break
    answers = [
        tuple(vlm.processor.tokenizer(space + word, add_special_tokens=False)["input_ids"]) for word in words
    ]
    assert len(prompts) == 12 and sequences == {prompt + answer for prompt in prompts for answer in answers}


@pytest.mark.slow
def test_the_authors_format_is_one_flag_away_and_the_artifact_says_which(
    polls: Path, vlm_checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = vlm_checkpoint("llava")
    scores, sequences = probed(("--tasks", "probe_poll", "--format", "authors"), folder, monkeypatch, polls)
    from truthgate_eval.harness.lmms_eval.probing import load_for_probing

    vlm = load_for_probing("vlm", {"pretrained": folder, "dtype": "float32"}, device="cpu", chat=False)
    texts = {vlm.processor.tokenizer.decode(row) for row in sequences}
    assert any(text.endswith("\nIs there a thing 2?\nASSISTANT: yes") for text in texts)
    assert not any("Answer the question" in text or "USER" in text for text in texts)
    metadata = scores.metadata
    assert metadata["format"] == "authors" and metadata["chat_template"] is False
    assert metadata["answer_words"] == ["yes", "no"]
    own = metadata["own_answers"]
    assert own["documents"] == 12 and 0 <= own["accuracy"] <= 1 and own["log_probability"] < 0
    assert [one["answers"] for one in own["spellings"] if one.get("probed")] == [[" yes", " no"]]
    shown = truthgate("show", "a.npz", cwd=polls)
    assert "the authors' plain one; answers yes, no" in shown.stdout
    assert "% right on 12 documents" in shown.stdout and "within layers" in shown.stdout
    assert 'warning: the model would say the probed answers " yes" and " no" in' in shown.stdout


@pytest.mark.slow
def test_a_task_that_has_yes_or_no_written_loses_its_instruction_in_the_authors_format(polls: Path) -> None:
    from truthgate_eval.harness.lmms_eval.probing import load_dataset

    plain, probing = (load_dataset([name], format="authors") for name in ("poll_random", "probe_poll"))
    assert plain.fingerprint == probing.fingerprint
    assert plain.settings["yes_no_answers"] == {"poll_random": ["yes", "no"]}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--format", "author"), "unknown --format 'author': expected one of task, authors"),
        (
            ("--model", "hf", "--model_args", "pretrained=no/such-model", "--format", "authors"),
            "--format authors is for tasks with images: text tasks have one format",
        ),
        (("--format", "authors", "--apply_chat_template"), "--format authors has no chat template: leave"),
    ],
)
def test_a_mistake_is_one_line(more: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = truthgate(
        "probe", "--model", "vlm", "--tasks", "probe_poll", "--output", "a.npz", *more, cwd=tmp_path
    )
    assert done.returncode == 1 and message in done.stderr and not list(tmp_path.iterdir())
