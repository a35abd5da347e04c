"""The `truthgate` command line, run as a user runs it."""

from __future__ import annotations

import functools
import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import probe, truthgate

from truthgate_eval.errors import TruthGateError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness import registration


@pytest.fixture(scope="module")
def artifact(checkpoint: str, halueval_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    done = probe(
        checkpoint, halueval_folder, "--limit", "40", "--output", "a.npz", "--batch_size", "7", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder / "a.npz"


def test_probing_writes_a_whole_artifact(artifact: Path, checkpoint: str) -> None:
    scores = TruthScores.load(artifact)
    assert scores.shape == (3, 4)
    # Right answers end in a digit and wrong ones in a full stop: even random heads can tell.
    assert scores.scores.mean() > 0.6 and scores.scores.max() > 0.75
    meta = scores.metadata
    # Not where it lies on this machine.
    assert meta["model"] == Path(checkpoint).name and meta["architecture"] == "LlamaForCausalLM"
    assert meta["sequences"] == 80 and meta["documents"] == 40 and meta["truthful"] == 40
    assert meta["rows"] == {"halueval/qa": list(range(40))}
    assert (meta["site"], meta["task"], meta["probe"]["solver"]) == ("post", "probe_halueval_qa", "adamw")
    assert scores.probe_weight is not None and scores.probe_weight.shape == (3, 4, 8)


def test_the_same_seed_gives_the_same_arrays_whatever_the_batch(
    artifact: Path, checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    options = ("--limit", "40", "--output")
    assert probe(checkpoint, halueval_folder, *options, "same.npz", "-b", "7", cwd=tmp_path).returncode == 0
    assert probe(checkpoint, halueval_folder, *options, "other.npz", "-b", "1", cwd=tmp_path).returncode == 0
    first, same, other = (
        TruthScores.load(p) for p in (artifact, tmp_path / "same.npz", tmp_path / "other.npz")
    )
    assert first.fingerprint == same.fingerprint
    np.testing.assert_array_equal(first.probe_weight, same.probe_weight)
    np.testing.assert_allclose(first.scores, other.scores, atol=1 / 80)
    np.testing.assert_allclose(first.probe_weight, other.probe_weight, atol=1e-3)


def test_show_prints_and_draws(artifact: Path, tmp_path: Path) -> None:
    done = truthgate("show", str(artifact), "--top", "3", "--plot", str(tmp_path / "map.png"))
    assert done.returncode == 0, done.stderr
    assert "Top 3 of 12 heads" in done.stdout and "3 layers x 4 heads" in done.stdout
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"


def test_import_makes_a_full_artifact_of_a_bare_array(tmp_path: Path) -> None:
    np.save(tmp_path / "bare.npy", np.random.default_rng(0).uniform(size=(32, 32)))
    done = truthgate(
        "import", "bare.npy", "--output", "full.npz", "--model", "lmsys/vicuna-7b-v1.5", "--task", "HaluEval-QA",
        "--lam", "4.5", "--norm", "centered", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    meta = TruthScores.load(tmp_path / "full.npz").metadata
    assert meta["model"] == "lmsys/vicuna-7b-v1.5" and meta["site"] == "pre"
    assert meta["recommended"]["lam"] == 4.5 and meta["recommended"]["site"] == "post"


@pytest.mark.slow
def test_a_sweep_notes_its_choice_and_leaves_the_scores_alone(
    artifact: Path, checkpoint: str, halueval_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halueval").symlink_to(halueval_folder)
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    copy = TruthScores.load(artifact).save(tmp_path / "copy.npz")
    done = truthgate(
        "sweep", str(copy), "--model_args", f"pretrained={checkpoint}", "--tasks", "halueval_qa_select",
        "--lam", "1,3", "--norm", "minmax", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = TruthScores.load(artifact), TruthScores.load(copy)
    recommended = after.metadata["recommended"]
    assert after.fingerprint == before.fingerprint and recommended["metric"] == "acc"
    assert [point["lam"] for point in recommended["points"]] == [0.0, 1.0, 3.0]
    best = max(recommended["points"], key=lambda point: (point["value"], -abs(point["lam"])))
    assert recommended["lam"] == best["lam"] and 0 < best["documents"] < 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "probe_haluevl_qa", "--output", "a.npz"), "no task 'probe_haluevl_qa': did you mean"),
        (("--tasks", "probe_halueval_qa", "--output", "a.csv"), "a score artifact is an .npz file"),
        (("--tasks", "probe_halueval_qa", "--output", "no/a.npz"), "the folder of no/a.npz does not exist"),
        (("--tasks", "probe_halueval_qa", "--output", "a.npz", "--site", "up"), "unknown site 'up'"),
        (("--tasks", "probe_halueval_qa", "--output", "a.npz", "--solver", "svm"), "unknown solver 'svm'"),
        (("--tasks", "probe_halueval_qa", "--output", "a.npz", "--metadata", "{"), "--metadata is not JSON"),
        (
            ("--tasks", "probe_halueval_qa", "--output", "a.npz", "--model", "dummy"),
            "holds no transformers model",
        ),
        (
            ("--tasks", "probe_halueval_qa", "--output", "a.npz", "--model", "hff"),
            "lm-eval has no model 'hff'",
        ),
        (
            ("--tasks", "probe_halueval_qa", "--output", "a.npz", "--model", "hff", "--limit", "-3"),
            "--limit=-3: expected a number of documents, 1 or more",  # and not that there is no such model
        ),
        (("--tasks", "probe_halueval_qa", "--output", "a.npz", "--score", "f1"), "unknown score 'f1'"),
        (("--tasks", "probe_halueval_qa", "--output", "a.npz", "--split", "token"), "unknown split 'token'"),
        (("--tasks", "probe_phd_text", "--output", "a.npz"), "PhD's data.json is not at"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...], message: str, checkpoint: str, halueval_folder: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "data" / "halueval").mkdir(parents=True)
    (tmp_path / "data" / "halueval" / "qa_data.jsonl").write_text(
        (Path(halueval_folder) / "qa_data.jsonl").read_text()
    )
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path / "data"))
    given = () if "--model" in arguments else ("--model_args", f"pretrained={checkpoint}")
    done = truthgate("probe", *given, "--device", "cpu", "--limit", "8", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not list(tmp_path.glob("*.npz"))


def test_an_interrupted_probe_leaves_no_artifact(
    checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-u", "-m", "truthgate_eval", "probe", "--model_args", f"pretrained={checkpoint}",
        "--tasks", "probe_halueval_qa", "--device", "cpu", "--output", "a.npz",
        "--metadata", json.dumps({"halueval_path": halueval_folder}),
    ]  # fmt: skip
    # A shell starts background jobs with Ctrl-C ignored, and child processes inherit that.
    default_sigint = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, stderr=pipe, stdout=pipe, preexec_fn=default_sigint)
    time.sleep(3)  # the imports alone take longer
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_doctor_reports_versions_registrations_and_folders() -> None:
    done = truthgate("doctor")
    for word in ("transformers", "startup file", "loaded", "gated_hf", "halueval_qa", "data folder"):
        assert word in done.stdout


def test_doctor_names_what_is_missing_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise RuntimeError  # an empty message

    monkeypatch.setattr(registration, "lm_eval_tasks", broken)
    monkeypatch.setattr(registration, "startup_file_ran", lambda: False)
    done = truthgate("doctor")
    assert done.returncode == 1
    lines = {" ".join(line.split()) for line in done.stdout.splitlines()}
    assert "missing lm_eval tasks RuntimeError" in lines
    assert "missing startup file not loaded: install the package again" in lines


def test_an_error_with_an_empty_message_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TruthGateError

    monkeypatch.setattr(TruthScores, "resolve", fail)
    done = truthgate("show", "a.npz")
    assert (done.returncode, done.stderr) == (1, "error: TruthGateError\n")


def test_a_probe_prints_its_own_bars_and_lines_and_verbose_the_rest(
    checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    options = (
        "probe", "--model_args", f"pretrained={checkpoint}", "--tasks", "probe_halueval_qa", "--device", "cpu",
        "--metadata", json.dumps({"halueval_path": halueval_folder}), "--limit", "10", "--output", "a.npz",
    )  # fmt: skip
    done = truthgate(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split()[0] for line in done.stderr.splitlines() if line.strip()]
    assert set(lines) == {"activations", "probes"}, done.stderr
    loud = truthgate("--verbose", *options, cwd=tmp_path)
    assert loud.returncode == 0
    assert "WARNING: probe_halueval_qa: Custom kwargs can be passed" in loud.stderr
    assert "Loading weights" in loud.stderr


def test_a_commands_own_warnings_are_printed_and_logging_is_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(name: str) -> TruthScores:
        logging.getLogger("truthgate_eval.gating").warning("look out")
        logging.getLogger("truthgate_eval.gating").info("a detail")
        raise TruthGateError("stop")

    monkeypatch.setattr(TruthScores, "resolve", resolve)
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    assert truthgate("show", "a").stderr == "WARNING: look out\nerror: stop\n"
    assert truthgate("-v", "show", "a").stderr == "WARNING: look out\nINFO: a detail\nerror: stop\n"
    assert (root.level, list(root.handlers)) == before


@pytest.mark.slow
def test_images_are_for_vision_language_models(checkpoint: str, tmp_path: Path) -> None:
    arguments = ("probe", "--tasks", "probe_halueval_qa", "--output", "a.npz")
    for more, message in [
        (("--image", "black"), "need --model vlm"),
        (("--image", "grey"), "--image grey is none of document, none, black"),
        (("--model", "vlm", "--sequences", "x.jsonl"), "exclude each other"),
        (
            ("--model", "vlm", "--image", "none", "--num_fewshot", "2", "--tasks", "probe_rlhf_v"),
            "--num_fewshot is for",
        ),
        (
            ("--model", "vlm", "--image", "none", "--model_args", f"pretrained={checkpoint}"),
            "takes no pictures",
        ),
        (("--model", "gated_llava", "--image", "none", "--model_args", "lam=1"), "leave lam out"),
    ]:
        done = truthgate(*arguments, *more, cwd=tmp_path)
        assert done.returncode == 1 and message in done.stderr, (more, done.stderr)
        assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    done = truthgate("probe", "--model", "vlm", "--sequences", "x.jsonl", "-o", "a.npz", cwd=tmp_path)
    assert done.returncode == 1 and "--images DIR" in done.stderr
    assert not list(tmp_path.iterdir())
