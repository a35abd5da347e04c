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
