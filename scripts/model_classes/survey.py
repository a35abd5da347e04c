"""What is found and gated in one model class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
import transformers
from transformers.models.auto import modeling_auto

from scripts.model_classes.reference_gates import (
    kept_weights,
    normalizes_after_attention,
    scaled_heads,
    scaled_weights,
)
from scripts.model_classes.tiny_models import VOCABULARY, tiny_model
from truthgate_eval.errors import TruthGateError, one_line, reason_of
from truthgate_eval.gating.attention_layout import SITES, AttentionLayout, Site, find_attention_layout
from truthgate_eval.gating.gate import Gate, attach, fold

Kind = Literal["text", "image-text"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_NAMES: dict[Kind, Any] = {
    "text": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "image-text": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
}
_MAX_REASON = 200  # characters


@dataclasses.dataclass
class Row:
    """What was found out about one class.

    Attributes:
        name: The class.
        projection: Path below the decoder of the first gated projection, or "".
        layers: `attention layers of layers`, or "".
        heads: Heads of a layer, or "".
        sites: For each site `equal`, `refused`, or what was found instead.
        note: Why the class or a site is refused, or why the class was not built.
    """

    name: str
    projection: str = ""
    layers: str = ""
    heads: str = ""
    sites: dict[Site, str] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def result(self) -> str:
        """`gated`, `refused`, `not built`, or `wrong`."""
        if self.sites:
            good = all(found.startswith(("equal", "refused")) for found in self.sites.values())
            return "gated" if good else "wrong"
        return next((result for result in ("refused", "not built") if self.note.startswith(result)), "wrong")


def class_names(kind: Kind) -> Iterator[str]:
    """The classes of a kind; one that is also of an earlier kind is left out."""
    earlier = {name for other in KINDS[: KINDS.index(kind)] for name in _NAMES[other].values()}
    yield from sorted(set(_NAMES[kind].values()) - earlier)


def examine(name: str) -> Row:
    """Everything about one class; no exception leaves it."""
    row = Row(name)
    try:
        model = tiny_model(getattr(transformers, name))
    except Exception as error:  # whatever a class wants beside small sizes
        row.note = f"not built: {_short(f'{type(error).__name__}: {one_line(error)}')}"
        return row
    try:
        layout = find_attention_layout(model)
    except TruthGateError as error:
        row.note = f"refused: {_short(one_line(error))}"
        return row
    except Exception as error:
        row.note = f"RAW {reason_of(error)}"
        return row
    row.projection = layout.projections[0].name
    row.layers = f"{layout.num_layers} of {len(layout.layers)}"
    row.heads = str(layout.num_heads)
    for site in SITES:
        try:
            layout.head_widths(site)
            row.sites[site] = compare(model, layout, site)
        except TruthGateError as error:
            row.sites[site], row.note = "refused", _short(one_line(error))
        except Exception as error:
            row.sites[site] = f"RAW {reason_of(error)}"
    return row


def compare(model: Any, layout: AttentionLayout, site: Site) -> str:
    """Hold the live and the folded gate beside gates from scratch.

    Returns:
        `equal`: both equal a gate in the weights and, at `pre`, one in the class's attention function.
        `equal (weights)`: the class has no such function. `equal (norm)`: a normalization lies between that
        function and W_o, and the gate acts after it. Anything else is a fault.
    """
    values = np.random.default_rng(0).uniform(0.5, 1.5, layout.shape).astype(np.float32)
    gate = Gate(values, site)
    plain = _hidden_states(layout)
    with attach(model, gate, layout=layout):
        live = _hidden_states(layout)
    if torch.equal(plain, live):
        return "the gate changes nothing"
    with kept_weights(layout):
        fold(model, gate, layout=layout)
        folded = _hidden_states(layout)
    with scaled_weights(layout, gate):
        reference = _hidden_states(layout)
    tolerance = 1e-4 * float(plain.abs().max())
    for what, found in (("live", live), ("folded", folded)):
        if (found - reference).abs().max() > tolerance:
            return f"{what} gate differs from scaled weights by {float((found - reference).abs().max()):.1e}"
    if site == "post":
        return "equal"
    with scaled_heads(layout, gate) as scaled:
        in_attention = _hidden_states(layout)
    if len(scaled) != layout.num_layers:
        return "equal (weights)"
    if (live - in_attention).abs().max() <= tolerance:
        return "equal"
    if normalizes_after_attention(layout, lambda: _hidden_states(layout)):
        return "equal (norm)"
    return f"heads differ by {float((live - in_attention).abs().max()):.1e}"


def _hidden_states(layout: AttentionLayout) -> torch.Tensor:
    """[2, 7, hidden size]; what the decoder makes of random text."""
    tokens = torch.randint(6, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden: torch.Tensor = layout.decoder(input_ids=tokens, use_cache=False)[0]
    return hidden


def _short(reason: str) -> str:
    """A reason without the words that all errors of a kind share, at most `_MAX_REASON` characters."""
    for words in ("StrictDataclassClassValidationError: ", "Class validation error for validator "):
        reason = reason.replace(words, "")
    return reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]}..."
