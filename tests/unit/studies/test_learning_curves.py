"""studies/make_learning_curves.py: which documents a point is fitted on, and what is made of the rows."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.probing.capture import capture
from truthgate_eval.probing.folds import make_folds

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "studies"))  # scripts, which import each other by name

import learning_curves  # noqa: E402
import make_learning_curves as study  # noqa: E402

DOCUMENTS, N, HEAD = 30, 12, (1, 2)
# What is fitted if the curve has 12 and 20 documents: of 30, 20 would share some with the last 12.
PARTS = [
    ("pre", "first", N),
    ("pre", "first", 20),
    ("pre", "last", N),
    ("post", "first", N),
    ("post", "last", N),
]
# Two sequences a document, as far apart as can be; three documents a cluster.
GROUPS = [*range(DOCUMENTS), *range(DOCUMENTS)]
CLUSTERS = [f"image {group // 3}" for group in GROUPS]
LABELS = np.array([1] * DOCUMENTS + [0] * DOCUMENTS)
TOKENS = torch.randint(3, 90, (len(GROUPS), 6), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_models.tiny_model("llama")


@pytest.fixture(scope="module")
def captured(model: Any) -> learning_curves.Captured:
    places = learning_curves.random_places(GROUPS, CLUSTERS, seed=7)
    return learning_curves.Captured(capture(model, TOKENS, site="pre"), LABELS, places)


def first_documents() -> list[int]:
    """The first N documents of the seed's order, worked out by hand."""
    clusters = np.random.default_rng(7).permutation(DOCUMENTS // 3)  # the place of each cluster
    return [
        document for place in range(N // 3) for document in _of_cluster(int((clusters == place).argmax()))
    ]


def _of_cluster(cluster: int) -> list[int]:
    return [3 * cluster, 3 * cluster + 1, 3 * cluster + 2]


def test_a_point_has_the_first_documents_of_a_seeded_order(model: Any, captured: Any) -> None:
    part = captured.part(0, N)
    chosen = [row for document in first_documents() for row in (document, DOCUMENTS + document)]
    assert len(chosen) == 2 * N and chosen != sorted(chosen)
    alone = capture(model, [TOKENS[row] for row in chosen], site="pre")
    np.testing.assert_allclose(part.activations, alone, atol=1e-5)
    assert part.labels.tolist() == LABELS[chosen].tolist()
    assert part.places.tolist() == np.repeat(np.arange(N), 2).tolist()
    last = captured.part(DOCUMENTS - N, DOCUMENTS)
    assert last.documents == part.documents == N
    assert not {row.tobytes() for row in last.activations} & {row.tobytes() for row in part.activations}


def test_documents_stay_with_their_cluster_and_another_seed_is_another_order(captured: Any) -> None:
    assert sorted(captured.places.tolist()) == sorted([*range(DOCUMENTS)] * 2)
    assert captured.places[:DOCUMENTS].tolist() == captured.places[DOCUMENTS:].tolist()
    of_cluster = captured.places[:DOCUMENTS].reshape(-1, 3)
    assert (np.diff(of_cluster, axis=1) == 1).all()
    other = learning_curves.random_places(GROUPS, CLUSTERS, seed=8)
    assert other.tolist() != captured.places.tolist()


@pytest.mark.parametrize("features", learning_curves.FEATURES)
@pytest.mark.parametrize("solver", learning_curves.SOLVERS)
def test_a_point_equals_a_fit_of_one_head_from_scratch(captured: Any, features: str, solver: Any) -> None:
    rows = [row for document in first_documents() for row in (document, DOCUMENTS + document)]
    x, y = captured.activations[rows, HEAD[0], HEAD[1]].astype(np.float64), LABELS[rows]
    if features == "standardised":
        x = StandardScaler().fit_transform(x)
    scorer = _newton_accuracy if solver == "newton" else _adamw_accuracy
    folds = make_folds(np.repeat(np.arange(N), 2), seed=42)
    expected = np.mean([scorer(x, y, train, validation) for train, validation in folds])
    found = learning_curves.fit(captured.part(0, N), features=features, solver=solver)
    assert found["scores"][HEAD[0]][HEAD[1]] == pytest.approx(expected, abs=1e-5)
    assert found["mean"] == pytest.approx(np.mean(found["scores"]), abs=1e-5)
    assert found["best"] == np.max(found["scores"]) and set(found["reliability"]) == {"all", "within"}


def _newton_accuracy(x: Any, y: Any, train: Any, validation: Any) -> float:
    return float(LogisticRegression(tol=1e-10).fit(x[train], y[train]).score(x[validation], y[validation]))


def _adamw_accuracy(x: Any, y: Any, train: Any, validation: Any) -> float:
    features, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    theta = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.AdamW([theta], lr=1e-2, weight_decay=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        logits = features[train] @ theta[:-1] + theta[-1]
        torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[train]).backward()
        optimizer.step()
    logits = features[validation] @ theta[:-1] + theta[-1]
    return float(((logits > 0) == (labels[validation] == 1)).float().mean())


def test_the_outputs_of_the_projection_are_those_that_a_capture_reads(model: Any, captured: Any) -> None:
    found = learning_curves.projected(captured.activations, find_attention_layout(model))
    np.testing.assert_allclose(found, capture(model, TOKENS, site="post"), atol=1e-5)


def test_a_feature_that_never_changes_becomes_zero() -> None:
    x = np.array([[3.0, 1.0], [3.0, 5.0]], dtype=np.float32)[:, None, None]
    assert learning_curves.standardised(x)[:, 0, 0].tolist() == [[0.0, -1.0], [0.0, 1.0]]


@pytest.fixture(scope="module")
def source(model: Any, captured: Any) -> study.Source:
    return study.Source(
        "Tiny", lambda _: (captured, find_attention_layout(model)), DOCUMENTS, (N, 20), last=N
    )


@pytest.fixture(scope="module")
def measured(source: study.Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All rows of the tiny source, as they are in the file."""
    file = tmp_path_factory.mktemp("rows") / "rows.json"
    study.measure("tiny", source, study.open_results(file, study.settings({"tiny": source})), file)
    rows: dict[str, Any] = json.loads(file.read_text())
    return rows


def test_only_missing_rows_are_fitted(source: study.Source, measured: dict[str, Any], tmp_path: Path) -> None:
    parts = [(row["site"], row["part"], row["documents"]) for row in measured["rows"][::4]]
    assert parts == PARTS and len(measured["rows"]) == 4 * len(PARTS)
    file, whole = tmp_path / "rows.json", {**measured, "rows": list(measured["rows"])}
    lost = whole["rows"].pop(-1)
    file.write_text(json.dumps(whole))
    results = study.open_results(file, whole["settings"])
    study.measure("tiny", source, results, file)
    assert results["rows"][:-1] == whole["rows"]
    assert {**results["rows"][-1], "seconds": lost["seconds"]} == lost

    def load(_: int) -> Any:
        raise AssertionError("nothing is missing")

    study.measure("tiny", replace(source, load=load), results, file)


def test_rows_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(study.dump({"settings": {"seed": 0, "machine": "here"}, "rows": []}))
    assert study.open_results(file, {"seed": 0, "machine": "here"})["rows"] == []
    with pytest.raises(SystemExit, match=r"made with other machine: delete it"):
        study.open_results(file, {"seed": 0, "machine": "there"})


def test_the_page_gets_the_tables_and_keeps_its_text(
    source: study.Source, measured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "TITLES", {"tiny": source.title})
    study.write_page(measured, tmp_path)
    page = (tmp_path / "sample-size.md").read_text(encoding="utf-8")
    original = (ROOT / "docs" / "sample-size.md").read_text(encoding="utf-8")
    assert page.split(study.BEGIN)[0] == original.split(study.BEGIN)[0]
    assert page.split(study.END)[1] == original.split(study.END)[1]
    lines = {tuple(cells[1:5]): cells for cells in map(_cells, page.splitlines()) if len(cells) == 12}
    row, last = (
        next(row for row in measured["rows"] if row["part"] == part and row["site"] == "pre")
        for part in ("first", "last")
    )
    one, other = (
        np.array(each["scores"]) - np.mean(each["scores"], axis=1, keepdims=True) for each in (row, last)
    )
    r = np.corrcoef(one.ravel(), other.ravel())[0, 1]
    assert lines["pre", "raw", "adamw", "12"][8] == f"{r:.2f}"
    assert lines["pre", "raw", "adamw", "20"][8:10] == ["", ""]  # shares documents with the last ones
    assert (tmp_path / "images" / "sample-size.png").stat().st_size > 10_000


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


def test_the_page_has_the_tables_of_its_data() -> None:
    page = (ROOT / "docs" / "sample-size.md").read_text(encoding="utf-8")
    block = page.split(study.BEGIN)[1].split(study.END)[0]
    file = ROOT / "docs" / "sample-size.json"
    measured = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    assert block == (study.tables(measured, study.TITLES) if measured else "")
