"""The gates of one kind and every strength: lam of a factor on heads, alpha of a shift; 0 changes nothing.

A source is truth scores, or the seed of a random gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import Site
from truthgate_eval.gating.gate import Gate, make_gate, random_gate
from truthgate_eval.gating.normalization import Norm
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.selection import HeadSelection, random_selection_gate, select_gate
from truthgate_eval.gating.shift import HeadShift, shift_gate

GateOfStrength = Callable[[float], Gate]


def soft_gates(
    source: TruthScores | int, shape: tuple[int, int], *, norm: Norm, site: Site, layers: Sequence[int] | None
) -> GateOfStrength:
    """The gates g = 1 + lam * norm(S), or 1 + lam * u with the random gate's u, uniform on [-1, 1].

    Args:
        source: Scores, or a seed.
        shape: (layers, heads) of the model.
        norm: Normalization of scores.
        site: As in `make_gate`.
        layers: As in `make_gate`.

    Raises:
        GateError: The model has no such layers.

    Example:
        >>> gates = soft_gates(1, (2, 2), norm="centered", site="post", layers=None)
        >>> gates(0.0).values.tolist(), bool((gates(1.0).values == random_gate((2, 2), seed=1).values).all())
        ([[1.0, 1.0], [1.0, 1.0]], True)
    """
    if isinstance(source, TruthScores):
        return lambda lam: make_gate(source, lam=lam, norm=norm, site=site, layers=layers)
    return _multiples(random_gate(shape, seed=source, site=site, layers=layers))


def selected_gates(
    source: TruthScores | int,
    selection: HeadSelection,
    shape: tuple[int, int],
    *,
    site: Site,
    layers: Sequence[int] | None,
) -> GateOfStrength:
    """The gates g = 1 + lam * (factor - 1), with the selection's factors.

    Args:
        source: Scores, or a seed.
        selection: How many heads, and their factors.
        shape: (layers, heads) of the model.
        site: As in `make_gate`.
        layers: As in `make_gate`.

    Raises:
        GateError: There are fewer heads than are to be selected.
    """
    if isinstance(source, TruthScores):
        return _multiples(select_gate(source, selection, site=site, layers=layers))
    return _multiples(random_selection_gate(shape, selection, seed=source, site=site, layers=layers))


def shifted_gates(
    source: TruthScores | int, shift: HeadShift, *, layers: Sequence[int] | None
) -> GateOfStrength:
    """Shifts by alpha * sigma * direction.

    Args:
        source: Scores with directions.
        shift: How many heads, and along which direction; its own alpha is not read.
        layers: As in `shift_gate`.

    Raises:
        GateError: The scores have no such directions, or are a seed.
    """
    if not isinstance(source, TruthScores):
        raise GateError("a random gate has no directions to shift heads along")
    return lambda alpha: shift_gate(source, replace(shift, alpha=alpha), layers=layers)


def _multiples(gate: Gate) -> GateOfStrength:
    """Multiples of a gate's change, g = 1 + lam * (values - 1): the gate itself at lam = 1."""
    change = gate.values.astype(np.float64) - 1.0
    return lambda lam: replace(gate, values=(1.0 + lam * change).astype(np.float32))
