"""Scores by their address on a hub: which files are fetched, and what is recorded of them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.hub import Hub, running_hub, use_hub
from helpers.tiny_models import tiny_model

from truthgate_eval.errors import ScoresError
from truthgate_eval.export.adapter import export_adapter
from truthgate_eval.export.output import provenance
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.hub_scores import recorded_origin
from truthgate_eval.gating.scores import TruthScores

VALUES = np.random.default_rng(0).uniform(0.4, 0.9, (3, 4)).astype(np.float32)


def content(folder: Path, values: Any = VALUES, **metadata: Any) -> bytes:
    metadata = {"model": "owner/base", "task": "t", "site": "post", **metadata}
    return TruthScores(values, metadata=metadata).save(folder / "content.npz").read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        use_hub(hub.url, tmp_path / "cache", monkeypatch)
        hub.add("owner/repo", {"a.npz": content(tmp_path), "README.md": b"a card"})
        yield hub


def adapter(folder: Path) -> dict[str, bytes]:
    """An exported gate, as files of a repository."""
    model = tiny_model("llama")
    config = GateConfig("a.npz", TruthScores(VALUES, metadata={"model": "owner/base"}), lam=2.0)
    record = provenance("owner/base", None, config.describe(), "t")
    gate = config.gate(find_attention_layout(model), "m")
    export_adapter(model, gate, folder, record=record, base_model="owner/base")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_results_file_says_commit_and_checksum(hub: Hub, tmp_path: Path) -> None:
    commit = hub.repositories["owner/repo"].refs["main"]
    config = GateConfig.parse("hf://owner/repo@main/a.npz", lam=1)
    described = config.describe()
    assert described["scores"] == "hf://owner/repo@main/a.npz"
    assert described["hub"] == {
        "repo": "owner/repo",
        "file": "a.npz",
        "revision": "main",
        "commit": commit,
        "file_sha256": hashlib.sha256(content(tmp_path)).hexdigest(),
    }
    assert described["sha256"] == TruthScores(VALUES).fingerprint
    assert hub.fetched() == ["owner/repo/a.npz"]


def test_shuffled_scores_of_the_hub_are_recorded_as_well(hub: Hub) -> None:
    commit = hub.repositories["owner/repo"].refs["main"]
    described = GateConfig.parse(f"shuffled:hf://owner/repo@{commit}/a.npz:7", lam=1).describe()
    assert described["kind"] == "shuffled" and described["hub"]["commit"] == commit
    plain = GateConfig.parse(TruthScores(VALUES), lam=1).describe()
    assert "hub" not in plain and "hub" not in GateConfig.parse("random:1").describe()


def test_an_artifact_made_of_a_fetched_one_keeps_its_origin(hub: Hub, tmp_path: Path) -> None:
    fetched = TruthScores.resolve("hf://owner/repo/a.npz")
    local = str(fetched.save(tmp_path / "copy.npz"))
    described = GateConfig.parse(local, lam=1).describe()
    assert described["hub"]["commit"] == hub.repositories["owner/repo"].refs["main"]
    assert described["hub"].keys() == {"repo", "file", "commit", "file_sha256"}  # no revision was named
    # A file that claims another origin than the one it was fetched from is not believed.
    claims = content(tmp_path, hub={"repo": "somebody/else", "commit": "f" * 40})
    commit = hub.repositories["owner/repo"].commit({"b.npz": claims})
    again = TruthScores.resolve("hf://owner/repo/b.npz").metadata["hub"]
    assert (again["repo"], again["commit"]) == ("owner/repo", commit)


def test_a_checksum_of_another_file_stops_before_the_file_is_read(hub: Hub) -> None:
    with pytest.raises(ScoresError, match="is another file, with SHA-256"):
        GateConfig.parse(f"hf://owner/repo/a.npz#sha256={'0' * 64}", lam=1)


@pytest.mark.parametrize("place", ["", "gates/mine"])
def test_an_adapter_is_fetched_as_two_files_of_one_commit(place: str, hub: Hub, tmp_path: Path) -> None:
    files = adapter(tmp_path / "exported")
    prefix = f"{place}/" if place else ""
    repository = hub.add("owner/gate", {f"{prefix}{name}": data for name, data in files.items()})
    first = repository.refs["main"]
    name = f"hf://owner/gate/{place}" if place else "hf://owner/gate"
    scores = TruthScores.resolve(name)
    expected = TruthScores.load(tmp_path / "exported")
    np.testing.assert_array_equal(scores.scores, expected.scores)
    weights = files["adapter_model.safetensors"]
    assert scores.metadata["hub"] == {
        "repo": "owner/gate", "file": f"{prefix}adapter_model.safetensors", "revision": None, "commit": first,
        "file_sha256": hashlib.sha256(weights).hexdigest(),
    }  # fmt: skip
    assert scores.metadata["imported_from"] == f"hf://owner/gate@{first}{'/' if place else ''}{place}"
    assert {line.rsplit("/", 1)[1] for line in hub.fetched()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    # The weights are asked for at the commit of the config, and not at the branch.
    [of_weights] = [line for line in hub.requests if line.startswith("GET") and line.endswith(".safetensors")]
    assert f"/resolve/{first}/" in of_weights
    gate = GateConfig.parse(name).gate(find_attention_layout(tiny_model("llama")), "m")
    live = GateConfig("a", TruthScores(VALUES), lam=2.0).gate(find_attention_layout(tiny_model("llama")), "m")
    np.testing.assert_allclose(gate.values, live.values, atol=1e-6)


def test_what_is_neither_a_score_file_nor_an_adapter_is_one_line(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match=r"has no file 'adapter_config.json'.*means an adapter's folder"):
        TruthScores.resolve("hf://owner/repo")
    with pytest.raises(ScoresError, match="names no repository"):
        TruthScores.resolve("hf://owner/file.npz")
    hub.repositories["owner/repo"].commit({"bad.npz": b"no archive"})
    commit = hub.repositories["owner/repo"].refs["main"]
    with pytest.raises(ScoresError, match=f"^hf://owner/repo@{commit}/bad.npz") as caught:
        TruthScores.resolve("hf://owner/repo/bad.npz")
    assert str(tmp_path) not in str(caught.value)


def test_a_pushed_version_does_not_change_a_pinned_one(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories["owner/repo"]
    first = repository.refs["main"]
    repository.commit({"a.npz": content(tmp_path, VALUES + 1)})
    for revision, values in ((f"@{first}", VALUES), ("", VALUES + 1)):
        np.testing.assert_array_equal(TruthScores.resolve(f"hf://owner/repo{revision}/a.npz").scores, values)


def test_published_arrays_of_the_hub_need_no_metadata(hub: Hub) -> None:
    array = io.BytesIO()
    np.save(array, VALUES)
    commit = hub.repositories["owner/repo"].commit({"published/a.npy": array.getvalue()})
    scores = TruthScores.resolve("hf://owner/repo/published/a.npy")
    np.testing.assert_array_equal(scores.scores, VALUES)
    assert scores.metadata["imported_from"] == f"hf://owner/repo@{commit}/published/a.npy"


def test_a_file_on_disk_that_claims_nonsense_has_no_origin() -> None:
    for claim in ("text", ["a"], {"repo": 3, "commit": {"a": 1}}, {"commit": "x" * 301}, None):
        assert recorded_origin({"hub": claim}) == {}
