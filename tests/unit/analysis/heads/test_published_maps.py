"""Head maps of several formats and geometries in one command, and the figures of those that are published."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import Done, truthgate

from truthgate_eval.gating.scores import TruthScores


def save(path: Path, seed: int = 0, shape: tuple[int, int] = (4, 6)) -> Path:
    return TruthScores(np.random.default_rng(seed).uniform(size=shape)).save(path)


def run(folder: Path, *arguments: str) -> Done:
    """`truthgate correlate` in a folder, with few permutations."""
    return truthgate("correlate", "--permutations", "99", *arguments, cwd=folder)


# Spearman over all heads and within layers: ../shared/data/heads/README.md. LLaVA-1.5's is from its own data.
MAPS = {
    "Vicuna": "truthprobe/scores/converted_score_cv5_head_metrics_vicuna_halueval_292.npy",
    "LLaVA": "truthprobe/scores/converted_score_cv5_head_metrics_llava1.5_rlhfv_2726.npy",
    "POPE-format": "heads/allpath_coco-adversarial-format.jsonl",
    "POPE-image": "heads/allpath_coco-adversarial-image.jsonl",
    "POPE-choice-image": "heads/allpath_mcq-coco-adversarial-image.jsonl",
    "CHAIR-image": "heads/allpath_chair-image.jsonl",
    "Llama-2-copying": "heads/retrieval_llama-2-7b-hf.json",
    "AD-HH": "heads/adhh_llava-1.5-7b.json",
    "Qwen2.5": "truthprobe/scores/converted_score_cv5_head_metrics_qwen2.5_halueval_292.npy",
    "Qwen2-copying": "heads/retrieval_qwen2-7b-instruct.json",
}
KNOWN_MAPS = {
    ("Vicuna", "POPE-format"): (0.02, -0.04),
    ("Vicuna", "POPE-image"): (-0.03, 0.07),
    ("Vicuna", "CHAIR-image"): (0.30, 0.28),
    ("Vicuna", "Llama-2-copying"): (-0.22, -0.25),
    ("LLaVA", "Llama-2-copying"): (-0.24, -0.32),
    ("POPE-image", "POPE-choice-image"): (0.90, 0.86),
    ("Qwen2.5", "Qwen2-copying"): (-0.42, -0.38),
}


def test_published_maps_give_the_known_figures_in_one_command(shared_data: Path, tmp_path: Path) -> None:
    files = [f"{name}={shared_data / file}" for name, file in MAPS.items()]
    done = run(tmp_path, *files, "--shape", "32x32", "--heads", "within-layers", "--json", "all.json")
    assert done.returncode == 0
    rows = json.loads((tmp_path / "all.json").read_text())["correlations"]
    found = {
        (row["first"], row["second"], row["scope"]): row["r"] for row in rows if row["measure"] == "spearman"
    }
    for pair, expected in KNOWN_MAPS.items():
        for scope, value in zip(("all heads", "within layers"), expected, strict=True):
            assert found[(*pair, scope)] == pytest.approx(value, abs=0.005), (pair, scope)
    # 28 pairs of the eight maps of 32 x 32 heads, and one of the two of 28 x 28.
    assert len(found) == 2 * 29 and not any("Qwen" in a and "Qwen" not in b for a, b, _ in found)
    assert done.stderr.splitlines()[0] == (
        "warning: heads of different architectures cannot be paired, so each is compared by itself "
        "(32 layers x 32 heads: 8 artifacts; 28 layers x 28 heads: 2 artifacts)"
    )
    for name in ("Llama-2-copying", "AD-HH", "Qwen2-copying"):
        assert f"of the heads of {name} have one score, 0" in done.stderr
    assert f"{found['LLaVA', 'Llama-2-copying', 'within layers']:.3f}" in done.stdout


def test_each_geometry_is_compared_by_itself_and_a_lone_artifact_is_named(tmp_path: Path) -> None:
    for number, (name, shape) in enumerate({"a": (4, 6), "x": (5, 7), "b": (4, 6), "c": (3, 2)}.items()):
        save(tmp_path / f"{name}.npz", number, shape=shape)
    save(tmp_path / "y.npz", 9, shape=(5, 7))
    files = [f"{name}.npz" for name in "axbcy"]
    done = run(tmp_path, *files, "--csv", "all.csv", "--json", "all.json")
    assert done.returncode == 0
    assert done.stderr == (
        "warning: heads of different architectures cannot be paired, so each is compared by itself "
        "(4 layers x 6 heads: 2 artifacts; 5 layers x 7 heads: 2 artifacts; 3 layers x 2 heads: only c)\n"
    )
    rows = list(csv.DictReader(io.StringIO((tmp_path / "all.csv").read_text())))
    assert [(row["first"], row["second"]) for row in rows[::4]] == [("a", "b"), ("x", "y")]
    members = json.loads((tmp_path / "all.json").read_text())["members"]
    assert [one["label"] for one in members] == ["a", "b", "x", "y"]
    assert "4 layers x 6 heads" in done.stdout and "5 layers x 7 heads" in done.stdout
    refused = run(tmp_path, *files, "--plot", "m.png")
    assert (
        refused.returncode == 1
        and "a plot shows artifacts of one geometry, and these have 2" in refused.stderr
    )
    one_geometry = run(tmp_path, "a.npz", "b.npz", "c.npz", "--plot", "m.png")
    assert one_geometry.returncode == 0 and (tmp_path / "m.png").is_file()
    assert run(tmp_path, "a.npz", "b.npz", "c.npz", "--scatter", "s.png").returncode == 1


def test_a_list_of_heads_takes_its_shape_from_the_command(tmp_path: Path) -> None:
    save(tmp_path / "a.npz")
    (tmp_path / "list.json").write_text("[[0, 1], [2, 5, -1]]")
    done = run(tmp_path, "a.npz", "list.json")
    assert done.returncode == 1 and "--shape LAYERSxHEADS" in done.stderr
    done = run(tmp_path, "a.npz", "list.json", "--shape", "4x6", "--json", "all.json")
    assert done.returncode == 0 and "92% of the heads of list have one score, 0" in done.stderr
    assert json.loads((tmp_path / "all.json").read_text())["members"][1]["kind"] == "head list"
    refused = run(tmp_path, "a.npz", "list.json", "--shape", "4")
    assert refused.stderr == "error: --shape 4: expected LAYERSxHEADS, such as 32x32\n"
