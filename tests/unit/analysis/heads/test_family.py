"""Families of artifacts: labels, errors, tables, files, plots, and the published figures."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from helpers.command_line import Done, truthgate
from helpers.leaderboards import printed
from matplotlib.figure import Figure
from PIL import Image

from truthgate_eval.analysis.heads.family import FamilyMember, correlate_family, read_member
from truthgate_eval.analysis.heads.family_plots import heat_maps_figure, matrix_figure, scatter_figure
from truthgate_eval.analysis.heads.family_tables import matrix_tables, members_table, pairs_table
from truthgate_eval.errors import ScoresError, TruthGateError
from truthgate_eval.gating.scores import TruthScores


def member(
    label: str, seed: int, *, family: str | None = None, shape: tuple[int, int] = (4, 6)
) -> FamilyMember:
    scores = np.random.default_rng(seed).uniform(size=shape)
    return FamilyMember(label, family, f"{label}.npz", TruthScores(scores))


def save(path: Path, seed: int = 0, shape: tuple[int, int] = (4, 6), **metadata: object) -> Path:
    return TruthScores(np.random.default_rng(seed).uniform(size=shape), metadata=metadata).save(path)


def run(folder: Path, *arguments: str) -> Done:
    """`truthgate correlate` in a folder, with few permutations."""
    return truthgate("correlate", "--permutations", "99", *arguments, cwd=folder)


# Pearson over all heads and within layers: docs/method.md#what-the-released-code-does.
PUBLISHED = {
    ("vicuna_halueval_292", "llava1.5_rlhfv_2726"): (0.621, 0.549),
    ("vicuna_halueval_292", "llava_next_rlhfv_2726"): (0.639, 0.560),
    ("vicuna_halueval_292", "llama2_halueval_292"): (0.853, 0.835),
    ("llava1.5_rlhfv_2726", "llava_next_rlhfv_2726"): (0.911, 0.881),
    ("qwen2.5_halueval_292", "qwen2.5_vl_instruct_rlhfv_2726"): (0.318, 0.351),
    ("qwen2.5_halueval_292", "qwen2.5_vl_omni_rlhfv_2726"): (0.425, 0.365),
}


@pytest.mark.parametrize(("pair", "expected"), PUBLISHED.items(), ids=map(" - ".join, PUBLISHED))
def test_the_authors_arrays_give_the_known_figures(
    pair: tuple[str, str], expected: tuple[float, float], shared_data: Path
) -> None:
    folder = shared_data / "truthprobe" / "scores"
    members = [read_member(f"{name}={folder}/converted_score_cv5_head_metrics_{name}.npy") for name in pair]
    family = correlate_family(members, permutations=99)
    for scope, value in zip(("all heads", "within layers"), expected, strict=True):
        one = family.pair("pearson", scope, 0, 1)
        assert one.r == pytest.approx(value, abs=1e-3)
        assert one.low < value < one.high and one.p == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("npy", "rerun", "expected"),
    [
        ("vicuna_halueval_292", "vicuna", 0.90),
        ("qwen2.5_halueval_292", "qwen2.5", 0.93),
        ("llava1.5_rlhfv_2726", "llava1.5", None),
        ("llava_next_rlhfv_2726", "llavanxt", None),
        ("qwen2.5_vl_instruct_rlhfv_2726", "qwen2.5_vl_instruct", None),
        ("qwen2.5_vl_omni_rlhfv_2726", "qwen2.5_vl_omni", None),
    ],
)
def test_the_authors_reruns_agree_with_their_first_runs_as_known(
    npy: str, rerun: str, expected: float | None, shared_data: Path
) -> None:
    """292 sequences: r = 0.90 and 0.93, given to two digits. 2,726: 0.994 to 0.999."""
    folder = shared_data / "truthprobe" / "scores"
    files = (f"converted_score_cv5_head_metrics_{npy}.npy", f"{rerun}__cv5_head_metrics.csv")
    members = [read_member(str(folder / file)) for file in files]
    r = correlate_family(members, permutations=9).pair("pearson", "all heads", 0, 1).r
    if expected is None:
        assert 0.9935 <= r <= 0.9995
    else:
        assert r == pytest.approx(expected, abs=0.005)


def test_labels_come_from_the_argument_or_the_file_and_families_from_either_too(tmp_path: Path) -> None:
    stated = save(tmp_path / "llava-1.5.npz", family="Vicuna")
    bare = tmp_path / "scores=bare.npy"
    np.save(bare, np.random.default_rng(1).uniform(size=(4, 6)))
    found = [read_member(argument) for argument in (str(stated), f"A={stated}", f"B/A={stated}", str(bare))]
    assert [(one.label, one.family) for one in found] == [
        ("llava-1.5", "Vicuna"), ("A", "Vicuna"), ("A", "B"), ("scores=bare", None)
    ]  # fmt: skip
    shipped = read_member("smollm2-135m-instruct__halueval-qa")
    assert shipped.label == "smollm2-135m-instruct__halueval-qa" and shipped.scores.shape == (30, 9)
    for wrong in ("A=", f"={stated}"):
        with pytest.raises(TruthGateError, match="expected FILE, NAME=FILE or FAMILY/NAME=FILE"):
            read_member(wrong)


def test_members_of_a_family_are_adjacent_in_the_order_given_and_unknown_families_last() -> None:
    given = [
        member("a", 0),
        member("b", 1, family="X"),
        member("c", 2, family="Y"),
        member("d", 3, family="X"),
    ]
    family = correlate_family(given, permutations=9)
    assert [one.label for one in family.members] == ["b", "d", "c", "a"]
    same = {(one.first, one.second): family.same_family(one) for one in family.correlations}
    assert same == {(0, 1): True, (0, 2): False, (1, 2): False, (0, 3): None, (1, 3): None, (2, 3): None}


def test_the_matrix_is_symmetric_and_has_every_pair_at_its_indices() -> None:
    given = [member(name, seed) for seed, name in enumerate("abc")]
    matrix = correlate_family(given, permutations=9).coefficients("pearson", "all heads")
    np.testing.assert_allclose(matrix, np.corrcoef([one.scores.scores.ravel() for one in given]), atol=1e-6)


def test_different_geometry_is_refused_with_both_names_and_shapes() -> None:
    given = [member("vicuna", 0), member("llava", 1), member("qwen", 2, shape=(5, 7))]
    with pytest.raises(ScoresError, match="qwen has 5 layers x 7 heads, but vicuna has 4 layers x 6 heads"):
        correlate_family(given)


def test_artifacts_that_cannot_be_correlated_are_refused() -> None:
    with pytest.raises(ScoresError, match="two artifacts or more, got 1"):
        correlate_family([member("a", 0)])
    with pytest.raises(ScoresError, match="2 artifacts are called 'a': tell them apart with NAME=FILE"):
        correlate_family([member("a", 0), member("b", 1), member("a", 2)])
    with pytest.raises(ScoresError, match="confidence 95: expected a number between 0 and 1"):
        correlate_family([member("a", 0), member("b", 1)], confidence=95)
    flat = FamilyMember("flat", None, "flat", TruthScores(np.full((4, 6), 0.1)))
    with pytest.raises(ScoresError, match="the scores of flat do not differ between heads"):
        correlate_family([member("a", 0), flat])
    profile = FamilyMember("profile", None, "profile", TruthScores(np.arange(24).reshape(4, 6) // 6))
    with pytest.raises(
        ScoresError, match="the scores of profile do not differ between the heads of any layer"
    ):
        correlate_family([member("a", 0), profile])


def test_a_run_prints_and_writes_everything(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", 0, model="org/a", family="X", site="pre", task="t")
    save(tmp_path / "b.npz", 1, model="org/b", family="X", site="pre")
    np.save(tmp_path / "c.npy", np.random.default_rng(2).uniform(size=(4, 6)))
    (tmp_path / "all.csv").write_text("what was there")
    outputs = ("--csv", "all.csv", "--json", "all.json", "--plot", "m.png", "--heat-maps", "h.pdf")
    done = run(tmp_path, "a.npz", "b.npz", "Y/[c]=c.npy", *outputs)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("org/a", "[c]", "within layers", "Spearman", "95 % interval", "Holm p", "-> all.csv"):
        assert word in done.stdout
    content = json.loads((tmp_path / "all.json").read_text())
    assert content["settings"] == {"permutations": 99, "confidence": 0.95, "seed": 0}
    assert [one["label"] for one in content["members"]] == ["a", "b", "[c]"]
    assert content["members"][0]["sha256"] == TruthScores.load(tmp_path / "a.npz").fingerprint
    rows = list(csv.DictReader(io.StringIO((tmp_path / "all.csv").read_text())))
    assert len(rows) == len(content["correlations"]) == 3 * 4
    for row, one in zip(rows, content["correlations"], strict=True):
        assert (row["first"], row["second"], row["measure"]) == (one["first"], one["second"], one["measure"])
        assert float(row["r"]) == one["r"] and float(row["p_holm"]) == one["p_holm"] >= one["p"]
    assert [row["same_family"] for row in rows[::4]] == ["True", "False", "False"]
    assert Image.open(tmp_path / "m.png").size[0] > 500 and (tmp_path / "h.pdf").read_bytes()[:4] == b"%PDF"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_two_layers_have_no_interval_in_any_output(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", 0, shape=(2, 6))
    save(tmp_path / "b.npz", 1, shape=(2, 6))
    outputs = ("--json", "all.json", "--csv", "all.csv", "--plot", "m.svg", "--scatter", "s.png")
    done = run(tmp_path, "a.npz", "b.npz", *outputs)
    assert (done.returncode, done.stderr) == (0, "")
    one = json.loads((tmp_path / "all.json").read_text())["correlations"][0]
    assert one["low"] is None and one["high"] is None and one["r"] is not None
    assert "nan" not in (tmp_path / "all.csv").read_text()


def test_different_sites_are_a_warning(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", 0, site="pre")
    save(tmp_path / "b.npz", 1, site="post")
    done = run(tmp_path, "a.npz", "b.npz")
    assert done.returncode == 0 and done.stderr.startswith(
        "warning: the artifacts were probed at different sites (a pre, b post)"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.npz",), "a correlation needs two artifacts or more, got 1"),
        (("a.npz", "a.npz"), "2 artifacts are called 'a'"),
        (("a.npz", "no.npz"), "no scores 'no.npz'"),
        (("a.npz", "wide.npz"), "wide has 4 layers x 8 heads, but a has 4 layers x 6 heads"),
        (
            ("a.npz", "b.npz", "--plot", "m.jpg"),
            "m.jpg: expected a file name that ends in .png or .svg or .pdf",
        ),
        (("a.npz", "b.npz", "--json", "no/m.json"), "the folder of no/m.json does not exist"),
        (("a.npz", "b.npz", "c=b.npz", "--scatter", "s.png"), "a scatter plot shows two artifacts, got 3"),
        (("a.npz", "b.npz", "--confidence", "1"), "confidence 1: expected"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    save(tmp_path / "a.npz", 0)
    save(tmp_path / "b.npz", 1)
    save(tmp_path / "wide.npz", 2, shape=(4, 8))
    before = sorted(tmp_path.iterdir())
    done = run(tmp_path, *arguments, "--csv", "all.csv")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", 0)
    save(tmp_path / "b.npz", 1)
    (tmp_path / "m.png").write_text("old")
    with mock.patch("os.replace", side_effect=OSError(28, "No space left on device")):
        done = run(tmp_path, "a.npz", "b.npz", "--plot", "m.png")
    assert done.returncode == 1 and done.stderr == "error: m.png cannot be written: No space left on device\n"
    assert (tmp_path / "m.png").read_text() == "old" and len(list(tmp_path.iterdir())) == 3


def texts(figure: Figure) -> list[str]:
    return [item.get_text() for axes in figure.axes for item in axes.texts]


def test_the_matrix_plot_has_every_coefficient_and_separates_families() -> None:
    given = [member("a", 0, family="X"), member("b", 1, family="X"), member("c", 2, family="Y")]
    family = correlate_family(given, permutations=9)
    figure = matrix_figure(family, "spearman")
    for scope, axes in zip(("all heads", "within layers"), figure.axes, strict=False):
        labels = [item.get_text() for item in axes.texts]
        for one in family.correlations:
            if (one.measure, one.scope) == ("spearman", scope):
                assert labels.count(f"{one.r:.2f}") >= 2
                assert f"{one.low:.2f} to {one.high:.2f}" in labels
        assert [tuple(line.get_ydata()) for line in axes.lines[::2]] == [(1.5, 1.5)]


def test_the_plot_of_a_large_matrix_has_no_intervals() -> None:
    family = correlate_family([member(f"m{i}", i) for i in range(9)], permutations=1)
    assert len(texts(matrix_figure(family, "pearson"))) == 2 * 9 * 8


def test_the_scatter_shows_every_head_in_both_scopes() -> None:
    first, second = member("a", 0), member("b", 1)
    figure = scatter_figure(correlate_family([first, second], permutations=9))
    raw, within = (axes.collections[0].get_offsets() for axes in figure.axes[:2])
    np.testing.assert_allclose(raw[:, 1], second.scores.scores.ravel(), rtol=1e-6)
    centred = first.scores.scores - first.scores.scores.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(within[:, 0], centred.ravel(), atol=1e-6)
    with pytest.raises(TruthGateError, match="two artifacts, got 3"):
        scatter_figure(correlate_family([first, second, member("c", 2)], permutations=9))


def test_heat_maps_show_each_artifact_once_with_its_own_values() -> None:
    given = [member(name, seed) for seed, name in enumerate("abcde")]
    figure = heat_maps_figure(correlate_family(given, permutations=1))
    images = [axes.images[0].get_array() for axes in figure.axes if axes.get_title()]
    for one, image in zip(given, images, strict=True):
        np.testing.assert_array_equal(image, one.scores.scores)


def test_the_terminals_matrix_is_over_all_heads_above_the_diagonal_and_within_layers_under_it() -> None:
    family = correlate_family([member(name, seed) for seed, name in enumerate("abc")], permutations=9)
    [table] = matrix_tables(family, "pearson")
    rows = table.rows(80)
    assert rows[0][3] == f"{family.pair('pearson', 'all heads', 0, 2).r:.3f}"
    assert rows[2][1] == f"{family.pair('pearson', 'within layers', 0, 2).r:.3f}"
    assert [row[0] for row in rows] == ["1 a", "2 b", "3 c"] and rows[1][2] == ""


def test_the_tables_of_one_scope_have_both_measures() -> None:
    family = correlate_family([member(name, seed) for seed, name in enumerate("abc")], permutations=9)
    [matrix] = matrix_tables(family, "pearson", "within layers")
    rows = matrix.rows(80)
    assert rows[0][3] == f"{family.pair('pearson', 'within layers', 0, 2).r:.3f}"
    assert rows[2][1] == f"{family.pair('spearman', 'within layers', 0, 2).r:.3f}"
    pairs = pairs_table(family, "within layers")
    assert [column.header for column in pairs.columns][:3] == ["pair", "measure", "r"]
    values = [f"{one.r:.3f}" for one in family.correlations if one.scope == "within layers"]
    assert [value for row in pairs.rows(80) for value in row[2].split("\n")] == values


def test_in_80_columns_no_name_is_broken_inside_a_word() -> None:
    names = [f"{model}-{task}-{half}" for model in ("base", "child", "permuted") for task in ("halueval", "picture")
             for half in ("a", "b-shuffled_within_layers")]  # fmt: skip
    given = [
        FamilyMember(name, "SmolLM2-135M-Instruct", "x.npz", TruthScores(
            np.random.default_rng(seed).uniform(size=(4, 6)),
            metadata={"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "task": "probe_halueval_qa", "site": "post"},
        ))
        for seed, name in enumerate(names)
    ]  # fmt: skip
    family = correlate_family(given, permutations=9)
    matrix = list(matrix_tables(family, "spearman"))
    assert [len(table.columns) for table in matrix] == [9, 5]
    for table in (members_table(family), *matrix, pairs_table(family)):
        text = printed(table)
        assert "…" not in text and max(map(len, text.splitlines())) <= 80
        for word in ("halueval-", "picture-", "permuted-", "child-", "shuffled_", "layers"):
            assert text.count(word) >= 4, word
    members = printed(members_table(family))
    for word in ("HuggingFaceTB/", "SmolLM2-", "135M-", "Instruct", "probe_", "halueval_", "qa"):
        assert members.count(word) >= len(names), word
    values = [f"{one.r:.3f}" for one in family.correlations if one.measure == "spearman"]
    assert all(value in "".join(map(printed, matrix)) for value in values)


def test_the_command_does_not_import_torch() -> None:
    # Correlating needs a second, not torch's several.
    code = "import sys, truthgate_eval.analysis.heads.family, truthgate_eval.analysis.heads.family_plots; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
