"""Runs compared by log-odds: a planted bias, a planted difference, and the figures of every output."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import log_odds_runs, result_files
from helpers.command_line import truthgate
from helpers.leaderboards import BAD, GOOD, leaderboard
from helpers.log_odds_runs import log_odds_values
from scipy.stats import bootstrap
from sklearn.metrics import roc_auc_score

from truthgate_eval.analysis.leaderboard.log_odds import TESTED, bootstrap_p_value
from truthgate_eval.analysis.leaderboard.table import TaskLeaderboard
from truthgate_eval.metrics import log_odds

TASK = "scenes_random_logodds"
BIAS = 1.7
WRITERS = {"lmms-eval": log_odds_runs.lmms_eval_run, "lm-eval": log_odds_runs.lm_eval_run}
OFFSET = {**result_files.VANILLA, "kind": "vanilla", "yes_offset": BIAS}


def only(*runs: Any, **options: Any) -> TaskLeaderboard:
    [task] = leaderboard(*runs, **options).task_leaderboards
    return task


@pytest.mark.parametrize("harness", list(WRITERS))
def test_a_planted_bias_changes_accuracy_and_log_loss_only_and_the_command_says_so(
    harness: str, tmp_path: Path
) -> None:
    write = WRITERS[harness]
    values = log_odds_values()
    vanilla = write(tmp_path / "vanilla", {TASK: values})
    biased = write(tmp_path / "biased", {TASK: values + BIAS}, gate=OFFSET)
    file = tmp_path / "board.json"
    done = truthgate(
        "compare", str(vanilla), f"says yes={biased}", "--json", str(file), "--resamples", "1000"
    )
    assert done.returncode == 0, done.stderr
    [board] = json.loads(file.read_text())["boards"]
    [one] = board["log_odds"]
    [by_accuracy] = board["comparisons"]
    assert by_accuracy["verdict"] == "worse" and by_accuracy["differences"]["acc"]["high"] < 0
    tests = one["tests"]
    assert tests["log_loss"]["verdict"] == "worse" and tests["log_loss"]["difference"]["low"] > 0
    for metric in ("auroc", "acc_at_threshold", "log_loss_offset"):
        assert tests[metric]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}, metric
        assert tests[metric]["p"] == 1.0 and tests[metric]["verdict"] == "no difference"
    assert one["yes_ratio"][0] > one["yes_ratio"][1] + 0.2
    text = " ".join(done.stdout.split())
    assert (
        "says yes against vanilla: accuracy and log-loss changed, and no change was found in AUROC or in the "
        "log-loss with the best yes/no offset: a bias towards yes explains this" in text
    )
    assert "without a better or worse grasp of the questions" in text
    # A run with an offset is no vanilla run, though nothing is gated in it.
    assert [run["kind"] for run in json.loads(file.read_text())["runs"]] == ["vanilla", "other"]


@pytest.mark.parametrize("harness", list(WRITERS))
def test_a_real_difference_is_told_from_a_bias(harness: str, tmp_path: Path) -> None:
    write = WRITERS[harness]
    vanilla = write(tmp_path / "vanilla", {TASK: log_odds_values()})
    better = write(tmp_path / "better", {TASK: log_odds_values(strength=3.0) + BIAS}, gate=result_files.LLM)
    [one] = only(vanilla, ("better", better)).log_odds
    assert one.tests["auroc"].verdict == "better" and one.tests["auroc"].difference.low > 0
    assert (
        one.tests["log_loss_offset"].verdict == "better" and one.tests["log_loss_offset"].difference.high < 0
    )
    assert "tells yes from no better by AUROC" in one.conclusion
    [back] = only(("vanilla", better), ("worse", vanilla), baseline="vanilla").log_odds
    assert back.tests["auroc"].verdict == back.tests["log_loss_offset"].verdict == "worse"
    assert back.tests["auroc"].difference.value == pytest.approx(-one.tests["auroc"].difference.value)


def test_equal_runs_do_not_differ_in_anything(tmp_path: Path) -> None:
    values = log_odds_values()
    runs = [log_odds_runs.lmms_eval_run(tmp_path / name, {TASK: values}) for name in ("a", "b")]
    [one] = only(*runs, baseline="a").log_odds
    assert {test.verdict for test in one.tests.values()} == {"no difference"}
    assert one.conclusion.endswith("no difference was found, with or without a threshold")


def test_flattened_log_odds_change_the_log_loss_and_not_auroc(tmp_path: Path) -> None:
    values = log_odds_values(strength=3.0)
    vanilla = log_odds_runs.lmms_eval_run(tmp_path / "vanilla", {TASK: values})
    flat = log_odds_runs.lmms_eval_run(tmp_path / "flat", {TASK: values / 8}, gate=result_files.LLM)
    [one] = only(vanilla, ("flat", flat)).log_odds
    assert one.tests["auroc"].difference.value == 0 and one.tests["log_loss_offset"].verdict == "worse"
    assert "worse by log-loss, also with the best yes/no offset; AUROC shows no difference" in one.conclusion


def test_the_interval_of_auroc_is_scipys_percentile_bootstrap_over_clusters(tmp_path: Path) -> None:
    first, second = log_odds_values(120), log_odds_values(120, strength=2.0, seed=1)
    is_yes = np.array([gold == "yes" for gold in result_files.golds(120)]).reshape(-1, 4)  # by image
    runs = [
        log_odds_runs.lmms_eval_run(tmp_path / name, {TASK: values})
        for name, values in (("a", first), ("b", second))
    ]
    found = only(*runs, baseline="a", resamples=4000).log_odds[0].tests["auroc"]

    def area(own: np.ndarray, rows: np.ndarray) -> float:
        values, yes = own.reshape(-1, 4)[rows].ravel(), is_yes[rows].ravel()
        gap = values[yes][:, None] - values[~yes]
        return float(((gap > 0) + (gap == 0) / 2).mean())

    def difference(images: np.ndarray) -> float:
        rows = images.astype(int)
        return area(second, rows) - area(first, rows)

    expected = bootstrap(
        (np.arange(30.0),),
        difference,
        n_resamples=4000,
        method="percentile",
        vectorized=False,
        random_state=0,
    ).confidence_interval
    assert found.difference.value == pytest.approx(difference(np.arange(30)), abs=1e-9)
    assert found.difference.low == pytest.approx(expected.low, abs=0.01)
    assert found.difference.high == pytest.approx(expected.high, abs=0.01)


def test_without_a_difference_few_runs_are_called_different(tmp_path: Path) -> None:
    """The share of false alarms of the bootstrap, at a level of 0.05, on pairs of equally good runs."""
    alarms = 0
    for seed in range(40):
        runs = [
            log_odds_runs.lmms_eval_run(
                tmp_path / f"{seed}{name}", {TASK: log_odds_values(160, seed=1000 * k + seed)}
            )
            for k, name in enumerate("ab")
        ]
        test = only(*runs, baseline=f"{seed}a", resamples=400).log_odds[0].tests["auroc"]
        alarms += test.verdict != "no difference"
    assert alarms <= 6  # 2 expected; 7 or more of 40 happen in less than 1 of 200


def test_p_values_are_corrected_within_each_metric(tmp_path: Path) -> None:
    values = log_odds_values()
    names = ("vanilla", "one", "two", "three")
    runs = [
        (name, log_odds_runs.lmms_eval_run(tmp_path / name, {TASK: log_odds_values(seed=seed)}))
        for seed, name in enumerate(names)
    ]
    assert (values == log_odds_values(seed=0)).all()
    compared = only(*runs, baseline="vanilla", correction="bonferroni").log_odds
    for metric in TESTED:
        for one in compared:
            assert one.tests[metric].p_corrected == pytest.approx(min(1.0, 3 * one.tests[metric].p))


def test_the_table_has_all_metrics_of_a_group_and_their_mean(tmp_path: Path) -> None:
    splits = [f"scenes_{split}_logodds" for split in ("random", "popular")]
    groups = {"scenes_logodds": splits}
    values = {task: log_odds_values(seed=n) for n, task in enumerate(splits)}
    vanilla = log_odds_runs.lmms_eval_run(tmp_path / "vanilla", values, groups=groups)
    biased = log_odds_runs.lmms_eval_run(
        tmp_path / "biased", {task: own + BIAS for task, own in values.items()}, groups=groups, gate=OFFSET
    )
    task = only(vanilla, ("biased", biased))
    assert [part.name for part in task.parts] == ["random", "popular", "mean"]
    row = task.rows[0]
    golds = [gold == "yes" for gold in result_files.golds(400)]
    areas = [roc_auc_score(golds, own) for own in values.values()]
    assert [row.cells[name]["auroc"].mean for name in ("random", "popular")] == pytest.approx(areas)
    assert row.cells["mean"]["auroc"].mean == pytest.approx(np.mean(areas))
    assert list(row.cells["mean"]) == ["acc", "f1", *log_odds.METRICS[1:]]
    assert [one.part for one in task.log_odds] == ["random", "popular", "mean"]
    assert all("bias towards yes" in one.conclusion for one in task.log_odds)


def test_every_output_has_the_figures_and_the_conclusion(tmp_path: Path) -> None:
    values = log_odds_values()
    vanilla = log_odds_runs.lmms_eval_run(tmp_path / "vanilla", {TASK: values})
    biased = log_odds_runs.lmms_eval_run(tmp_path / "biased", {TASK: values + BIAS}, gate=OFFSET)
    files = {suffix: tmp_path / f"board.{suffix}" for suffix in ("md", "csv", "tex")}
    done = truthgate(
        "compare", str(vanilla), f"biased={biased}", "--resamples", "200", "--markdown", str(files["md"]),
        "--csv", str(files["csv"]), "--latex", str(files["tex"]),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = tmp_path / "page.html"
    report = truthgate(
        "report", str(vanilla), f"biased={biased}", "--resamples", "200", "--output", str(page)
    )
    assert report.returncode == 0, report.stderr
    texts = {
        "terminal": done.stdout, "html": page.read_text(), "md": files["md"].read_text(), "tex": files["tex"].read_text(),
    }  # fmt: skip
    area = f"{100 * log_odds.auroc(_answers(values)):.1f}"
    loss = f"{log_odds.log_loss(_answers(values)):.3f}"
    for name, text in texts.items():
        assert area in text and loss in text and "AUROC" in text, name
        assert "a bias towards yes explains this" in " ".join(text.split()), name
        assert "log-loss in nats" in text, name
    rows = {
        (row["run"], row["quantity"]): row for row in csv.DictReader(files["csv"].read_text().splitlines())
    }
    assert float(rows["vanilla", "auroc"]["value"]) == pytest.approx(log_odds.auroc(_answers(values)))
    assert float(rows["biased", "auroc difference"]["value"]) == 0.0
    assert rows["biased", "log_loss difference"]["verdict"] == "worse"
    assert "yes (log-odds +" in texts["html"]  # the sample browser
    assert "yes_offset=1.7" in texts["html"] and "yes_offset=1.7" in texts["terminal"]


def _answers(values: np.ndarray) -> list[log_odds.LogOddsAnswer]:
    return [
        {"log_odds": float(value), "gold": gold, "cluster": f"{n // 4:03}.jpg"}
        for n, (value, gold) in enumerate(zip(values, result_files.golds(len(values)), strict=True))
    ]


def test_other_leaderboards_have_no_word_of_log_odds(tmp_path: Path) -> None:
    vanilla = result_files.lm_eval_run(tmp_path / "vanilla", {"halueval_qa": BAD})
    gated = result_files.lm_eval_run(tmp_path / "gated", {"halueval_qa": GOOD}, gate=result_files.LLM)
    file = tmp_path / "board.json"
    done = truthgate("compare", str(vanilla), str(gated), "--json", str(file), "--resamples", "200")
    assert "AUROC" not in done.stdout and "log-loss" not in done.stdout
    [board] = json.loads(file.read_text())["boards"]
    assert list(board) == ["name", "parts", "rows", "comparisons"]


def test_one_right_answer_only_is_not_defined_and_not_an_error(tmp_path: Path) -> None:
    values = log_odds_values(40)
    runs = [log_odds_runs.lmms_eval_run(tmp_path / name, {TASK: values}) for name in ("a", "b")]
    for run in runs:
        file = result_files.only_file(run, "*_samples_*.jsonl")
        lines = [line for line in result_files.read_lines(file) if line["acc"]["gold"] == "yes"]
        result_files.write_lines(file, lines)
        results = result_files.only_file(run, "*_results.json")
        results.write_text(results.read_text().replace('"effective": 40', '"effective": 20'))
    board = tmp_path / "board.json"
    done = truthgate(
        "compare", *map(str, runs), "--baseline", "a", "--json", str(board), "--resamples", "200"
    )
    assert done.returncode == 0, done.stderr
    [found] = json.loads(board.read_text())["boards"]
    assert found["log_odds"][0]["tests"]["auroc"]["difference"]["value"] is None
    assert "NaN" not in board.read_text() and "nan" not in done.stdout


@pytest.mark.parametrize("value", ["high", None, True, float("inf")])
def test_damaged_log_odds_are_named_with_their_line(value: Any, tmp_path: Path) -> None:
    run = log_odds_runs.lmms_eval_run(tmp_path / "a", {TASK: log_odds_values(40)})
    file = result_files.only_file(run, "*_samples_*.jsonl")
    lines = result_files.read_lines(file)
    lines[3]["auroc"]["log_odds"] = value
    result_files.write_lines(file, lines)
    done = truthgate("compare", str(run), str(run), "--baseline", "a")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "line 4 is not a sample" in done.stderr and "log-odds" in done.stderr


def test_the_p_value_is_two_sided() -> None:
    draws = np.random.default_rng(0).normal(1.0, 1.0, 9999)
    expected = 2 * ((draws <= 0).sum() + 1) / 10_000
    assert bootstrap_p_value(draws) == bootstrap_p_value(-draws) == pytest.approx(expected)
