"""What others wrote is shown as text: in a terminal, in Markdown, LaTeX, CSV, in a figure and in HTML."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from pathlib import Path

import pytest
from helpers.hostile import HOSTILE, hostile_run
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from truthgate_eval.analysis.leaderboard.formats import as_csv, latex, markdown
from truthgate_eval.analysis.leaderboard.table import make_leaderboard
from truthgate_eval.analysis.leaderboard.terminal import terminal_tables
from truthgate_eval.analysis.report.collect import ReportConfig, collect
from truthgate_eval.analysis.report.page import render
from truthgate_eval.analysis.runs.methods import make_entries
from truthgate_eval.analysis.runs.run import read_run
from truthgate_eval.cli import console as console_module
from truthgate_eval.cli.console import PlainConsole
from truthgate_eval.errors import TruthGateError, one_line
from truthgate_eval.escaping import (
    csv_value,
    latex_text,
    markdown_text,
    plot_text,
    terminal_text,
    visible,
    visible_values,
)

CONTROLS = {chr(number) for number in (*range(32), *range(0x7F, 0xA0))} - {"\n"}


@pytest.mark.parametrize("name", HOSTILE)
def test_every_output_shows_a_hostile_name_as_text(name: str, tmp_path: Path) -> None:
    task = re.sub(r"[/\\\x00-\x1f\ud800-\udfff]", "", name) or "sums"  # others are refused
    plain = hostile_run(tmp_path / "a", name, [0, 1], task=task)
    gated = hostile_run(tmp_path / "b", name, [2], task=task, gate=True)
    entries = make_entries([(name, read_run(plain)), (None, read_run(gated))])
    leaderboard = make_leaderboard(entries, resamples=20)
    console = PlainConsole(file=io.StringIO(), markup=False, width=200)
    for table in terminal_tables(leaderboard):
        console.print(table)
    outputs = {
        "terminal": console.file.getvalue(),  # type: ignore[attr-defined]
        "markdown": markdown(leaderboard),
        "latex": latex(leaderboard),
        "csv": as_csv(leaderboard),
        "html": render(collect(entries, [], ReportConfig(resamples=20))),
    }
    for kind, text in outputs.items():
        assert not (CONTROLS - {"\t"}) & set(text), kind
        assert "\u202e" not in text and "\u2028" not in text, kind
        text.encode()
    assert "<script>alert" not in outputs["html"] + outputs["markdown"].replace("\\<", "")
    assert "\\input{" not in outputs["latex"]
    for row in csv.reader(io.StringIO(outputs["csv"])):
        assert not any(cell[:1] in "=+@" for cell in row if cell)
        assert not any(cell[:1] == "-" and not cell[1:2].isdigit() for cell in row)
    widths = {
        line.count("|") - line.count("\\|") for line in outputs["markdown"].splitlines() if line[:1] == "|"
    }
    assert len(widths) == 2  # the metrics' table and the comparisons'
    assert "hf_aaaa" not in outputs["html"] and "opensesame" not in outputs["html"]


@given(st.text(st.characters(codec=None), max_size=40))
def test_escaped_text_obeys_no_output(text: str) -> None:
    assert not CONTROLS - {"\t"} & set(visible(text))
    assert not CONTROLS - {"\t", "\v"} & set(terminal_text(text))
    for escaped in (markdown_text(text), latex_text(text), str(csv_value(text))):
        escaped.encode()
        assert len(escaped.splitlines()) <= 1
    assert not str(csv_value(text)).lstrip(" ").startswith(("=", "+", "-", "@"))
    unescaped = latex_text(text).replace("$\\pm$", "").replace("$-$", "")
    assert all(unescaped[n - 1 : n] == "\\" for n, sign in enumerate(unescaped) if sign in "&%$#_")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_figure_takes_a_hostile_name_for_no_formula(name: str) -> None:
    figure = Figure()
    figure.subplots().set_title(plot_text(name))
    figure.savefig(io.BytesIO(), format="png", dpi=20)


def test_usual_text_stays_as_it_is() -> None:
    text = "vicuna-7b-v1.5, lam=4.5 (kl:0.05): 86.9 ± 0.2, ß, 猫, 👩‍🚀\n\tb"
    assert visible(text) == terminal_text(text) == text
    assert csv_value("TruthProbe_LLM") == "TruthProbe_LLM" and csv_value(-0.5) == -0.5


def test_values_of_json_are_cleaned_at_any_depth() -> None:
    assert visible_values({"a\x1b": ["\x07", {"b": ("\x00", 1, None)}]}) == {
        "a\\x1b": ["\\x07", {"b": ["\\x00", 1, None]}]
    }


def test_lines_logs_and_errors_are_printed_as_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = PlainConsole(markup=False)
    monkeypatch.setattr(console_module, "console", console)
    console_module.print_line("\x1b[31m [/red] -> file")
    formatter = console_module._VisibleFormatter("%(message)s")
    line = formatter.format(logging.makeLogRecord({"msg": "task %s", "args": ("\x1b[2J",)}))
    assert capsys.readouterr().out == "\\x1b[31m [/red] -> file\n"
    assert line == "task \\x1b[2J"
    assert one_line(TruthGateError("no task \x1b[2J\nhere")) == "no task \\x1b[2J here"
    assert "\x1b" not in json.dumps({"name": "\x1b"})


def test_an_errors_line_is_not_longer_than_a_few_lines_of_a_terminal() -> None:
    line = one_line(TruthGateError("begins " + "\x1b" * 50_000 + " ends"))
    assert len(line) == 2005 and line.startswith(r"begins \x1b") and line.endswith(r"\x1b ends")
    assert one_line(TruthGateError("short")) == "short"
