"""The score artifact: saved and loaded, refused where it is damaged, found by its name."""

from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truthgate_eval.errors import ScoresError
from truthgate_eval.gating import scores as scores_module
from truthgate_eval.gating.scores import TruthScores


def artifact() -> TruthScores:
    rng = np.random.default_rng(0)
    per_head = {name: rng.uniform(size=(3, 4)) for name in ("scores", "stderr", "auroc", "train_accuracy")}
    return TruthScores(
        **per_head,
        probe_weight=rng.normal(size=(3, 4, 8)),
        probe_bias=rng.normal(size=(3, 4)),
        metadata={"model": "tiny", "rows": {"halueval/qa": [0, 1]}},
    )


def test_an_artifact_survives_saving_and_loading(tmp_path: Path) -> None:
    before = artifact()
    after = TruthScores.load(before.save(tmp_path / "a.npz"))
    for name in ("scores", "stderr", "auroc", "train_accuracy", "probe_weight", "probe_bias"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        assert getattr(after, name).dtype == np.float32
    assert after.metadata == {"schema": 1, **before.metadata}
    assert after.fingerprint == before.fingerprint


def test_different_scores_have_different_fingerprints() -> None:
    changed = artifact().scores.copy()
    changed[0, 0] += 1e-6
    assert TruthScores(changed).fingerprint != artifact().fingerprint
    assert TruthScores(artifact().scores.reshape(4, 3)).fingerprint != artifact().fingerprint


def test_a_file_needs_no_pickle(tmp_path: Path) -> None:
    with np.load(artifact().save(tmp_path / "a.npz"), allow_pickle=False) as file:
        assert set(file.files) >= {"scores", "metadata"}


def write_text(path: Path) -> None:
    path.write_text("not an archive")


def write_truncated(path: Path) -> None:
    artifact().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_damaged(path: Path) -> None:
    artifact().save(path)
    data = bytearray(path.read_bytes())
    start = data.index(b"scores.npy") + 200
    data[start : start + 20] = bytes(20)
    path.write_bytes(bytes(data))


def write_pickled_array(path: Path) -> None:
    np.savez(path, scores=np.array([[None, 1]], dtype=object))


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(np.ones((3, 4))))


def write_nan(path: Path) -> None:
    np.savez(path, scores=np.array([[0.5, np.nan]]))


def write_flat(path: Path) -> None:
    np.savez(path, scores=np.ones(12))


def write_other_shape(path: Path) -> None:
    np.savez(path, scores=np.ones((3, 4)), stderr=np.ones((3, 5)))


def write_strings(path: Path) -> None:
    np.savez(path, scores=np.array([["a", "b"]]))


def write_no_scores(path: Path) -> None:
    np.savez(path, weights=np.ones((3, 4)))


def write_control_without_stderr(path: Path) -> None:
    np.savez(path, scores=np.ones((3, 4)), **{"control_no-context": np.ones((3, 4))})


def write_stderr_without_control(path: Path) -> None:
    np.savez(path, scores=np.ones((3, 4)), **{"control_surface_stderr": np.ones((3, 4))})


def write_recommended_text(path: Path) -> None:
    np.savez(path, scores=np.ones((3, 4)), metadata=np.array('{"recommended": "lam=1"}'))


def write_metadata_list(path: Path) -> None:
    np.savez(path, scores=np.ones((3, 4)), metadata=np.array("[1]"))


def write_metadata(path: Path, text: str) -> None:
    np.savez(path, scores=np.ones((3, 4)), metadata=np.array(text))


def write_schema_text(path: Path) -> None:
    write_metadata(path, '{"schema": "1"}')


def write_deep_metadata(path: Path) -> None:
    write_metadata(path, '{"a": ' + "[" * 200_000)


def write_nested_metadata(path: Path) -> None:
    write_metadata(path, '{"a": ' + "[" * 300 + "]" * 300 + "}")


def write_encrypted(path: Path) -> None:
    artifact().save(path)
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := data.find(signature, start + 1)) >= 0:
            data[start + flags] |= 1
    path.write_bytes(bytes(data))


def write_unknown_compression(path: Path) -> None:
    artifact().save(path)
    data = bytearray(path.read_bytes())
    for signature, method in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = -1
        while (start := data.find(signature, start + 1)) >= 0:
            data[start + method] = 99
    path.write_bytes(bytes(data))


def write_bare_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones((3, 4)))


def write_huge_header(path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 4), }"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("scores.npy", content)


