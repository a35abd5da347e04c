"""`truthgate study` on tiny models: every kind of score of a text model, and those of a base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import tiny_models as factories
from helpers.command_line import Done, truthgate

from truthgate_eval.attribution.study_scores import STUDY_KINDS
from truthgate_eval.gating.scores import TruthScores


def study(model: str, base: str, data: str, folder: Path, *more: str) -> Done:
    kinds = [part for kind in STUDY_KINDS for part in ("--score", kind)]
    return truthgate(
        "study", "--model_args", f"pretrained={model}", "--tasks", "probe_halueval_qa", "--device", "cpu",
        "--metadata", json.dumps({"halueval_path": data}), "--limit", "30", "--kl", "0.001", "--select", "2",
        "--controls", "1", "--base_args", f"pretrained={base}", "--base_tasks", "base_sums",
        "--include_path", str(folder.parent), "--base_score", "gradient,divergence", "--output", str(folder), *kinds, *more,
    )  # fmt: skip


@pytest.mark.slow
def test_a_study_of_every_kind_and_of_a_bases_scores_goes_on_where_it_was(
    halueval_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_task(tmp_path, "base_sums", range(30))
    model, base = (factories.save_tiny_checkpoint(tmp_path / name) for name in ("model", "base"))
    folder = tmp_path / "study"
    done = study(model, base, halueval_folder, folder)
    assert done.returncode == 0, done.stderr
    content = json.loads((folder / "study.json").read_text())
    (found,) = content["models"].values()
    sources = {row["source"] for row in found["rows"] if not row["is_control"]} | set(found["empty"])
    assert {*STUDY_KINDS, "base gradient, base_sums", "base divergence, base_sums"} <= sources
    assert all(row["divergence"] == pytest.approx(0.001, rel=0.011) for row in found["rows"] if row["target"])
    assert set(found["reliability"]) == set(found["correlations"])
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("*/*")}
    again = study(model, base, halueval_folder, folder)
    assert again.returncode == 0 and json.loads((folder / "study.json").read_text()) == content
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*/*")} == kept
    assert "Traceback" not in done.stdout + done.stderr


def write_task(folder: Path, name: str, numbers: range) -> None:
    """A task about sums."""
    rows = [{"question": f"{n} + {n} =", "right": f" {2 * n}", "wrong": f" {2 * n + 1}"} for n in numbers]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(f"""
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / name}.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["{{{{right}}}}", "{{{{wrong}}}}"]
doc_to_target: 0
target_delimiter: ""
metadata: {{context_field: question}}
""")


@pytest.mark.slow
def test_gates_are_tested_on_tasks_of_their_own(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, numbers in {
        "own_sums": range(12),
        "chosen_sums": range(10, 18),
        "tested_sums": range(8, 24),
    }.items():
        write_task(tmp_path, name, numbers)
    folder = tmp_path / "study"

    def run(*more: str) -> Done:
        return truthgate(
            "study", "--model_args", f"pretrained={checkpoint}", "--device", "cpu", "--score", "gradient",
            "--include_path", str(tmp_path), "--tasks", "own_sums", "--test_tasks", "tested_sums",
            "--action", "soft", "--controls", "0", "--output", str(folder), *more,
        )  # fmt: skip

    done = run("--kl", "0.0005,0.001", "--choose_tasks", "chosen_sums")
    assert done.returncode == 0, done.stderr
    assert "choosing: 2 of 8 documents left out" in done.stdout  # 10 and 11
    assert "test: 10 of 16 documents left out" in done.stdout  # 8 to 17
    assert "scores from 12, strengths chosen on 6, gates tested on 6 documents" in done.stdout
    content = json.loads((folder / "study.json").read_text())
    assert (content["study"]["test tasks"], content["study"]["choose tasks"]) == (
        "tested_sums",
        "chosen_sums",
    )
    (found,) = content["models"].values()
    assert found["vanilla"]["documents"] == 6
    scores = {file: file.stat().st_mtime_ns for file in folder.glob("*/scores-*.npz")}
    assert run("--kl", "0.0005,0.001", "--choose_tasks", "chosen_sums").returncode == 0
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*/scores-*.npz")} == scores
    # Without tasks to choose on, a fifth of the others chooses among several strengths: the number of strengths
    # decides which documents make the scores.
    made = []
    for kl, said in (
        ("0.001", "scores from 12, gates"),
        ("0.0005,0.001", "scores from 10, strengths chosen on 2"),
    ):
        done = run("--kl", kl)
        assert said in done.stdout and "tested on 12 documents" in done.stdout, done.stderr
        (file,) = folder.glob("*/scores-*.npz")
        made.append(TruthScores.load(file).metadata["compared_documents"])
    assert made == [12, 10]


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
        (["--choose_tasks", "a", "--kl", "0.01"], "--choose_tasks a: with one --kl (0.01) no strength is"),
        (["--choose_tasks", "a", "--quick"], "--choose_tasks a: with one --kl (0.01) no strength is"),
        (["--format", "authors"], "--format authors is for tasks with images: text tasks have one format"),
        (
            ["--base_args", "", "--base_tasks", "a", "--base_tasks", "b,probe_halueval_qa"],
            "--base_tasks probe_halueval_qa: --tasks has it, too, and gates are tested or chosen there",
        ),
        (["--test_tasks", "a,probe_halueval_qa"], "--test_tasks probe_halueval_qa: --tasks has it, too"),
        (["--choose_tasks", "b", "--test_tasks", "a,b"], "--test_tasks b: --choose_tasks has it, too"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_loaded(
    options: list[str], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    done = truthgate("study", "--tasks", "probe_halueval_qa", "--output", str(folder), *options)
    assert done.returncode != 0 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not folder.exists()
