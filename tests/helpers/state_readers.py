"""Readers of what unfinished and cached work has left on disk, with a valid file for each, for fuzzing.

None of them ends in an error for a damaged file: what it held is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from lmms_eval.caching.response_cache import ResponseCache

from helpers.reader import Reader
from truthgate_eval.attribution.study_rows import read_row
from truthgate_eval.data import easy_vqa
from truthgate_eval.data.store import read_rows, read_source
from truthgate_eval.export.source import weight_files
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.sweep_store import SweepStore
from truthgate_eval.harness.lm_eval.tasks import _read_instruction
from truthgate_eval.harness.lmms_eval.response_cache import _read_interrupted_runs
from truthgate_eval.probing.capture_store import CaptureStore
from truthgate_eval.probing.kept_batches import KeptBatches
from truthgate_eval.probing.shared_capture import SharedCapture, allocate_in_memory
from truthgate_eval.processes import ONE_PROCESS

# The activations of a capture of two batches of two sequences, in a model of 1 layer, 2 heads of width 3.
_STORE = "a.npz.partial"
_KEY = CaptureStore(Path(_STORE), lambda: "model").key({})
_SHARD = "00000000-00000002.shard"
_HEADER = [[2, ""], [2, ""]]
_ROWS = np.linspace(-1, 1, 4 * 6, dtype="<f4").tobytes()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(f"{_KEY} {_SHARD} ".encode() + content).digest()


def _shard(header: Any) -> bytes:
    content = json.dumps(header).encode() + b"\n" + _ROWS
    return content + _digest(content)


def _read_shard(file: Path, folder: Path) -> None:
    del file
    found = SharedCapture(
        (4, 1, 2, 3), range(4), allocate=allocate_in_memory, processes=ONE_PROCESS, progress=None
    )
    kept = KeptBatches(CaptureStore(folder / _STORE, lambda: "model"), found, [[0, 1], [2, 3]], dict)
    for number in range(2):
        kept.take(number)


def _sign_and_read_shard(file: Path, folder: Path) -> None:
    file.write_bytes(file.read_bytes() + _digest(file.read_bytes()))
    _read_shard(file, folder)


def _strengths(file: Path, folder: Path) -> None:
    del file
    gate = GateConfig.parse("random:1", lam="kl:0.05")
    found = gate.with_strength(0.5, 0.05, 0.001, 64)
    SweepStore(folder, {}).found_strength("random", gate, lambda: found)


def _easy_vqa(file: Path, folder: Path) -> None:
    del file
    (folder / "data" / "train").mkdir()
    questions = folder / "data" / "train" / "questions.json"
    questions.write_text('[["Is it red?", "no", 3000]]')
    with (
        mock.patch.object(easy_vqa, "_package", lambda: folder),
        mock.patch.dict(os.environ, {"TRUTHGATE_DATA": str(folder / "prepared")}),
    ):
        read_rows(easy_vqa.easy_vqa_file("test"))


def _checkpoint(file: Path, folder: Path) -> None:
    del file
    (folder / "a.safetensors").touch()
    weight_files(folder)


def _answers() -> bytes:
    """lmms-eval's file of one run's answers."""
    with TemporaryDirectory() as name:
        file = str(Path(name, "rank_0.db"))
        ResponseCache.merge_shards([], file)
        with sqlite3.connect(file) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute(
                "INSERT INTO responses VALUES ('key', 'generate_until', 'pope', 1, 0, '{}', '\"Yes\"', 0.5)"
            )
            connection.execute("INSERT INTO meta VALUES ('model_fingerprint', 'm')")
        connection.close()
        return Path(file).read_bytes()


def _read_answers(file: Path, folder: Path) -> None:
    del file
    cache = SimpleNamespace(
        _cache_root=folder,
        _run_id="own",
        db_path=str(folder / "own.db"),
        merge_shards=ResponseCache.merge_shards,
    )
    _read_interrupted_runs(cache)


_ROW: dict[str, Any] = {"strength": 1.5, "divergence": 0.01, "odds": [0.5, -1.0, 2.0], "yes": [-0.1, -3.0]}
_QUESTIONS: list[Any] = [
    ["Is it red?", "yes", 0],
    ["Is there a circle?", "no", 1],
    ["What is it?", "circle", 1],
]
_STRENGTHS = {"random": {"gate": GateConfig.parse("random:1", lam="kl:0.05").describe(), "found": [0.5, 0.05, 0.001, 64]}}  # fmt: skip
_INDEX = {"metadata": {"total_size": 4}, "weight_map": {"a": "a.safetensors", "b": "a.safetensors"}}
_PROVENANCE = {"source": {"package": "easy-vqa"}, "rows": {"test": 3}, "notes": []}


def state_readers() -> Iterator[tuple[str, Reader]]:
    """The readers by name."""
    shard = f"{_STORE}/{_KEY}/0-of-1/{_SHARD}"
    yield (
        "shard",
        Reader(
            shard, lambda: [_shard(_HEADER)], _read_shard, lambda: json.loads(json.dumps(_HEADER)), _shard
        ),
    )
    # The fuzzer changes what is in front of the digest, which is right.
    signed = json.dumps(_HEADER).encode() + b"\n" + _ROWS
    yield "shard with its digest", Reader(shard, lambda: [signed], _sign_and_read_shard)
    lengths = {"strength": None, "divergence": None, "odds": 3, "yes": 2}
    for name, file, value, read in (
        ("study's row", "row.json", _ROW, lambda file, _: read_row(file, lengths)),
        ("sweep's strengths", "strengths.json", _STRENGTHS, _strengths),
        ("easy-VQA", "data/test/questions.json", _QUESTIONS, _easy_vqa),
        ("prepared", "prepared.json", _PROVENANCE, lambda _, folder: read_source(folder)),
        ("checkpoint index", "model.safetensors.index.json", _INDEX, _checkpoint),
    ):
        content = json.dumps(value).encode()
        yield (
            name,
            Reader(
                file, lambda content=content: [content], read, lambda content=content: json.loads(content)
            ),  # type: ignore[misc]
        )
    yield (
        "prompt file",
        Reader(
            "prompt.txt", lambda: [b"{question}\r\n{answer}\n"], lambda file, _: _read_instruction(str(file))
        ),
    )
    yield "answers of a killed run", Reader("runs/other/rank_0.db", lambda: [_answers()], _read_answers)
