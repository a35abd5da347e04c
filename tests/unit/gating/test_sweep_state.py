"""A sweep goes on where its state files are damaged: what they held is done again, and said."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from truthgate_eval.errors import DataError
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.sweep import Candidate, EvalResult
from truthgate_eval.gating.sweep_store import SweepStore

DAMAGED = [
    b"",
    b"{",
    b"[1]",
    b"\xff\xfe",
    b'{"gate": {}, "outcome": 5}',
    b'{"gate": null, "outcome": {"value": "x"}}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_result_is_evaluated_again(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, gate = SweepStore(tmp_path, {}), GateConfig.parse("none")
    folder, _ = store.test_result("vanilla", gate, lambda _: EvalResult(0.5, None, 3))
    (folder / "done.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        _, found = store.test_result("vanilla", gate, lambda _: EvalResult(0.75, 0.1, 3))
    assert found == EvalResult(0.75, 0.1, 3)
    assert b"outcome" in content or "done.json is damaged: what it held is done again" in caplog.text
    assert store.test_result("vanilla", gate, lambda _: pytest.fail("evaluated again"))[1] == found


@pytest.mark.parametrize("content", [*DAMAGED, b'{"random": {"gate": {}, "found": "x"}}'])
def test_a_damaged_strength_is_found_again(content: bytes, tmp_path: Path) -> None:
    store = SweepStore(tmp_path, {})
    (tmp_path / "strengths.json").write_bytes(content)
    gate = GateConfig.parse("random:1", lam="kl:0.05")
    found = store.found_strength("random", gate, lambda: gate.with_strength(0.5, 0.05, 0.001, 64))
    assert found.lam == 0.5
    assert store.found_strength("random", gate, lambda: pytest.fail("found again")).lam == 0.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"lam": 1}', "line 1: no norm"),
        (b'{"lam": "1", "norm": "none", "site": "post", "value": 1, "stderr": null, "documents": 1}', "its lam is '1'"),
        (b'{"lam": 1, "norm": {}, "site": "post", "value": 1, "stderr": null, "documents": 1}', r"its norm is \{\}"),
        (b'{"lam": 1, "norm": "none", "site": "x", "value": 1, "stderr": null, "documents": 1}', "unknown site 'x'"),
        (b"\xff", "not JSON"),
    ],
)  # fmt: skip
def test_a_damaged_candidate_is_named_with_its_line(line: bytes, message: str, tmp_path: Path) -> None:
    store = SweepStore(tmp_path, {})
    store.points_file.write_bytes(line + b"\n")
    with pytest.raises(DataError, match=message):
        store.candidates()


def test_a_candidate_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = SweepStore(tmp_path, {})
    written = [
        Candidate(0.0, "none", "post", 0.5, None, 4),
        Candidate(1.5, "minmax", "pre", 0.25, 0.1, 4, 0.05, 0.049, 0.001, 64),
    ]
    for one in written:
        store.add(one)
    assert list(store.candidates().values()) == written
