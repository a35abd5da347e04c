"""Credentials are masked by their names and by their forms, and nothing else is."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers import result_files
from helpers.command_line import truthgate

from truthgate_eval.credentials import drop_credentials, mask_credentials
from truthgate_eval.errors import TruthGateError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.model_args import parse_metadata


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ("pretrained=a/b,token=abc,lam=1", "pretrained=a/b,token=***,lam=1"),
        ("hf_token=abc,api_key='k'", "hf_token=***,api_key='***'"),
        ('{"password": "p w"}', '{"password": "***"}'),
        ("Authorization: Bearer abcdefgh123", "Authorization: *** ***"),
        ("https://me:secret@host/x", "https://***@host/x"),
        (f"see hf_{'aB3' * 10} and sk-proj-{'aB3_-' * 6}", "see *** and ***"),
        ({"a": [{"client_secret": "x", "n": 1}]}, {"a": [{"client_secret": "***", "n": 1}]}),
        ({"AWS_SECRET_ACCESS_KEY": "x"}, {"AWS_SECRET_ACCESS_KEY": "***"}),
    ],
)
def test_credentials_are_masked(value: Any, masked: Any) -> None:
    assert mask_credentials(value) == masked


@pytest.mark.parametrize(
    "value",
    [
        "pretrained=a/b,max_new_tokens=16,tokenizer=c,pad_token=x,token=None,use_auth_token=True",
        {
            "token": None,
            "eos_token": "</s>",
            "answer_tokens": [1],
            "tokens": 5,
            "key": "question",
            "trust": True,
        },
        {"gen_kwargs": {"do_sample": False}, "note": "a token of thanks: none"},
        "http://host:8080/path",
        "pretrained=/models/hf_llama3chat,scores=/runs/sk-vicuna-7b-lam-centered/a.npz",
    ],
)
def test_other_arguments_stay(value: Any) -> None:
    assert mask_credentials(value) == value


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "token " * 40_000, "eyJ-" * 50_000, "://a:" * 40_000, "=" * 200_000]
)
def test_long_texts_take_no_time(text: str) -> None:
    before = time.process_time()
    mask_credentials(text)
    assert time.process_time() - before < 1


def test_entries_that_have_the_name_of_a_credential_are_dropped() -> None:
    value = {"pretrained": "a", "token": "b", "options": [{"api_key": "c", "token": None}]}
    assert drop_credentials(value) == {"pretrained": "a", "options": [{"token": None}]}


def test_compare_writes_no_credential(tmp_path: Path) -> None:
    model = f"https://me:abc123@host/hf_{'a' * 34}"
    for name, gate in (("a", result_files.VANILLA), ("b", {**result_files.LLM, "scores": f"{model}/a.npz"})):
        result_files.lm_eval_run(
            tmp_path / name, {"sums": ["yes", "no"]}, gate=gate, model_name=model,
            model_args={"pretrained": model, "token": "abc123"},
        )  # fmt: skip
    files = {"--json": "c.json", "--markdown": "c.md", "--csv": "c.csv", "--latex": "c.tex"}
    options = [part for pair in files.items() for part in pair]
    done = truthgate("compare", "a", "b", *options, "--resamples", "100", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = {name: (tmp_path / name).read_text() for name in files.values()}
    assert "https://***@host/***" in written["c.json"]
    for text in (done.stdout, done.stderr, *written.values()):
        assert "abc123" not in text and "hf_aaaa" not in text


def test_a_sweeps_folder_has_no_credential_and_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another token may continue it; another model may not, though both paths are masked alike."""
    TruthScores(np.ones((1, 2))).save(tmp_path / "a.npz")
    load = mock.Mock(side_effect=TruthGateError("loads the model"))
    monkeypatch.setattr(sys.modules["truthgate_eval.cli.sweep"], "_load_evaluator", load)
    paths = [f"/models/hf_{letter * 34}" for letter in "ab"]
    ends = []
    for path, token in ((paths[0], "abc123"), (paths[0], "def456"), (paths[1], "abc123")):
        done = truthgate("sweep", "a.npz", "-a", f"pretrained={path},token={token}", cwd=tmp_path)
        ends.append(done.stderr)
    assert ends[:2] == ["error: loads the model\n"] * 2 and "holds a sweep with model_args_sha256=" in ends[2]
    written = "".join(file.read_text() for file in (tmp_path / "a.sweep").iterdir())
    assert not any(secret in written for secret in ("abc123", "def456", "hf_aaaa", "hf_bbbb"))


@pytest.mark.parametrize("text", ['{"token": "abc123", ', '["token=abc123"]'])
def test_metadata_that_are_no_object_are_quoted_without_a_credential(text: str) -> None:
    with pytest.raises(TruthGateError, match="--metadata") as caught:
        parse_metadata(text)
    assert "abc123" not in str(caught.value) and "***" in str(caught.value)
