"""Runs of captioning tasks on the leaderboard: CHAIR as ratios of sums, paired, by image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import result_files
from helpers.leaderboards import leaderboard, printed

from truthgate_eval.analysis.leaderboard import formats
from truthgate_eval.analysis.leaderboard.captions import TESTED
from truthgate_eval.analysis.leaderboard.terminal import terminal_tables
from truthgate_eval.analysis.report.collect import ReportConfig, collect
from truthgate_eval.analysis.report.page import render
from truthgate_eval.analysis.runs.methods import make_entries
from truthgate_eval.analysis.runs.run import read_run
from truthgate_eval.errors import DataError
from truthgate_eval.harness.lmms_eval.captions import score_caption
from truthgate_eval.metrics.chair import METRICS, Vocabulary, find_objects, measure

VOCABULARY = Vocabulary.of([["dog"], ["cat"], ["cup"], ["bus"]])
TASK = "chair"


def captions(number: int, *, wrong: Sequence[int] = (), words: int = 0, long: int = 0) -> list[str]:
    """A caption of each image, which has a dog and a cup; those in `wrong` see two buses as well."""
    return [
        "a dog" + " a cup" * (1 + (n < long)) + " a bus a bus" * (n in set(wrong)) + " indeed" * words
        for n in range(number)
    ]


def run(folder: Path, texts: Sequence[str], *, gate: Any = result_files.VANILLA, task: str = TASK) -> Path:
    """A run of lmms-eval with one caption an image, scored by the task's own function."""
    result_files.lmms_eval_run(folder, {task: ["yes"] * len(texts)}, gate=gate, per_image=1)
    file = result_files.only_file(folder, f"*_samples_{task}.jsonl")
    lines = []
    for n, text in enumerate(texts):
        doc = {"image": f"{n:03}.jpg", "objects": ["cup", "dog"]}
        lines.append({
            "doc_id": n, "target": "cup, dog", "filtered_resps": text, "doc_hash": "null's",
            "input": "Describe the image.", "input_media": [f"/pictures/{n:03}.jpg"],
            **score_caption(doc, [text], VOCABULARY),
        })  # fmt: skip
    result_files.write_lines(file, lines)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A vanilla run with 12 of 40 captions wrong, and a gated one with 3, whose captions are longer."""
    return (
        run(tmp_path / "vanilla", captions(40, wrong=range(12))),
        run(tmp_path / "gated", captions(40, wrong=range(3), words=2, long=10), gate=result_files.LLM),
    )


def test_a_sample_is_read_with_its_objects_and_is_right_without_a_made_up_one(
    runs: tuple[Path, Path],
) -> None:
    samples = list(read_run(runs[0]).tasks[TASK].samples.values())
    assert [sample.correct for sample in samples[10:14]] == [False, False, True, True]
    assert samples[0].caption is not None and samples[0].caption.hallucinated == ("bus", "bus")
    assert samples[0].cluster == "000.jpg" and samples[0].cluster_kind == "image"
    assert samples[0].gold == "cup, dog" and not samples[0].is_yes_no


def test_the_figures_are_those_of_the_captions_together(runs: tuple[Path, Path]) -> None:
    [board] = leaderboard(*runs).task_leaderboards
    [part] = board.parts
    assert part.metrics == METRICS and part.clusters == 40 and not board.comparisons
    for row, texts in zip(
        board.rows,
        (captions(40, wrong=range(12)), captions(40, wrong=range(3), words=2, long=10)),
        strict=True,
    ):
        expected = measure([find_objects(text, ["dog", "cup"], VOCABULARY) for text in texts])
        assert {name: cell.mean for name, cell in row.cells[TASK].items()} == pytest.approx(expected)
    [one] = board.captions
    # 24 of 104 mentions were wrong, and 6 of 96 are.
    assert one.tests["chair_i"].difference.value == pytest.approx(6 / 96 - 24 / 104)
    assert one.tests["chair_s"].difference.value == pytest.approx(3 / 40 - 12 / 40)
    assert [one.tests[name].verdict for name in TESTED] == ["better", "better", "no difference"]


def test_the_intervals_draw_images_and_divide_sums(runs: tuple[Path, Path]) -> None:
    """Against a bootstrap that is written out, one resample at a time."""
    [board] = leaderboard(*runs, resamples=400, seed=3).task_leaderboards
    [one] = board.captions
    tables = [
        [find_objects(text, ["dog", "cup"], VOCABULARY) for text in texts]
        for texts in (captions(40, wrong=range(12)), captions(40, wrong=range(3), words=2, long=10))
    ]
    rng = np.random.default_rng(3)
    drawn = []
    for pick in rng.integers(40, size=(400, 40)):
        vanilla, gated = (measure([own[n] for n in pick]) for own in tables)
        drawn.append([gated["chair_i"] - vanilla["chair_i"], gated["length"] - vanilla["length"],
                      vanilla["chair_i"], gated["chair_i"]])  # fmt: skip
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    difference = one.tests["chair_i"].difference
    assert (difference.low, difference.high) == pytest.approx((low[0], high[0]))
    assert (one.length.low, one.length.high) == pytest.approx((low[1], high[1]))
    assert one.intervals["chair_i"][1] == pytest.approx((low[2], high[2]))
    assert one.intervals["chair_i"][0] == pytest.approx((low[3], high[3]))


def test_p_values_are_corrected_within_a_metric_and_a_worse_run_is_called_so(tmp_path: Path) -> None:
    folders = [
        run(tmp_path / "vanilla", captions(40, wrong=range(3))),
        run(tmp_path / "a", captions(40, wrong=range(12)), gate=result_files.LLM),
        run(tmp_path / "b", captions(40, wrong=range(4)), gate=result_files.LLM),
    ]
    made = [leaderboard(*folders, correction=correction) for correction in ("none", "bonferroni")]
    plain, corrected = ([one.tests["chair_i"] for one in own.task_leaderboards[0].captions] for own in made)
    assert [test.p_corrected for test in plain] == [test.p for test in plain]
    assert [test.p_corrected for test in corrected] == [min(1.0, 2 * test.p) for test in plain]
    assert [test.verdict for test in corrected] == ["worse", "no difference"]


def test_every_form_of_the_leaderboard_shows_the_differences(runs: tuple[Path, Path]) -> None:
    made = leaderboard(*runs)
    text = printed(*(table for table in terminal_tables(made)), width=120)
    assert "CHAIRi" in text and "23.1" in text and "6.2" in text  # percent of 24/104 and 6/96
    assert "-16.8" in text and "+1.6" in text  # points; words: 2 + 10 * 2 / 40 - 9 * 4 / 40
    assert all(len(line) <= 80 for line in printed(*terminal_tables(made)).splitlines())
    for content in (formats.markdown(made), formats.latex(made)):
        assert "CHAIRi difference" in content and "-16.8" in content and "words difference" in content
    lines = {line["quantity"]: line for line in csv.DictReader(io.StringIO(formats.as_csv(made)))}
    assert lines["chair_i difference"]["verdict"] == "better"
    assert float(lines["length difference"]["value"]) == pytest.approx(1.6)
    [board] = made.as_dict()["boards"]
    assert board["captions"][0]["tests"]["chair_i"]["verdict"] == "better" and "log_odds" not in board
    json.dumps(made.as_dict(), allow_nan=False)


def test_the_report_shows_the_comparison_and_the_made_up_objects(runs: tuple[Path, Path]) -> None:
    entries = make_entries([(None, read_run(path)) for path in runs])
    content = collect(entries, [], ReportConfig(resamples=100))
    page = render(content)
    assert "By captions, against vanilla" in page and "CHAIRi difference" in page
    first = next(one for one in content["samples"]["documents"] if one["id"] == 0)
    assert [answer["hallucinated"] for answer in first["answers"]] == [["bus"], ["bus"]]
    right = next(one for one in content["samples"]["documents"] if one["id"] == 39)
    assert all("hallucinated" not in answer for answer in right["answers"])


def test_captions_that_mention_nothing_have_no_chair_i(tmp_path: Path) -> None:
    folders = [
        run(tmp_path / "vanilla", ["nothing"] * 30),
        run(tmp_path / "gated", ["nothing"] * 30, gate=result_files.LLM),
    ]
    made = leaderboard(*folders)
    [one] = made.task_leaderboards[0].captions
    assert np.isnan(one.tests["chair_i"].difference.value) and one.tests["chair_i"].verdict == "no difference"
    assert made.as_dict()["boards"][0]["captions"][0]["tests"]["chair_i"]["difference"]["value"] is None
    assert "-" in printed(*terminal_tables(made))


def test_resamples_without_a_mention_are_left_out_of_an_interval(tmp_path: Path) -> None:
    folders = [
        run(tmp_path / "vanilla", ["a bus and a dog", *["nothing"] * 29]),
        run(tmp_path / "gated", ["a dog", *["nothing"] * 29], gate=result_files.LLM),
    ]
    [one] = leaderboard(*folders).task_leaderboards[0].captions
    difference = one.tests["chair_i"].difference
    assert (difference.low, difference.value, difference.high) == (-0.5, -0.5, -0.5)


def test_runs_with_other_names_of_objects_get_a_warning(runs: tuple[Path, Path]) -> None:
    file = result_files.only_file(runs[1], "*_results.json")
    results = json.loads(file.read_text())
    results["configs"][TASK]["metadata"]["objects"] = "1f"
    file.write_text(json.dumps(results))
    assert any(
        "chair: different names of objects: not recorded" in line for line in leaderboard(*runs).warnings
    )


def test_a_damaged_entry_names_the_line(runs: tuple[Path, Path]) -> None:
    file = result_files.only_file(runs[0], "*_samples_chair.jsonl")
    lines = result_files.read_lines(file)
    lines[2]["chair_s"]["mentioned"] = "dog"
    result_files.write_lines(file, lines)
    with pytest.raises(DataError, match=r"line 3 is not a sample"):
        read_run(runs[0])
