"""Leaderboards: rows, metrics, paired comparisons, groups of tasks and filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import result_files
from helpers.leaderboards import BAD, GOLDS, GOOD, leaderboard

from truthgate_eval.metrics import yes_no


def test_a_leaderboard_has_the_papers_rows_and_the_metrics_of_yes_no(runs: dict[str, Path]) -> None:
    made = leaderboard(*reversed(runs.values()), published="none")
    [halueval] = made.task_leaderboards
    assert [row.label for row in halueval.rows] == ["vanilla", "TruthProbe_LLM", "random"]
    assert [part.name for part in halueval.parts] == ["qa", "dialogue", "mean"]
    assert (made.baseline.name, halueval.parts[0].documents, halueval.parts[0].clusters) == (
        "vanilla",
        40,
        40,
    )
    pairs = list(zip(GOLDS, GOOD, strict=True))
    cells = halueval.rows[1].cells["qa"]
    for name in ("f1", "precision", "recall"):
        assert cells[name].mean == pytest.approx(getattr(yes_no, name)(pairs))
    assert cells["acc"].mean == 35 / 40
    assert halueval.rows[1].cells["mean"]["acc"].mean == pytest.approx((35 + 10) / 80)
    random = halueval.rows[2].cells["qa"]["acc"]
    shares = [5 / 40, 6 / 40, 7 / 40]
    assert (random.mean, random.sd, random.runs) == (pytest.approx(np.mean(shares)), pytest.approx(1 / 40), 3)


def test_a_planted_difference_is_found_and_an_equal_run_is_no_different(runs: dict[str, Path]) -> None:
    made = leaderboard(runs["vanilla"], runs["gated"])
    verdicts = {one.part: one.verdict for one in made.task_leaderboards[0].comparisons}
    assert verdicts == {"qa": "better", "dialogue": "no difference", "mean": "better"}
    qa = made.task_leaderboards[0].comparisons[0]
    assert (qa.questions, qa.only_run, qa.only_baseline) == (40, 25, 0)
    accuracy = qa.differences["acc"]
    assert accuracy.value == pytest.approx(25 / 40) and 0.4 < accuracy.low < 25 / 40 < accuracy.high < 0.8
    assert qa.p == pytest.approx(2 * 0.5**25) and qa.p_corrected == pytest.approx(3 * qa.p)
    back = (
        leaderboard(runs["vanilla"], runs["gated"], baseline="TruthProbe_LLM")
        .task_leaderboards[0]
        .comparisons[0]
    )
    assert back.verdict == "worse" and back.differences["acc"].value == -accuracy.value


def test_documents_about_one_image_do_not_count_as_independent(tmp_path: Path) -> None:
    # The whole gain is on two of ten images: much for 20 independent documents, little for 2 images.
    bad = result_files.answers(result_files.golds(100), range(0, 18))
    base = result_files.lmms_eval_run(tmp_path / "a", {"poll_random": bad}, per_image=10)
    best = result_files.lmms_eval_run(
        tmp_path / "b", {"poll_random": result_files.golds(100)}, gate=result_files.LLM, per_image=10
    )
    made = leaderboard(base, best, correction="none")
    [one] = made.task_leaderboards[0].comparisons
    assert made.task_leaderboards[0].parts[0].clusters == 10 and one.p < 0.001
    assert one.differences["acc"].low == 0 and one.verdict == "no difference"
    assert "poll_random: intervals from so few images (10) are too narrow" in made.warnings


def test_a_question_of_three_splits_counts_once_in_mcnemars_test(tmp_path: Path) -> None:
    tasks = {f"pope_coco_{split}": BAD for split in ("random", "popular", "adversarial")}
    better = dict.fromkeys(tasks, GOOD)
    groups = {"pope_coco": list(tasks)}
    base = result_files.lmms_eval_run(tmp_path / "a", tasks, groups=groups)
    gated = result_files.lmms_eval_run(tmp_path / "b", better, groups=groups, gate=result_files.LLM)
    made = leaderboard(base, gated)
    mean = made.task_leaderboards[0].comparisons[-1]
    # 20 yes questions that the splits share, and 20 no questions that each split has of its own.
    assert (mean.part, mean.questions) == ("mean", 20 + 3 * 20)
    [paper, *_] = [row for row in made.task_leaderboards[0].rows if row.origin == "published"]
    assert list(paper.cells) == ["mean"] and paper.cells["mean"]["acc"].mean == 0.869


def test_the_sources_of_pope_are_one_leaderboard_as_in_the_paper(tmp_path: Path) -> None:
    splits = ("random", "popular", "adversarial")
    groups = {f"pope_{s}": [f"pope_{s}_{split}" for split in splits] for s in ("coco", "gqa")}
    tasks = {task: BAD for members in groups.values() for task in members}
    made = leaderboard(*(result_files.lmms_eval_run(tmp_path / name, tasks, groups=groups) for name in "ab"))
    [pope] = made.task_leaderboards
    assert (pope.name, [part.name for part in pope.parts]) == ("pope_all", ["coco", "gqa", "mean"])
    published = [row for row in pope.rows if row.origin == "published"]
    assert [row.method for row in published] == ["vanilla", "llm", "mllm", "random"]
    assert published[3].cells["gqa"]["acc"].sd == 0.0028


def test_documents_are_matched_by_content_and_not_by_number(tmp_path: Path) -> None:
    one = result_files.lm_eval_run(tmp_path / "one", {"halueval_qa": GOOD})
    two = result_files.lm_eval_run(tmp_path / "two", {"halueval_qa": GOOD}, gate=result_files.LLM)
    file = result_files.only_file(two, "samples_*")
    lines = [{**line, "doc_id": 7 + line["doc_id"]} for line in result_files.read_lines(file)]
    result_files.write_lines(file, lines[::-1])
    [comparison] = leaderboard(one, two).task_leaderboards[0].comparisons
    assert (comparison.only_run, comparison.only_baseline) == (0, 0)


def test_filters_of_a_task_in_a_group_are_parts_and_are_not_averaged(tmp_path: Path) -> None:
    """Two tasks of 40 documents, right on 20 of `one`; `two` is read by a strict and a loose filter.

    The gated run's answers to `two` are the baseline's, so every difference is 0 there, under both filters.
    """
    half = result_files.answers(GOLDS, range(20))
    strict, loose = BAD, GOOD  # 10 and 35 of 40 right
    groups = {"both": ["one", "two"]}
    paths = [
        result_files.lm_eval_run(
            tmp_path / name, {"one": one, "two": {"strict": strict, "loose": loose}}, gate=gate, groups=groups
        )
        for name, one, gate in (("vanilla", half, result_files.VANILLA), ("gated", GOLDS, result_files.LLM))
    ]
    [made] = leaderboard(*paths, published="none").task_leaderboards
    tasks = {part.name: part.tasks for part in made.parts}
    assert tasks == {
        "one": ("one",),
        "two,strict": ("two,strict",),
        "two,loose": ("two,loose",),
        "mean,strict": ("one", "two,strict"),
        "mean,loose": ("one", "two,loose"),
    }
    assert [part.documents for part in made.parts] == [40, 40, 40, 80, 80]
    accuracy = [{part: cells["acc"].mean for part, cells in row.cells.items()} for row in made.rows]
    assert accuracy == [
        {"one": 0.5, "two,strict": 0.25, "two,loose": 0.875, "mean,strict": 0.375, "mean,loose": 0.6875},
        {"one": 1.0, "two,strict": 0.25, "two,loose": 0.875, "mean,strict": 0.625, "mean,loose": 0.9375},
    ]
    found = {
        one.part: (one.questions, one.only_run, one.only_baseline, one.differences["acc"].value)
        for one in made.comparisons
    }
    assert found == {
        "one": (40, 20, 0, 0.5),
        "two,strict": (40, 0, 0, 0.0),
        "two,loose": (40, 0, 0, 0.0),
        "mean,strict": (80, 20, 0, 0.25),
        "mean,loose": (80, 20, 0, 0.25),
    }


def test_a_filter_that_gains_alone_is_not_hidden_by_the_other(tmp_path: Path) -> None:
    """The loose filter reads the same answers in both runs, and the strict one gains 20 documents."""
    half = result_files.answers(GOLDS, range(20))
    paths = [
        result_files.lm_eval_run(
            tmp_path / name,
            {"one": GOLDS, "two": {"strict": strict, "loose": GOLDS}},
            gate=gate,
            groups={"both": ["one", "two"]},
        )
        for name, strict, gate in (
            ("vanilla", half, result_files.VANILLA),
            ("gated", GOLDS, result_files.LLM),
        )
    ]
    [made] = leaderboard(*paths).task_leaderboards
    # As one part, `two` gained 25 points with 0 questions gained: the last filter's verdicts were compared.
    for one in made.comparisons:
        assert (one.differences["acc"].value > 0) == (one.only_run > 0), one.part
    strict_mean = next(one for one in made.comparisons if one.part == "mean,strict")
    assert (strict_mean.differences["acc"].value, strict_mean.only_run) == (0.25, 20)
