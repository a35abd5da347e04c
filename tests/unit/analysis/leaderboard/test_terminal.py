"""Leaderboards in a terminal of 80 columns."""

from __future__ import annotations

from pathlib import Path

from helpers import result_files
from helpers.leaderboards import BAD, GOOD, leaderboard, printed

from truthgate_eval.analysis.leaderboard.terminal import terminal_tables


def test_in_80_columns_no_figure_is_cut(runs: dict[str, Path]) -> None:
    text = printed(*terminal_tables(leaderboard(*runs.values())))
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "15.0 ± 2.5" in text and "TruthProbe_LLM" in text and "+62.5" in text
    assert text.count("difference") == text.count(" no ") > 0


def test_in_80_columns_no_name_is_broken_inside_a_word(runs: dict[str, Path], tmp_path: Path) -> None:
    groups = {"halueval": ["halueval_qa", "halueval_dialogue"]}
    tasks = {"halueval_qa": GOOD, "halueval_dialogue": BAD}
    probed = {"probed": {"model": "lmsys/vicuna-7b-v1.5"}}
    names = ("TruthProbe_MLLM", "scenes-text-pre-post", "shuffled_scores within-layers")
    others = [
        (
            name,
            result_files.lm_eval_run(tmp_path / name, tasks, gate=result_files.LLM | probed, groups=groups),
        )
        for name in names
    ]
    for table in terminal_tables(leaderboard(runs["vanilla"], *others)):
        text = printed(table)
        assert max(map(len, text.splitlines())) <= 80
        assert text.count("  TruthProbe_MLLM ") >= 3  # once in each part, in one piece
        for words in (("scenes-", "text-", "pre-", "post"), ("shuffled_", "scores", "within-", "layers")):
            assert all(text.count(word) >= 3 for word in words), words


def test_a_wide_terminal_shows_one_line_per_comparison(runs: dict[str, Path]) -> None:
    [_, table] = terminal_tables(leaderboard(runs["vanilla"], runs["random-2"]))
    [line] = [line for line in printed(table, width=160).splitlines() if "-7.5 [-20.0, +5.0]" in line]
    assert "random:2" in line and "no difference" in line
