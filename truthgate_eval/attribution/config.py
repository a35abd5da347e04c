"""Which measure of heads is taken, beside the probes'. Nothing here imports torch."""

from __future__ import annotations

from typing import Literal, get_args

# What an artifact's numbers can be, besides a probe's scores (`docs/method.md#kinds-of-score`).
AttributionKind = Literal["gradient", "learned", "divergence", "direct-effect", "copy"]
ATTRIBUTION_KINDS: tuple[AttributionKind, ...] = get_args(AttributionKind)
