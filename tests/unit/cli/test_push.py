"""`truthgate push`, and the other commands with an address on a hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import truthgate
from helpers.hub import TOKEN, Hub, running_hub, use_hub

from truthgate_eval.gating.scores import TruthScores

VALUES = np.random.default_rng(0).uniform(0.4, 0.9, (3, 4)).astype(np.float32)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    metadata = {"model": "owner/base", "task": "t", "site": "post"}
    TruthScores(VALUES, metadata=metadata).save(tmp_path / "a.npz")
    with running_hub() as hub:
        use_hub(hub.url, tmp_path / "cache", monkeypatch, token=TOKEN)
        yield hub


def test_the_printed_address_is_one_that_others_can_use(hub: Hub, tmp_path: Path) -> None:
    done = truthgate("push", "a.npz", "me/scores", "--message", "Mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    address = line.split(" -> ")[1]
    commit = hub.repositories["me/scores"].commits[1][0]
    assert address == f"hf://me/scores@{commit}/a.npz" and line.startswith("scores of owner/base, sha256 ")
    shown = truthgate("show", address, cwd=tmp_path)
    assert shown.returncode == 0 and f"commit {commit}" in shown.stdout
    copied = truthgate("import", address, "-o", "copy.npz", cwd=tmp_path)
    assert copied.returncode == 0, copied.stderr
    copy = TruthScores.load(tmp_path / "copy.npz")
    np.testing.assert_array_equal(copy.scores, VALUES)
    assert copy.metadata["hub"]["commit"] == commit and "probed_by" not in copy.metadata
    assert TOKEN not in done.stdout + done.stderr + shown.stdout


def test_notes_tell_what_was_not_uploaded_as_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.add("me/scores", {"README.md": b"# Mine\n"})
    TruthScores(VALUES, metadata={"model": str(tmp_path / "m")}).save(tmp_path / "b.npz")
    done = truthgate("push", "b.npz", "me/scores", "--path-in-repo", "x/c.npz", "--private", cwd=tmp_path)
    assert done.returncode == 1 and "exists and is public" in done.stderr
    done = truthgate("push", "b.npz", "me/scores", "--path-in-repo", "x/c.npz", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3
    assert "/x/c.npz" in done.stdout and str(tmp_path) not in done.stdout
    assert "--overwrite-card replaces it" in done.stdout and "were cut to their last names" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("push", "a.npz", "scores"), "expected OWNER/REPO"),
        (("push", "none.npz", "me/scores"), "no score file at none.npz"),
        (("show", "hf://me/none/a.npz"), "there is no repository me/none, or it is private"),
        (("import", "hf://me/none/a.npz", "-o", "x.npz"), "there is no repository me/none"),
        (("sweep", "hf://me/scores/a.npz"), "truthgate import hf://... -o FILE.npz"),
        (("export", "-o", "x", "--model_args", "pretrained=m,scores=hf://me/none@v1/a.npz,lam=1"), "me/none"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str, hub: Hub, tmp_path: Path) -> None:
    done = truthgate(*arguments, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    assert not (tmp_path / "x.npz").exists()


def test_nobody_logged_in_is_one_line(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = truthgate("push", "a.npz", "me/scores", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: an upload needs a token of the hub")
    assert len(done.stderr.splitlines()) == 1
