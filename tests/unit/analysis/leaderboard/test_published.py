"""The paper's own figures beside measured ones."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from helpers.leaderboards import leaderboard

from truthgate_eval.analysis.leaderboard.formats import as_csv, latex, markdown
from truthgate_eval.analysis.leaderboard.published import data_set_of, published_rows
from truthgate_eval.errors import TruthGateError


def test_tasks_are_matched_with_the_papers_data_sets() -> None:
    assert data_set_of(["pope_gqa_random", "pope_gqa_adversarial", "pope_gqa_popular"]) == "gqa"
    assert data_set_of(["pope_gqa_random"]) is None


def test_rows_are_chosen_by_model() -> None:
    assert published_rows("smollm2") == [] and len(published_rows("x", "all")) == 4 + 12 + 2
    with pytest.raises(TruthGateError, match="the paper has no model 'gpt'"):
        published_rows("x", "gpt")


def test_published_figures_are_the_papers_and_always_marked(runs: dict[str, Path]) -> None:
    made = leaderboard(runs["vanilla"], runs["gated"])
    rows = [row for row in made.task_leaderboards[0].rows if row.origin == "published"]
    assert [row.label for row in rows] == ["vanilla, vicuna-7b", "TruthProbe_LLM, vicuna-7b"]
    assert rows[1].cells["qa"]["f1"].mean == 0.4465 and rows[1].gate == "lam=4.5"
    for text in (markdown(made), latex(made)):
        assert all("published" in line for line in text.splitlines() if "vicuna-7b" in line)
    marked = [line for line in csv.DictReader(io.StringIO(as_csv(made))) if "vicuna-7b" in line["run"]]
    assert marked and {line["origin"] for line in marked} == {"published"}
