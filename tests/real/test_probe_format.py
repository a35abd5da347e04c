"""The packaged child, probed in the words in which it was trained and is evaluated, and in others."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command_line import truthgate

from truthgate_eval.gating.scores import TruthScores

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.parametrize(("more", "words"), [((), "Yes, No"), (("--format", "authors"), "yes, no")])
def test_the_plain_format_is_warned_of_and_the_childs_own_is_not(
    more: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    done = truthgate(
        "probe", "--model", "vlm", "--model_args", "dtype=bfloat16", "--tasks", "probe_scenes", "--limit", "24",
        "--device", "cpu", "--solver", "newton", "--output", "a.npz", *more, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    own = TruthScores.load(tmp_path / "a.npz").metadata["own_answers"]
    warnings = [line for line in done.stdout.splitlines() if line.startswith("warning: the model would say")]
    shown = truthgate("show", "a.npz", cwd=tmp_path).stdout
    assert f"answers {words}" in shown
    if more:
        [warning] = warnings
        assert 'the probed answers " yes" and " no" in' in warning and '" Yes" and " No" in' in warning
        assert warning in shown
    else:
        assert not warnings and "warning: the model would say" not in shown
        assert own["accuracy"] > 0.9
