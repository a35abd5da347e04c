"""Leaderboards as files: Markdown, CSV, LaTeX and JSON."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import result_files
from helpers.command_line import truthgate
from helpers.leaderboards import BAD, leaderboard

from truthgate_eval.analysis.leaderboard.formats import latex


def test_every_format_has_every_figure_in_place(runs: dict[str, Path], tmp_path: Path) -> None:
    files = {
        kind: tmp_path / f"board.{end}"
        for kind, end in (("markdown", "md"), ("csv", "csv"), ("latex", "tex"), ("json", "json"))
    }
    options = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    done = truthgate("compare", *map(str, runs.values()), *options, "--resamples", "500")
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in ("TruthProbe_LLM", "87.5", "better"))
    saved = json.loads(files["json"].read_text())
    assert saved["baseline"] == "vanilla" and len(saved["runs"]) == 5
    assert saved["boards"][0]["rows"][1]["cells"]["qa"]["acc"]["mean"] == 35 / 40
    table = [
        line.strip("| ").split(" | ")
        for line in files["markdown"].read_text().splitlines()
        if line[:1] == "|"
    ]
    assert table[0][:3] == ["gate", "qa acc", "qa F1"]  # the name of the first column is empty
    [gated] = [row for row in table if row[0] == r"TruthProbe\_LLM"]
    assert gated[2] == "87.5"
    lines = list(csv.DictReader(files["csv"].open()))
    [figure] = [
        row
        for row in lines
        if (row["part"], row["run"], row["quantity"]) == ("qa", "TruthProbe_LLM", "acc difference")
    ]
    assert float(figure["value"]) == 25 / 40 and figure["verdict"] == "better"


def test_json_has_the_keys_that_programs_read(runs: dict[str, Path]) -> None:
    content = leaderboard(runs["vanilla"], runs["gated"]).as_dict()
    assert list(content) == ["schema", "settings", "baseline", "runs", "boards", "warnings"]
    assert list(content["settings"]) == ["correction", "resamples", "seed", "alpha"]
    run_keys = ["name", "label", "kind", "path", "results_file", "host", "model", "gate", "facts"]
    assert list(content["runs"][0]) == run_keys
    [board] = content["boards"]
    assert list(board) == ["name", "parts", "rows", "comparisons"]
    part_keys = ["name", "tasks", "documents", "clusters", "cluster_kind", "metrics"]
    assert list(board["parts"][0]) == part_keys
    assert list(board["rows"][0]) == ["label", "kind", "origin", "gate", "cells"]
    assert list(board["comparisons"][0]) == [
        "part", "name", "questions", "only_run", "only_baseline", "differences", "p", "p_corrected", "verdict",
    ]  # fmt: skip


def test_latex_is_whole_and_escaped(runs: dict[str, Path], tmp_path: Path) -> None:
    odd = result_files.lm_eval_run(
        tmp_path / "odd", {"halueval_qa": BAD, "halueval_dialogue": BAD}, gate=result_files.LLM
    )
    text = latex(leaderboard(runs["vanilla"], (r"50% & [a]_{b}^2 #1 ~ \x $", odd)))
    assert r"50\% \& {[}a]\_\{b\}\textasciicircum{}2 \#1 \textasciitilde{} \textbackslash{}x \$" in text
    blocks = text.split(r"\begin{tabular}{")[1:]
    assert len(blocks) == 2 and text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    for block in blocks:
        width = len(block[: block.index("}")])
        for line in block.splitlines():
            if line.endswith(r"\\"):
                spans = [int(part[0]) - 1 for part in line.split(r"\multicolumn{")[1:]]
                cells = line.replace(r"\&", "").count("&") + 1 + sum(spans)
                assert cells == width, line
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("checked for its form only: no pdflatex here to compile it")
    document = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "t.tex").write_text(document + text + "\n\\end{document}\n")
    done = subprocess.run(
        [program, "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout[-2000:]
