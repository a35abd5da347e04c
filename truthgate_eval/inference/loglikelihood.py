"""Log-likelihoods of continuations; shared prefixes and equal inputs are computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from truthgate_eval.errors import DataError
from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.kv_cache import SharedPrefixCache
from truthgate_eval.inference.not_finite import check_answers
from truthgate_eval.inference.packing import PackedBatch
from truthgate_eval.inference.prefix_plan import PackedPrompt, plan_prefixes
from truthgate_eval.inference.shared_prefix import SharedPrefixModel

# Input and continuation: the input is context and continuation without the last token, so that its last
# `len(continuation)` positions predict the continuation.
ScoringRequest = tuple[Sequence[int], Sequence[int]]


def check_request(
    context: Sequence[int], continuation: Sequence[int], *, max_length: int, texts: tuple[str, str] | None
) -> None:
    """Refuse a request that has nothing to score, or nothing to score it after.

    lm-eval's `hf` stops at these with an assertion. Without it, an empty continuation has log-likelihood 0
    and wins against every other.

    Args:
        context: Token ids before the continuation.
        continuation: Token ids to score.
        max_length: The most tokens that the model takes.
        texts: Context and continuation, for messages; None where a request has none.

    Raises:
        DataError: The request cannot be scored; the message says why.
    """
    before, answer = texts or ("", "")
    if not continuation:
        raise DataError(
            f"the answer {answer!r} has no token of its own after {before[-40:]!r}: it is empty, or the "
            "tokenizer merges it with the text before it; let it begin with a space or on a new line"
        )
    if not context:
        raise DataError(f"the answer {answer!r} has no token before it: the context is {before[-40:]!r}")
    if len(continuation) > max_length:
        raise DataError(
            f"the answer {answer[:40]!r}... has {len(continuation)} tokens, more than the {max_length} that "
            "the model takes: raise max_length, or leave the document out"
        )


def log_likelihoods(
    model: SharedPrefixModel,
    requests: Sequence[ScoringRequest],
    *,
    budget: TokenBudget,
    softmax_dtype: torch.dtype | None = None,
    progress: Callable[[int], object] | None = None,
    keep: Callable[[int, tuple[float, bool]], object] | None = None,
) -> list[tuple[float, bool]]:
    """How likely each continuation is, and whether greedy decoding would give it.

    Args:
        model: A model that supports sharing.
        requests: Token ids of inputs and continuations; a continuation has at least one token, and no more
            than its input.
        budget: Tokens of a batch.
        softmax_dtype: What log-softmax computes in; by default the model's dtype.
        progress: Called with the number of requests answered since the last call.
        keep: Called with each request's number and answer as soon as its batch has run.

    Returns:
        For each request, the sum of its tokens' natural log-probabilities, and whether each token is the
        likeliest.

    Raises:
        ModelError: An answer is NaN; the message names the first module that gives such values.
        ValueError: A continuation is empty, or longer than its input.
    """
    for i, (token_ids, continuation) in enumerate(requests):
        if not 0 < len(continuation) <= len(token_ids):
            raise ValueError(
                f"request {i} has {len(continuation)} tokens to score, and {len(token_ids)} of input"
            )
    continuations = [continuation for _, continuation in requests]
    plan = plan_prefixes(
        [token_ids for token_ids, _ in requests],
        first_read_positions=[len(token_ids) - len(continuation) for token_ids, continuation in requests],
        max_shared_length=model.max_shared_length,
        prefix_pass_cost=model.prefix_pass_cost,
    )
    request_ids = plan.indices_by_distinct()
    answers: dict[int, tuple[float, bool]] = {}
    for group in plan.groups:
        prefix = model.compute_prefix(group)

        def run(prompts: list[PackedPrompt], prefix: SharedPrefixCache | None = prefix) -> None:
            batch = model.pack(prompts, prefix)
            scored = _ScoredTokens(prompts, batch, request_ids, continuations)
            wanted = scored.predicted_from()
            found = scored.log_likelihoods(model.logits(batch, *wanted, prefix), softmax_dtype)
            check_answers(model.model, found.values(), lambda _: model.logits(batch, *wanted, prefix))
            answers.update(found)
            if keep is not None:
                for i, answer in found.items():
                    keep(i, answer)
            if progress is not None:
                progress(len(found))

        budget.run_batches(group.prompts, run)
    return [answers[i] for i in range(len(requests))]


class _ScoredTokens:
    """The tokens of a batch whose logits predict continuations, each of them once."""

    def __init__(
        self,
        prompts: list[PackedPrompt],
        batch: PackedBatch,
        request_ids: list[list[int]],
        continuations: list[Sequence[int]],
    ) -> None:
        """Find the tokens.

        Args:
            prompts: The batch's packed prompts.
            batch: The batch.
            request_ids: For each distinct sequence, the requests with that input.
            continuations: Each request's continuation.
        """
        self.continuations = continuations
        self._index: dict[tuple[int, int], int] = {}  # row and column of a token -> its row among the logits
        self._requests: list[tuple[int, list[int]]] = []  # request, rows among the logits
        for prompt, (row, offset) in zip(prompts, batch.offsets, strict=True):
            for suffix, sequence_id in enumerate(prompt.sequence_ids):
                columns = (prompt.columns(suffix) + offset).tolist()
                for request in request_ids[sequence_id]:
                    own = columns[len(columns) - len(continuations[request]) :]
                    indices = [self._index.setdefault((row, column), len(self._index)) for column in own]
                    self._requests.append((request, indices))

    def predicted_from(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns of the tokens, int64 [n] each."""
        return torch.tensor([row for row, _ in self._index]), torch.tensor([c for _, c in self._index])

    def log_likelihoods(
        self, logits: torch.Tensor, softmax_dtype: torch.dtype | None
    ) -> dict[int, tuple[float, bool]]:
        """Each request's answer, from the tokens' logits [n, vocabulary]."""
        log_probs = torch.log_softmax(logits, dim=-1, dtype=softmax_dtype)
        index = torch.tensor([i for _, own in self._requests for i in own], device=log_probs.device)
        tokens = [token for request, _ in self._requests for token in self.continuations[request]]
        target = torch.tensor(tokens, device=log_probs.device)
        values = log_probs[index, target].cpu()
        likeliest = (log_probs.argmax(dim=-1)[index] == target).cpu()
        sizes = [len(own) for _, own in self._requests]
        per_request = zip(self._requests, values.split(sizes), likeliest.split(sizes), strict=True)
        return {request: (float(value.sum()), bool(top.all())) for (request, _), value, top in per_request}
