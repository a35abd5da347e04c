"""Log-likelihoods of continuations, with shared prefixes and equal requests computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from truthgate_eval.inference.kv_cache import SharedPrefixCache
from truthgate_eval.inference.packing import PackedBatch
from truthgate_eval.inference.prefix_plan import PackedPrompt, plan_prefixes
from truthgate_eval.inference.shared_prefix import SharedPrefixModel, TokenBudget

# A request's input without its last token, and the continuation that is scored.
ScoringRequest = tuple[Sequence[int], Sequence[int]]


def log_likelihoods(
    forward: SharedPrefixModel,
    requests: Sequence[ScoringRequest],
    *,
    budget: TokenBudget,
    softmax_dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[float, bool]]:
    """How likely each continuation is, and whether greedy decoding would give it.

    Args:
        forward: A model that shares prefixes.
        requests: (input, continuation): the last token of context + continuation is not part of
            the input, whose last `len(continuation)` positions predict the continuation.
        budget: Tokens to a batch.
        softmax_dtype: What log-softmax computes in; by default what the model does.
        progress: Called with the number of requests done since the last call.

    Returns:
        (sum of the tokens' natural log-probabilities, whether each is the likeliest) per request.
    """
    first_read = [len(tokens) - len(continuation) for tokens, continuation in requests]
    found = plan_prefixes(
        [tokens for tokens, _ in requests], first_read_positions=first_read,
        max_shared_length=forward.max_shared_length, prefix_pass_cost=forward.prefix_pass_cost,
    )  # fmt: skip
    asked: list[list[int]] = [[] for _ in range(found.num_distinct)]
    for i, kind in enumerate(found.distinct_ids):
        asked[kind].append(i)
    answers: dict[int, tuple[float, bool]] = {}
    for group in found.groups:
        trunk = forward.compute_prefix(group)

        def run(rows: list[PackedPrompt], trunk: SharedPrefixCache | None = trunk) -> None:
            batch = forward.pack(rows, trunk)
            reads = _ScoredTokens(rows, batch, asked, [continuation for _, continuation in requests])
            logits = forward.logits(batch, torch.tensor(reads.lanes), torch.tensor(reads.places), trunk)
            found = reads.score(logits, softmax_dtype)
            answers.update(found)
            if progress is not None:
                progress(len(found))

        budget.run_batches(group.prompts, run)
    return [answers[i] for i in range(len(requests))]


class _ScoredTokens:
    """Which tokens of a batch the requests read, each once."""

    def __init__(
        self,
        rows: list[PackedPrompt],
        batch: PackedBatch,
        asked: list[list[int]],
        continuations: list[Sequence[int]],
    ) -> None:
        self.continuations = continuations
        self.at: dict[tuple[int, int], int] = {}
        self.wanted: list[tuple[int, list[int]]] = []  # request, the logits of its continuation
        for row, (lane, start) in zip(rows, batch.offsets, strict=True):
            for branch, member in enumerate(row.sequence_ids):
                places = (row.columns(branch) + start).tolist()
                for request in asked[member]:
                    own = places[len(places) - len(continuations[request]) :]
                    index = [self.at.setdefault((lane, place), len(self.at)) for place in own]
                    self.wanted.append((request, index))
        self.lanes = [lane for lane, _ in self.at]
        self.places = [place for _, place in self.at]

    def score(self, logits: torch.Tensor, softmax_dtype: torch.dtype | None) -> dict[int, tuple[float, bool]]:
        """Each request's answer, from the logits [reads, vocabulary]."""
        logs = torch.log_softmax(logits, dim=-1, dtype=softmax_dtype)
        index = torch.tensor([i for _, own in self.wanted for i in own], device=logs.device)
        tokens = [token for request, _ in self.wanted for token in self.continuations[request]]
        target = torch.tensor(tokens, device=logs.device)
        values = logs[index, target].cpu()
        likeliest = (logs.argmax(dim=-1)[index] == target).cpu()
        sizes = [len(own) for _, own in self.wanted]
        parts = zip(self.wanted, values.split(sizes), likeliest.split(sizes), strict=True)
        return {request: (float(value.sum()), bool(top.all())) for (request, _), value, top in parts}
