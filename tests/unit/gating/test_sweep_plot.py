"""The chart of a sweep: its lines, the vanilla model and the marked choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from truthgate_eval.gating.sweep import Candidate
from truthgate_eval.gating.sweep_plot import make_sweep_chart, save_sweep_plot

VANILLA = Candidate(0.0, "centered", "post", 0.5, 0.02, 100)
GATED = [
    Candidate(2.0, "minmax", "post", 0.4, 0.02, 100),
    Candidate(1.0, "minmax", "post", 0.45, 0.02, 100),
    Candidate(1.0, "centered", "pre", 0.6, None, 100),
]


def test_a_chart_has_a_line_for_each_norm_and_site_and_the_vanilla_model_in_none() -> None:
    chart = make_sweep_chart([VANILLA, *GATED], GATED[2])
    assert chart.vanilla == [VANILLA] and chart.chosen is GATED[2]
    assert chart.lines == {"minmax, post": [GATED[1], GATED[0]], "centered, pre": [GATED[2]]}


@pytest.mark.parametrize("chosen", [VANILLA, GATED[2]])
def test_the_choice_is_marked_whether_it_is_gated_or_vanilla(
    chosen: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    save_sweep_plot([VANILLA, *GATED], chosen, "acc", "t", tmp_path / "p.png")
    [rings] = [line for line in figures[0].axes[0].lines if line.get_label() == "chosen"]
    assert np.array(rings.get_xydata()).tolist() == [[chosen.lam, chosen.value]]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
