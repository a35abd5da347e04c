"""The heat map's file: the format of its suffix, atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from truthgate_eval.analysis.heads.heat_map import measured_quantity, save_heat_map
from truthgate_eval.errors import ScoresError, TruthGateError
from truthgate_eval.gating.scores import TruthScores

SCORES = TruthScores(np.linspace(0.5, 0.9, 12).reshape(3, 4))


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_the_heat_map_has_the_format_of_its_suffix(suffix: str, start: bytes, tmp_path: Path) -> None:
    save_heat_map(SCORES, tmp_path / f"map{suffix}")
    assert (tmp_path / f"map{suffix}").read_bytes().startswith(start)


def test_a_failed_write_leaves_the_old_heat_map(tmp_path: Path) -> None:
    (tmp_path / "map.png").write_text("old")
    with (
        mock.patch("os.replace", side_effect=OSError(28, "No space left on device")),
        pytest.raises(TruthGateError, match=r"map\.png cannot be written: No space left on device"),
    ):
        save_heat_map(SCORES, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_an_unknown_format_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match="cannot be written to") as caught:
        save_heat_map(SCORES, tmp_path / "map.doc")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metadata", "label"),
    [({}, "truth score"), ({"score": "auroc"}, "AUROC"), ({"probe": {}}, "validation accuracy"),
     ({"kind": "gradient", "score": "gradient"}, "gradient"), ({"kind": "retrieval"}, "retrieval")],
)  # fmt: skip
def test_plots_say_what_the_numbers_are(metadata: dict[str, Any], label: str) -> None:
    assert measured_quantity(TruthScores(SCORES.scores, metadata=metadata)) == label
