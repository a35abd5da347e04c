"""Which runs can be compared, and the warnings about what differs between them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import result_files
from helpers.leaderboards import BAD, GOOD, leaderboard

from truthgate_eval.analysis.runs.results_files import RunError


def test_runs_with_different_documents_are_refused_with_the_documents_named(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    other = result_files.lm_eval_run(
        tmp_path / "other", {"halueval_qa": GOOD}, gate=result_files.LLM, first=100
    )
    with pytest.raises(
        RunError, match=r"only .*vanilla has document 0 \(.*\), 1 .*, 2 .* and 37 more; only .*other"
    ):
        leaderboard(runs["vanilla"], other)


def test_other_differences_between_runs_are_warnings(tmp_path: Path) -> None:
    one = result_files.lm_eval_run(tmp_path / "one", {"halueval_qa": GOOD, "extra": GOOD})
    two = result_files.lm_eval_run(
        tmp_path / "two", {"halueval_qa": GOOD}, gate=result_files.LLM, prompt="Really?", model_dtype="torch.bfloat16",
        batch_size=8,
    )  # fmt: skip
    file = result_files.only_file(two, "results_*")
    results = json.loads(file.read_text())
    results |= {"chat_template_sha": "abc", "transformers_version": "4.9", "n-shot": {"halueval_qa": 2}}
    results |= {"system_instruction": "Be brief.", "lm_eval_version": "0.4.9", "pretty_env_info": ""}
    file.write_text(json.dumps(results))
    warnings = leaderboard(one, two).warnings
    for expected in (
        "TruthProbe_LLM has no extra: not compared with vanilla there",
        "different dtype: torch.float32 (vanilla), torch.bfloat16 (TruthProbe_LLM)",
        "different batch size: 1 (vanilla), 8 (TruthProbe_LLM)",
        "different chat template: not recorded (vanilla), abc (TruthProbe_LLM)",
        "different system instruction: not recorded (vanilla), Be brief. (TruthProbe_LLM)",
        "different lm-eval version: 0.4.13 (vanilla), 0.4.9 (TruthProbe_LLM)",
        "different transformers version: 5.23.0 (vanilla), 4.9 (TruthProbe_LLM)",
        "different torch version: 2.15.0+cu132 (vanilla), not recorded (TruthProbe_LLM)",
        "halueval_qa: different few-shot examples: 0 (vanilla), 2 (TruthProbe_LLM)",
        "halueval_qa: the prompt differs in 40 of 40 documents between vanilla and TruthProbe_LLM",
    ):
        assert expected in warnings
    assert leaderboard(
        one, ("same", result_files.lm_eval_run(tmp_path / "c", {"halueval_qa": BAD, "extra": BAD}))
    ).warnings == ["several vanilla runs: vanilla, the first given, is the baseline"]


def test_many_unparsed_answers_are_a_warning(tmp_path: Path) -> None:
    mute = result_files.lmms_eval_run(
        tmp_path / "mute", {"poll_random": [None] * 40}, gate=result_files.random(1), per_image=1
    )
    made = leaderboard(result_files.lmms_eval_run(tmp_path / "v", {"poll_random": GOOD}, per_image=1), mute)
    assert made.warnings == ["random:1: answers that say neither yes nor no, or both: 100% of poll_random"]


def instructed(folder: Path, text: str, gate: dict[str, object]) -> Path:
    """A run of lm-eval with a system instruction, which changes every prompt."""
    result_files.lm_eval_run(folder, {"halueval_qa": GOOD}, gate=gate, prompt=f"{text}\n\nIs it so?")
    file = result_files.only_file(folder, "results_*")
    file.write_text(json.dumps({**json.loads(file.read_text()), "system_instruction": text}))
    return folder


def test_a_prompt_baseline_is_compared_on_the_same_documents_without_a_warning(tmp_path: Path) -> None:
    vanilla = result_files.lm_eval_run(tmp_path / "vanilla", {"halueval_qa": BAD})
    prompt = instructed(tmp_path / "prompt", "Be brief.", result_files.VANILLA)
    other = instructed(tmp_path / "other", "Be careful.", result_files.VANILLA)
    gated = result_files.lm_eval_run(tmp_path / "gated", {"halueval_qa": GOOD}, gate=result_files.LLM)
    made = leaderboard(vanilla, prompt, other, gated)
    assert made.warnings == []
    compared = {one.name: one for one in made.task_leaderboards[0].comparisons}
    brief = compared['system instruction "Be brief."']
    assert (brief.questions, brief.only_run, brief.only_baseline) == (40, 25, 0) and brief.verdict == "better"
    labels = [row.label for row in made.task_leaderboards[0].rows if row.origin == "measured"]
    assert labels == [
        "vanilla", "TruthProbe_LLM", 'system instruction "Be brief."', 'system instruction "Be careful."',
    ]  # fmt: skip
    # A prompt as the baseline: the gate against it, and one prompt against another.
    assert (
        leaderboard(vanilla, prompt, other, gated, baseline='system instruction "Be brief."').warnings == []
    )


def test_gated_runs_with_different_prompts_are_still_warned_about(tmp_path: Path) -> None:
    vanilla = result_files.lm_eval_run(tmp_path / "vanilla", {"halueval_qa": BAD})
    prompt = instructed(tmp_path / "prompt", "Be brief.", result_files.VANILLA)
    one = result_files.lm_eval_run(tmp_path / "one", {"halueval_qa": GOOD}, gate=result_files.LLM)
    two = instructed(tmp_path / "two", "Be brief.", {**result_files.LLM, "lam": 2.0})
    expected = [
        "different system instruction: not recorded ({0}), Be brief. ({1})",
        "halueval_qa: the prompt differs in 40 of 40 documents between {0} and {1}",
    ]
    names = ("TruthProbe_LLM (one)", "TruthProbe_LLM (two)")
    warnings = leaderboard(one, two, baseline=names[0]).warnings
    assert warnings == [line.format(*names) for line in expected]
    # A prompt baseline is not compared with a gate alone where the gated run has another prompt.
    careful = instructed(tmp_path / "careful", "Be careful.", result_files.LLM)
    brief = 'system instruction "Be brief."'
    warnings = leaderboard(vanilla, prompt, careful, baseline=brief).warnings
    assert f"different system instruction: Be brief. ({brief}), Be careful. (TruthProbe_LLM)" in warnings
    # Beside a prompt baseline, the gated run with the instruction is compared with the vanilla run all the same.
    warnings = leaderboard(vanilla, prompt, two).warnings
    assert warnings == [line.format("vanilla", "TruthProbe_LLM") for line in expected]
