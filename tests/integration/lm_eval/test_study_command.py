"""`truthgate study` on tiny models: every kind of score of a text model, and those of a base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import tiny_models as factories
from helpers.command_line import Done, truthgate

from truthgate_eval.attribution.study_scores import STUDY_KINDS


def study(model: str, base: str, data: str, folder: Path, *more: str) -> Done:
    kinds = [part for kind in STUDY_KINDS for part in ("--score", kind)]
    return truthgate(
        "study", "--model_args", f"pretrained={model}", "--tasks", "probe_halueval_qa", "--device", "cpu",
        "--metadata", json.dumps({"halueval_path": data}), "--limit", "30", "--kl", "0.001", "--select", "2",
        "--controls", "1", "--base_args", f"pretrained={base}", "--base_tasks", "probe_halueval_qa",
        "--base_score", "gradient,divergence", "--output", str(folder), *kinds, *more,
    )  # fmt: skip


@pytest.mark.slow
def test_a_study_of_every_kind_and_of_a_bases_scores_goes_on_where_it_was(
    halueval_folder: str, tmp_path: Path
) -> None:
    model, base = (factories.save_tiny_checkpoint(tmp_path / name) for name in ("model", "base"))
    folder = tmp_path / "study"
    done = study(model, base, halueval_folder, folder)
    assert done.returncode == 0, done.stderr
    content = json.loads((folder / "study.json").read_text())
    (found,) = content["models"].values()
    sources = {row["source"] for row in found["rows"] if not row["is_control"]} | set(found["empty"])
    assert {*STUDY_KINDS, "base gradient, probe_halueval_qa", "base divergence, probe_halueval_qa"} <= sources
    assert all(row["divergence"] == pytest.approx(0.001, rel=0.011) for row in found["rows"] if row["target"])
    assert set(found["reliability"]) == set(found["correlations"])
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("*/*")}
    again = study(model, base, halueval_folder, folder)
    assert again.returncode == 0 and json.loads((folder / "study.json").read_text()) == content
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*/*")} == kept
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--score", "nonsense"], "--score nonsense: expected one of"),
        (["--kl", "0"], "--kl 0: expected positive numbers"),
        (["--kl", "few"], "--kl few: expected positive numbers"),
        (["--action", "shout"], "--action"),
        (["--base_args", "pretrained=x"], "--base_args and --base_tasks belong together"),
        (["--metadata", "[]"], "--metadata must be a JSON object"),
        (["--limit", "-3"], "--limit"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_loaded(
    options: list[str], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    done = truthgate("study", "--tasks", "probe_halueval_qa", "--output", str(folder), *options)
    assert done.returncode != 0 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not folder.exists()
