"""Whether a model can share prefixes: found by trying, against its own plain pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from truthgate_eval.inference.prefix_plan import PackedPrompt, PrefixGroup

if TYPE_CHECKING:
    from truthgate_eval.inference.kv_cache import SharedPrefixCache
    from truthgate_eval.inference.shared_prefix import SharedPrefixModel


T = TypeVar("T")


@dataclass(frozen=True)
class ReferenceLogits:
    """What shared prefixes are held against.

    Attributes:
        row: Two branches that end in one token.
        plain: The plain model's last logits after each, alone: float32 [2, vocabulary].
        rounding: How far these are from the plain model's own in padded batches.
    """

    prompt: PackedPrompt
    logits: torch.Tensor
    rounding: float


def run_safely(check: Callable[[], str | None]) -> str | None:
    """What a check found, or how it failed: a model's code may fail in any way on what it does not know."""
    try:
        return check()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def find_mismatch(forward: SharedPrefixModel) -> str | None:
    """How rows, rows behind a trunk, and a decoded token differ from the plain model; None if they agree."""
    trial = forward.make_reference()
    row = trial.prompt
    half = len(row.prefix) // 2
    trunk = forward.compute_prefix(PrefixGroup(row.prefix[:half], ()))
    behind = PackedPrompt(row.prefix[half:], row.suffixes, row.sequence_ids)
    for kind, run in (
        ("rows", lambda: _last_logits(forward, row, None)),
        ("a trunk", lambda: _last_logits(forward, behind, trunk)),
        ("decoding", lambda: decoded_logits(forward, behind, trunk, unpacked=False)),
        ("decoding in lanes of their own", lambda: decoded_logits(forward, behind, trunk, unpacked=True)),
    ):
        far = mismatch(run(), trial.logits, trial.rounding, forward.dtype)
        if far is not None:
            return f"with {kind}, {far}"
    return None


def mismatch(logits: torch.Tensor, plain: torch.Tensor, rounding: float, dtype: torch.dtype) -> str | None:
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


def _last_logits(
    forward: SharedPrefixModel, row: PackedPrompt, trunk: SharedPrefixCache | None
) -> torch.Tensor:
    """Logits after each branch, in a lane that a short row shares."""
    rows = [row, PackedPrompt((), (row.suffixes[0][:3],), (2,))]
    batch = forward.pack(rows, trunk)
    return forward.logits(batch, *batch.last_tokens(rows), trunk)[:2]


def decoded_logits(
    forward: SharedPrefixModel, row: PackedPrompt, trunk: SharedPrefixCache | None, *, unpacked: bool
) -> torch.Tensor:
    """Logits after the branches' last token where it is decoded, and not part of the row."""
    assert trunk is not None
    rows = [PackedPrompt(row.prefix, tuple(branch[:-1] for branch in row.suffixes), row.sequence_ids)]
    store = trunk.fork()
    batch = forward.pack(rows, trunk)
    forward.run(batch, store)
    store.assign_sequences(batch, rows)
    if unpacked:
        store.unpack()
    return forward.decode_step(store, [branch[-1] for branch in row.suffixes])


def make_test_prompts(model: Any) -> tuple[PackedPrompt, list[list[int]]]:
    """A row of two branches of different length that end in one token; the two sequences."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(min(3, vocabulary - 1), vocabulary, (36,), generator=generator).tolist()
    prefix, first, second = draw[:16], draw[16:30], draw[30:]
    second[-1] = first[-1]
    row = PackedPrompt(tuple(prefix), (tuple(first), tuple(second)), (0, 1))
    return row, [prefix + first, prefix + second]


def reference_logits(forward: SharedPrefixModel, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """The plain model's last logits after sequences in one padded batch, float32 [n, vocabulary]."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(own) for own in sequences], batch_first=True)
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        found = forward.model(
            input_ids=tokens.to(forward.device), attention_mask=mask.to(forward.device), use_cache=False
        )
    return found.logits[torch.arange(len(lengths)), lengths - 1].float()


def logits_and_rounding(
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
