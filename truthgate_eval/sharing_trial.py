"""Whether a model can share prefixes: found by trying, against its own plain pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from truthgate_eval.prefix_tree import Group, Row

if TYPE_CHECKING:
    from truthgate_eval.forward import TreeForward
    from truthgate_eval.key_store import KeyStore


def attempt(check: Callable[[], str | None]) -> str | None:
    """What a check found, or how it failed: a model's code may fail in any way on what it does not know."""
    try:
        return check()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def difference(forward: TreeForward) -> str | None:
    """How rows, rows behind a trunk, and a decoded token differ from the plain model; None if they agree."""
    row, plain = forward.trial()
    half = len(row.prefix) // 2
    trunk = forward.trunk(Group(row.prefix[:half], ()))
    behind = Row(row.prefix[half:], row.branches, row.members)
    for kind, run in (
        ("rows", lambda: _last_logits(forward, row, None)),
        ("a trunk", lambda: _last_logits(forward, behind, trunk)),
        ("decoding", lambda: decoded(forward, behind, trunk, apart=False)),
        ("decoding in lanes of their own", lambda: decoded(forward, behind, trunk, apart=True)),
    ):
        far = too_far(run(), plain, forward.dtype)
        if far is not None:
            return f"with {kind}, {far}"
    return None


def too_far(logits: torch.Tensor, plain: torch.Tensor, dtype: torch.dtype) -> str | None:
    """None if logits are the plain model's up to rounding, else by how much they are not.

    Args:
        logits: [n, vocabulary] after n sequences that end in one token.
        plain: The plain model's, float32: how far they are apart is what mask and positions must keep.
        dtype: What the model computes in.
    """
    allowed = 0.1 * (plain[0] - plain[1]).abs().max()
    if dtype == torch.float32:
        allowed = torch.minimum(allowed, 1e-4 * plain.abs().max())
    error = (logits.float() - plain).abs().max()
    if error <= allowed:
        return None
    return f"logits differ by {error:.1e} from the plain model's (allowed {allowed:.1e})"


def _last_logits(forward: TreeForward, row: Row, trunk: KeyStore | None) -> torch.Tensor:
    """Logits after each branch, in a lane that a short row shares."""
    rows = [row, Row((), (row.branches[0][:3],), (2,))]
    batch = forward.batch(rows, trunk)
    return forward.logits(batch, *batch.lasts(rows), trunk)[:2]


def decoded(forward: TreeForward, row: Row, trunk: KeyStore | None, *, apart: bool) -> torch.Tensor:
    """Logits after the branches' last token where it is decoded, and not part of the row."""
    assert trunk is not None
    rows = [Row(row.prefix, tuple(branch[:-1] for branch in row.branches), row.members)]
    store = trunk.behind()
    batch = forward.batch(rows, trunk)
    forward.run(batch, store)
    store.take_up(batch, rows)
    if apart:
        store.spread()
    return forward.step(store, [branch[-1] for branch in row.branches])


def drawn(model: Any) -> tuple[Row, list[list[int]]]:
    """A row of two branches of different length that end in one token; the two sequences."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(min(3, vocabulary - 1), vocabulary, (36,), generator=generator).tolist()
    prefix, first, second = draw[:16], draw[16:30], draw[30:]
    second[-1] = first[-1]
    row = Row(tuple(prefix), (tuple(first), tuple(second)), (0, 1))
    return row, [prefix + first, prefix + second]


def plainly(forward: TreeForward, sequence: list[int]) -> torch.Tensor:
    """The plain model's last logits after a sequence, float32 [vocabulary]."""
    with torch.no_grad():
        tokens = torch.tensor([sequence], device=forward.device)
        return forward.model(input_ids=tokens, use_cache=False).logits[0, -1].float()
