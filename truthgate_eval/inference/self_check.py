"""Whether a model can share prefixes: found by trying, against its own plain pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from truthgate_eval.inference.prefix_plan import Group, Row

if TYPE_CHECKING:
    from truthgate_eval.inference.kv_cache import KeyStore
    from truthgate_eval.inference.shared_prefix import TreeForward


T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """What shared prefixes are held against.

    Attributes:
        row: Two branches that end in one token.
        plain: The plain model's last logits after each, alone: float32 [2, vocabulary].
        rounding: How far these are from the plain model's own in padded batches.
    """

    row: Row
    plain: torch.Tensor
    rounding: float


def attempt(check: Callable[[], str | None]) -> str | None:
    """What a check found, or how it failed: a model's code may fail in any way on what it does not know."""
    try:
        return check()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def difference(forward: TreeForward) -> str | None:
    """How rows, rows behind a trunk, and a decoded token differ from the plain model; None if they agree."""
    trial = forward.trial()
    row = trial.row
    half = len(row.prefix) // 2
    trunk = forward.trunk(Group(row.prefix[:half], ()))
    behind = Row(row.prefix[half:], row.branches, row.members)
    for kind, run in (
        ("rows", lambda: _last_logits(forward, row, None)),
        ("a trunk", lambda: _last_logits(forward, behind, trunk)),
        ("decoding", lambda: decoded(forward, behind, trunk, apart=False)),
        ("decoding in lanes of their own", lambda: decoded(forward, behind, trunk, apart=True)),
    ):
        far = too_far(run(), trial.plain, trial.rounding, forward.dtype)
        if far is not None:
            return f"with {kind}, {far}"
    return None


def too_far(logits: torch.Tensor, plain: torch.Tensor, rounding: float, dtype: torch.dtype) -> str | None:
    """None if logits are the plain model's up to rounding, else by how much they are not.

    In half precision a model's own batches round as much as a wrong mask may show, the more so under a
    gate: what its own padded batches do, twice over, is no sign of one.

    Args:
        logits: [n, vocabulary] after n sequences that end in one token.
        plain: The plain model's, float32: how far they are apart is what mask and positions must keep.
        rounding: How far the plain model's own padded batches are from `plain`.
        dtype: What the model computes in.
    """
    apart = float((plain[0] - plain[1]).abs().max())
    if dtype == torch.float32:
        allowed = min(0.1 * apart, 1e-4 * float(plain.abs().max()))
    else:
        allowed = max(0.1 * apart, min(2 * rounding, 0.5 * apart))
    error = float((logits.float() - plain).abs().max())
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


def plainly(forward: TreeForward, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """The plain model's last logits after sequences in one padded batch, float32 [n, vocabulary]."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(own) for own in sequences], batch_first=True)
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        found = forward.model(
            input_ids=tokens.to(forward.device), attention_mask=mask.to(forward.device), use_cache=False
        )
    return found.logits[torch.arange(len(lengths)), lengths - 1].float()


def alone_and_rounding(
    plain: Callable[[Sequence[T]], torch.Tensor], asked: Sequence[T], longer: T, dtype: torch.dtype
) -> tuple[torch.Tensor, float]:
    """The plain model's logits after each by itself, and how far its padded batches are from them.

    Args:
        plain: Last logits of a batch, float32 [n, vocabulary].
        asked: What is asked.
        longer: Something longer, beside which these are padded.
        dtype: What the model computes in; of float32 no rounding is asked, and 0 is given.
    """
    alone = torch.cat([plain([one]) for one in asked])
    if dtype == torch.float32:
        return alone, 0.0
    batches = plain(asked), plain([*asked, longer])[: len(asked)]
    return alone, max(float((batch - alone).abs().max()) for batch in batches)
