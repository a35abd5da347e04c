"""Every reader of files that may come from strangers, with a valid file for each, for fuzzing.

A reader is given a folder with one file, reads it and does what the commands do with it first. It must end in
a valid object or in `TruthGateError`, within a second and 200 MB.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from safetensors.numpy import save as save_safetensors

from helpers import result_files
from helpers.data_readers import DATA_READERS, write_images
from helpers.reader import Reader, read_content
from helpers.state_readers import state_readers
from truthgate_eval.analysis.heads.control_report import control_verdicts
from truthgate_eval.analysis.heads.family import FamilyMember, read_member
from truthgate_eval.analysis.report.artifacts import collect_artifact
from truthgate_eval.analysis.report.charts import sweep_chart
from truthgate_eval.analysis.report.collect import ReportConfig, collect
from truthgate_eval.analysis.report.page import render
from truthgate_eval.analysis.runs.methods import make_entries
from truthgate_eval.analysis.runs.run import read_run
from truthgate_eval.cli.artifact_lines import warnings_of
from truthgate_eval.cli.main import _summary
from truthgate_eval.data.images import open_image
from truthgate_eval.errors import TruthGateError
from truthgate_eval.export.safetensors_file import read_header
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.sweep import Candidate, EvalResult
from truthgate_eval.gating.sweep_store import SweepStore

__all__ = ["READERS", "Reader", "folder_of", "read_content"]

# Artifacts.

METADATA = {
    "model": "owner/model", "task": "halueval_qa", "site": "post", "kind": "accuracy", "score": "accuracy",
    "family": "f", "probe": {"solver": "newton", "folds": 5, "class_balance": 0.5}, "schema": 1,
    "reliability": {"all": 0.9, "within": 0.8}, "rows": {"halueval/qa": [1, 2]}, "note": "n",
    "recommended": {
        "lam": 1.0, "norm": "centered", "site": "post", "layers": "0-1", "task": "t", "metric": "acc",
        "conditions": {"contrast": 1.0},
        "points": [dataclasses.asdict(Candidate(1.0, "centered", "post", 0.5, 0.01, 10, target=0.05))],
    },
    "own_answers": {
        "documents": 3, "accuracy": 0.5, "log_probability": -1.0, "words": -7.0,
        "says": "Yes", "spellings": [
            {"answers": ["yes", "no"], "log_probability": -2.0},
            {"answers": ["Yes", "No"], "log_probability": -7.0, "probed": True},
        ],
    },
    "hub": {"repo": "a/b", "commit": "c"},
}  # fmt: skip


def make_npz(metadata: Any) -> bytes:
    """An artifact of two layers with these metadata, as JSON."""
    content = io.BytesIO()
    scores = np.linspace(0.4, 0.9, 6, dtype=np.float32).reshape(2, 3)
    np.savez(
        content, scores=scores, stderr=scores / 10, auroc=scores, metadata=np.array(json.dumps(metadata)),
        **{"control_surface": scores[:1, :1], "control_surface_stderr": scores[:1, :1]},
    )  # fmt: skip
    return content.getvalue()


def _use_artifact(file: Path, folder: Path) -> None:
    del folder
    artifact = TruthScores.load(file)
    _summary(artifact)
    warnings_of(artifact)
    control_verdicts(artifact)
    found = collect_artifact(FamilyMember("a", None, "a", artifact))
    if found["sweep"]:
        sweep_chart(found["sweep"])
    read_member(f"a={file}")
    for modality in ("text", "image"):
        try:
            GateConfig.parse(str(file), modality=modality).describe()
        except TruthGateError:
            continue


def _npy(dtype: str) -> bytes:
    content = io.BytesIO()
    np.save(content, np.asfortranarray(np.linspace(0, 1, 6, dtype=dtype).reshape(2, 3)))
    return content.getvalue()


def _adapter() -> bytes:
    vectors = {f"m.layers.{n}.o_proj.ia3_l": np.ones((4, 1), np.float32) for n in range(2)}
    metadata = {"truthgate_eval": json.dumps({"layers": 2, "heads": 2, "model": "m"})}
    return save_safetensors(vectors, metadata)


def _adapter_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')


def _adapter_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(_adapter())


# Runs.

_TASKS = {"halueval_qa": ["yes", "no", None, "no"], "sums": ["yes", "no", None, "no"]}
_GROUPS = {"all": ["halueval_qa", "part"], "part": ["sums"]}


@cache
def _run_files(harness: str) -> dict[str, bytes]:
    """The files of a run by their paths."""
    make = result_files.lm_eval_run if harness == "lm-eval" else result_files.lmms_eval_run
    with TemporaryDirectory() as name:
        make(Path(name), _TASKS, gate={**result_files.LLM, "layers": [1, 2]}, groups=_GROUPS)
        return {
            str(file.relative_to(name)): file.read_bytes()
            for file in sorted(Path(name).rglob("*"))
            if file.is_file()
        }


def _run_reader(harness: str, is_results: bool) -> Reader:
    files = _run_files(harness)
    name = next(name for name in files if ("results" in name) == is_results)

    def prepare(folder: Path) -> None:
        for other, content in files.items():
            (folder / other).parent.mkdir(parents=True, exist_ok=True)
            (folder / other).write_bytes(content)

    def lines(value: Any) -> bytes:
        items = value if isinstance(value, list) else [value]
        return "".join(json.dumps(item) + "\n" for item in items).encode()

    return Reader(
        file=name,
        seeds=lambda: [files[name]],
        read=lambda _, folder: _use_run(folder),
        values=lambda: (
            json.loads(files[name]) if is_results else [json.loads(line) for line in files[name].splitlines()]
        ),
        write=(lambda value: json.dumps(value).encode()) if is_results else lines,
        prepare=prepare,
    )


def _use_run(folder: Path) -> None:
    entries = make_entries([(None, read_run(folder))])
    render(collect(entries, [], ReportConfig(resamples=10, permutations=9)))


# Data sets.


def _data_reader(name: str) -> Reader:
    content, suffix, read = DATA_READERS[name]

    def write(value: Any) -> bytes:
        if suffix == ".parquet":
            sink = pyarrow.BufferOutputStream()
            rows = [row if isinstance(row, dict) else {"row": row} for row in value]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
            return bytes(sink.getvalue())
        if suffix == ".json" or not isinstance(value, list):
            return json.dumps(value).encode()
        return "\n".join(json.dumps(item) for item in value).encode()

    return Reader(
        file=f"file{suffix}",
        seeds=lambda: [write(content)],
        read=read,
        values=lambda: json.loads(json.dumps(content)) if _is_json(content) else content,
        write=write,
        prepare=write_images,
    )


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


# Sweeps and pictures.

_POINT = dataclasses.asdict(Candidate(1.0, "centered", "post", 0.5, 0.01, 10))


def _sweep(file: Path, folder: Path) -> None:
    del file
    store = SweepStore(folder, {"scores": "x"})
    store.candidates()
    gate = GateConfig.parse("none")
    store.test_result("gate", gate, lambda _: EvalResult(0.5, None, 1))


def _picture(kind: str) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def _load(file: Path, folder: Path) -> None:
    del folder
    TruthScores.load(file)


def _line(value: Any) -> bytes:
    return (json.dumps(value) + "\n").encode()


def _load_packed(file: Path, folder: Path) -> None:
    content, packed = file.read_bytes(), folder / "packed.npz"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scores.npy", content)
        archive.writestr("stderr.npy", content)
    TruthScores.load(packed)


def _load_folder(file: Path, folder: Path) -> None:
    del file
    TruthScores.load(folder)


def _make_readers() -> Iterator[tuple[str, Reader]]:
    yield "artifact", Reader("a.npz", lambda: [make_npz(METADATA)], _use_artifact)
    yield (
        "metadata",
        Reader(
            "a.npz",
            lambda: [make_npz(METADATA)],
            _use_artifact,
            lambda: json.loads(json.dumps(METADATA)),
            make_npz,
        ),
    )
    yield "array", Reader("a.npy", lambda: [_npy(dtype) for dtype in ("<f4", ">f8", "<i2")], _load)
    # The fuzzer changes the array inside of the archive, whose checksum is right.
    yield "array in an artifact", Reader("a.npz", lambda: [_npy("<f4")], _load_packed)
    yield "table", Reader("a.csv", lambda: [b"layer,head,accuracy\n0,0,0.5\n0,1,0.75\n"], _load)
    maps: dict[str, Any] = {"0-0": [0, 1], "0-1": [0.5]}
    yield (
        "head map",
        Reader(
            "a.json",
            lambda: [json.dumps(maps).encode(), b"[[0, 1], [0, 0, -1]]", b'{"hal_heads": [[0, 1]]}'],
            lambda file, _: TruthScores.load(file, shape=(1, 2)),
            lambda: dict(maps),
        ),
    )
    yield "allpath", Reader("a.jsonl", lambda: [b"[[0, 0], 1]\n[[0, 1], 0.5]\n"], _load)
    yield (
        "adapter",
        Reader("adapter_model.safetensors", lambda: [_adapter()], _load_folder, prepare=_adapter_config),
    )
    yield (
        "adapter config",
        Reader(
            "adapter_config.json",
            lambda: [b'{"peft_type": "IA3"}'],
            _load_folder,
            lambda: {"peft_type": "IA3", "target_modules": ["o_proj"]},
            prepare=_adapter_weights,
        ),
    )
    yield (
        "checkpoint header",
        Reader("a.safetensors", lambda: [_adapter()], lambda file, _: read_header(file)),
    )
    for harness in ("lm-eval", "lmms-eval"):
        yield f"results of {harness}", _run_reader(harness, True)
        yield f"samples of {harness}", _run_reader(harness, False)
    for name in DATA_READERS:
        yield name, _data_reader(name)
    for name, value in (
        ("sweep.json", {"scores": "x"}),
        ("points.jsonl", _POINT),
        ("rest/gate/done.json", {"gate": GateConfig.parse("none").describe(), "outcome": {"value": 0.5, "stderr": None, "documents": 4}}),
    ):  # fmt: skip
        content = (json.dumps(value) + "\n").encode()
        yield (
            f"sweep's {Path(name).name}",
            Reader(name, lambda content=content: [content], _sweep, lambda value=value: dict(value), _line),  # type: ignore[misc]
        )
    kinds = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
    yield (
        "picture",
        Reader("a.png", lambda: [_picture(kind) for kind in kinds], lambda file, _: open_image(file)),
    )


READERS: dict[str, Reader] = {**dict(_make_readers()), **dict(state_readers())}


def folder_of(name: str) -> str:
    """The name of a reader's folder in tests/corpus."""
    return "".join(sign if sign.isalnum() else "-" for sign in name)
