"""Greedy decoding of many prompts, whose shared prefixes are computed once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from truthgate_eval.inference.kv_cache import SharedPrefixCache
from truthgate_eval.inference.prefix_plan import PackedPrompt, plan_prefixes
from truthgate_eval.inference.shared_prefix import SharedPrefixModel, TokenBudget

# Of a model's generation defaults, those that do not matter to greedy decoding of new tokens.
_HARMLESS = frozenset(
    (
        "bos_token_id eos_token_id pad_token_id do_sample temperature top_p top_k min_p typical_p max_length "
        "max_new_tokens use_cache output_attentions output_hidden_states output_scores output_logits "
        "transformers_version _from_model_config"
    ).split()
)


def is_plain_greedy(config: Any) -> bool:
    """Whether a model's generation defaults leave greedy decoding as it is: no penalties, no bans."""
    return not set(config.to_diff_dict()) - _HARMLESS


def end_tokens(config: Any) -> set[int]:
    """The tokens at which a model's generation defaults end an answer."""
    eos = config.eos_token_id
    return set() if eos is None else {eos} if isinstance(eos, int) else set(eos)


def decode_greedily(
    forward: SharedPrefixModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    budget: TokenBudget,
    eos: Collection[int] = (),
    stopped: Callable[[list[int]], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The likeliest token after each prompt, again and again.

    Args:
        forward: A model that shares prefixes.
        prompts: Token ids, each prompt at least one token.
        max_new_tokens: The most tokens to add to each.
        budget: Tokens to a batch, prompts and answers together.
        eos: Tokens that end an answer.
        stopped: Told an answer's tokens so far, whether it ends here.
        progress: Called with the number of prompts done since the last call.

    Returns:
        Each prompt's new tokens, with the one that ended it.
    """
    found = plan_prefixes(
        prompts, max_shared_length=forward.max_shared_length, prefix_pass_cost=forward.prefix_pass_cost
    )
    answers: list[list[int]] = [[] for _ in range(found.num_distinct)]

    def ended(tokens: list[int]) -> bool:
        end = len(tokens) >= max_new_tokens or tokens[-1] in eos
        return end or (stopped is not None and stopped(tokens))

    asked = [0] * found.num_distinct
    for kind in found.distinct_ids:
        asked[kind] += 1
    for group in found.groups:
        trunk = forward.compute_prefix(group)

        def run(rows: list[PackedPrompt], trunk: SharedPrefixCache | None = trunk) -> None:
            members = [member for row in rows for member in row.sequence_ids]
            for member, tokens in zip(members, _decode(forward, rows, trunk, ended), strict=True):
                answers[member] = tokens
            if progress is not None:
                progress(sum(asked[member] for member in members))

        budget.run_batches(group.prompts, run, extra=max_new_tokens)
    return [list(answers[kind]) for kind in found.distinct_ids]


def _decode(
    forward: SharedPrefixModel,
    rows: list[PackedPrompt],
    trunk: SharedPrefixCache | None,
    ended: Callable[[list[int]], bool],
) -> list[list[int]]:
    """New tokens of every branch of these rows, in order."""
    store = SharedPrefixCache(keep=True) if trunk is None else trunk.fork()
    batch = forward.pack(rows, trunk)
    logits = forward.logits(batch, *batch.last_tokens(rows), store)
    store.assign_sequences(batch, rows)
    answers: list[list[int]] = [[] for _ in logits]
    active = list(range(len(answers)))  # the answers that the store still holds, ended ones among them
    open_ = set(active)
    while True:
        tokens = logits.float().argmax(dim=-1).tolist()
        for i, token in zip(active, tokens, strict=True):
            if i in open_:
                answers[i].append(token)
                if ended(answers[i]):
                    open_.discard(i)
        if not open_:
            return answers
        # Ended answers are carried along until a quarter are, since leaving them out copies the rest.
        if len(open_) <= 0.75 * len(active):
            keep = [row for row, i in enumerate(active) if i in open_]
            store.select_sequences(torch.tensor(keep))
            active, tokens = [active[row] for row in keep], [tokens[row] for row in keep]
        logits = forward.decode_step(store, tokens)
