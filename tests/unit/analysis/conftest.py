"""Runs that tests of leaderboards share."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import result_files
from helpers.leaderboards import BAD, GOLDS, GOOD


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """A bad vanilla run, a good gated one, and three random gates, on two tasks of HaluEval."""
    worse = [result_files.answers(GOLDS, range(35 - seed)) for seed in range(3)]
    made = {"vanilla": (BAD, result_files.VANILLA), "gated": (GOOD, result_files.LLM)}
    made |= {f"random-{seed}": (worse[seed], result_files.random(seed)) for seed in range(3)}
    return {
        name: result_files.lm_eval_run(
            tmp_path / name,
            {"halueval_qa": parsed, "halueval_dialogue": BAD},
            gate=gate,
            groups={"halueval": ["halueval_qa", "halueval_dialogue"]},
        )
        for name, (parsed, gate) in made.items()
    }