def write_future(path: Path) -> None:
    np.savez(path, scores=np.ones((3, 4)), metadata=np.array('{"schema": 99}'))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_text, "cannot be read"),
        (write_truncated, "cannot be read"),
        (write_damaged, "cannot be read"),
        (write_pickled_array, "cannot be read"),
        (write_pickle, "cannot be read"),
        (write_nan, r"NaN or infinite values at .* \[0, 1\]"),
        (write_flat, r"shape \(12,\), expected \[layers, heads\]"),
        (write_other_shape, r"stderr has shape \(3, 5\), scores have \(3, 4\)"),
        (write_strings, "expected numbers"),
        (write_no_scores, "no array 'scores', only"),
        (write_future, "schema 99"),
        (write_control_without_stderr, "control 'no-context' has no array control_no-context_stderr"),
        (write_stderr_without_control, "control 'surface' has no array control_surface:"),
        (write_recommended_text, "the metadata's `recommended` is 'lam=1', expected an object"),
        (write_schema_text, "the metadata's `schema` is '1', expected a number"),
        (write_deep_metadata, "cannot be read"),
        (write_nested_metadata, "the metadata is JSON that is nested too deeply"),
        (write_encrypted, "cannot be read"),
        (write_unknown_compression, "cannot be read"),
        (write_bare_array, "cannot be read"),
        (write_huge_header, "cannot be read"),
        (write_metadata_list, "metadata that are no JSON object, but list"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, write, message: str) -> None:
    path = tmp_path / "bad.npz"
    write(path)
    with pytest.raises(ScoresError, match=message) as caught:
        TruthScores.load(path)
    assert "bad.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_name_list_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match="no score file at"):
        TruthScores.load(tmp_path / "none.npz")
    with pytest.raises(ScoresError, match="shipped artifact"):
        TruthScores.resolve("vicunna")
    with pytest.raises(ScoresError, match=r"hf://owner/repo/file\.npz"):
        TruthScores.resolve("hf://owner/file.npz")


def test_names_resolve_to_shipped_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_module, "shipped", lambda _: tmp_path)
    artifact().save(tmp_path / "tiny.npz")
    monkeypatch.chdir(tmp_path.parent)
    assert TruthScores.resolve("tiny").shape == TruthScores.resolve("tiny.npz").shape == (3, 4)


def test_scores_of_another_architecture_name_both_shapes() -> None:
    with pytest.raises(ScoresError, match="tiny have 3 layers x 4 heads, but big has 32 layers x 32 heads"):
        artifact().check_fits((32, 32), "big")


def test_an_interrupted_save_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact().save(tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        artifact().save(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_csv_with_a_hole_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cv5_head_metrics.csv"
    path.write_text("layer,head,accuracy\n0,0,0.5\n1,1,0.6\n")
    with pytest.raises(ScoresError, match="2 rows do not fill 2 layers x 2 heads"):
        TruthScores.load(path)


def test_the_authors_published_files_load(shared_data: Path) -> None:
    folder = shared_data / "truthprobe" / "scores"
    vicuna = TruthScores.load(folder / "converted_score_cv5_head_metrics_vicuna_halueval_292.npy")
    rerun = TruthScores.load(folder / "vicuna__cv5_head_metrics.csv")
    qwen = TruthScores.load(folder / "converted_score_cv5_head_metrics_qwen2.5_halueval_292.npy")
    assert vicuna.shape == rerun.shape == (32, 32) and qwen.shape == (28, 28)
    # docs/method.md#what-the-released-code-does: mean 0.835 and 0.924, and r = 0.90 between run and rerun.
    assert vicuna.scores.mean() == pytest.approx(0.835, abs=1e-3)
    assert qwen.scores.mean() == pytest.approx(0.924, abs=1e-3)
    assert np.corrcoef(vicuna.scores.ravel(), rerun.scores.ravel())[0, 1] == pytest.approx(0.90, abs=5e-3)


def test_controls_survive_saving_and_loading(tmp_path: Path) -> None:
    controls = {"no-context": np.full((3, 4), 0.5), "surface": np.array([[0.9]])}
    errors = {"no-context": np.full((3, 4), 0.02), "surface": np.full((3, 4), 0.01)}
    before = TruthScores(artifact().scores, controls=controls, control_stderr=errors)
    after = TruthScores.load(before.save(tmp_path / "a.npz"))
    for name in controls:
        np.testing.assert_array_equal(after.controls[name], controls[name].astype(np.float32))
        np.testing.assert_array_equal(after.control_stderr[name], errors[name].astype(np.float32))


CSV = "layer,head,accuracy\n0,0,0.5\n0,1,0.75\n"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_table_is_read_with_a_byte_order_mark_and_without(tmp_path: Path, mark: str) -> None:
    (tmp_path / "a.csv").write_text(mark + CSV, encoding="utf-8")
    assert TruthScores.load(tmp_path / "a.csv").scores.tolist() == [[0.5, 0.75]]


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".csv"])
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_mutated_file_ends_in_scores_or_in_our_error(suffix: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        if suffix == ".csv":
            path.write_text(CSV)
        elif suffix == ".npy":
            np.save(path, np.ones((2, 3)))
        else:
            artifact().save(path)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(content)))
            removed = data.draw(st.sampled_from([0, 1, 1, 4, len(content)]))
            content[start : start + removed] = data.draw(st.binary(max_size=4))
        path.write_bytes(bytes(content))
        try:
            assert TruthScores.load(path).scores.ndim == 2
        except ScoresError as error:
            assert "\n" not in str(error)
