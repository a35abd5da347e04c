"""Credentials are masked by their names and by their forms, and nothing else is."""

from __future__ import annotations

import time
from typing import Any

import pytest

from truthgate_eval.credentials import mask_credentials


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ("pretrained=a/b,token=abc,lam=1", "pretrained=a/b,token=***,lam=1"),
        ("hf_token=abc,api_key='k'", "hf_token=***,api_key='***'"),
        ('{"password": "p w"}', '{"password": "***"}'),
        ("Authorization: Bearer abcdefgh123", "Authorization: *** ***"),
        ("https://me:secret@host/x", "https://***@host/x"),
        ("see hf_abcdefghijkl and sk-abcdefghijklmnopqrst", "see *** and ***"),
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
