"""`truthgate compare` as a command: exit status, output and files."""

from __future__ import annotations

import shutil
from pathlib import Path

from helpers import result_files
from helpers.command_line import truthgate
from helpers.leaderboards import BAD, GOOD


def test_two_runs_of_the_same_thing_do_not_differ(tmp_path: Path) -> None:
    parsed = {"halueval_qa": GOOD, "halueval_dialogue": BAD}
    groups = {"halueval": list(parsed)}
    gated = result_files.lm_eval_run(tmp_path / "gated", parsed, gate=result_files.LLM, groups=groups)
    again = shutil.copytree(gated, tmp_path / "again")
    done = truthgate("compare", str(gated), str(again), "--baseline", "gated")
    assert done.returncode == 0 and done.stdout.count("no difference") == 3
    assert "better" not in done.stdout and "worse" not in done.stdout


def test_a_missing_document_is_named_in_one_line(tmp_path: Path) -> None:
    vanilla = result_files.lm_eval_run(tmp_path / "vanilla", {"halueval_qa": BAD})
    short = result_files.lm_eval_run(tmp_path / "short", {"halueval_qa": GOOD[:-1]}, gate=result_files.LLM)
    done = truthgate("compare", str(vanilla), str(short))
    assert (done.returncode, done.stdout) == (1, "") and len(done.stderr.splitlines()) == 1
    assert 'vanilla has document 39 ("halueval_qa: how much is 39?")' in done.stderr
    assert "Run both on the same data with the same --limit" in done.stderr


def test_a_truncated_file_of_samples_is_named_in_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    vanilla = result_files.lm_eval_run(tmp_path / "vanilla", {"halueval_qa": BAD})
    gated = result_files.lm_eval_run(tmp_path / "gated", {"halueval_qa": GOOD}, gate=result_files.LLM)
    file = result_files.only_file(gated, "samples_halueval_qa_*")
    file.write_bytes(file.read_bytes()[:-20])
    target = tmp_path / "board.md"
    done = truthgate("compare", str(vanilla), str(gated), "--markdown", str(target))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"{file}, line 40 is cut off or not JSON" in done.stderr
    assert not target.exists()


def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    done = truthgate("compare", "nowhere", "--csv", str(tmp_path / "none" / "a.csv"))
    assert done.returncode == 1 and done.stderr.startswith("error: the folder of ")


def test_an_argument_without_a_name_or_a_path_is_refused(tmp_path: Path) -> None:
    for argument in ("=run", "name="):
        done = truthgate("compare", argument, str(tmp_path))
        assert done.returncode == 1
        assert done.stderr == f"error: {argument!r}: expected PATH or NAME=PATH\n"
