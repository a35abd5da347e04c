"""Greedy decoding of many prompts; shared prefixes and equal prompts are computed once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from truthgate_eval.inference import tuning
from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.kv_cache import SharedPrefixCache
from truthgate_eval.inference.not_finite import not_finite_error
from truthgate_eval.inference.prefix_plan import PackedPrompt, plan_prefixes
from truthgate_eval.inference.shared_prefix import SharedPrefixModel

# Settings of a generation config that do not change which tokens greedy decoding adds.
_WITHOUT_EFFECT = frozenset(
    (
        "bos_token_id eos_token_id pad_token_id do_sample temperature top_p top_k min_p typical_p max_length "
        "max_new_tokens use_cache output_attentions output_hidden_states output_scores output_logits "
        "transformers_version _from_model_config"
    ).split()
)


def is_plain_greedy(config: Any) -> bool:
    """Whether a model's generation config asks for nothing that changes greedy decoding, such as a penalty.

    Args:
        config: A `transformers.GenerationConfig`.

    Example:
        >>> from transformers import GenerationConfig
        >>> is_plain_greedy(GenerationConfig(eos_token_id=2, temperature=0.6))
        True
        >>> is_plain_greedy(GenerationConfig(repetition_penalty=1.1))
        False
    """
    return not set(config.to_diff_dict()) - _WITHOUT_EFFECT


def end_tokens(config: Any) -> set[int]:
    """Tokens that end an answer by a model's generation config.

    Example:
        >>> from transformers import GenerationConfig
        >>> end_tokens(GenerationConfig(eos_token_id=[2, 7]))
        {2, 7}
    """
    eos = config.eos_token_id
    return set() if eos is None else {eos} if isinstance(eos, int) else set(eos)


def decode_greedily(
    model: SharedPrefixModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    budget: TokenBudget,
    eos: Collection[int] = (),
    stopped: Callable[[list[int]], bool] | None = None,
    progress: Callable[[int], object] | None = None,
    keep: Callable[[int, list[int]], object] | None = None,
) -> list[list[int]]:
    """Add the likeliest token to each prompt until it ends.

    Args:
        model: A model that supports sharing.
        prompts: Token ids, each prompt at least one token.
        max_new_tokens: The most tokens to add to each.
        budget: Tokens of a batch, prompts and answers together.
        eos: Tokens that end an answer.
        stopped: Whether an answer ends here; called with its tokens so far after every token.
        progress: Called with the number of prompts answered since the last call.
        keep: Called with each prompt's number and new tokens as soon as its batch has run.

    Returns:
        Each prompt's new tokens, with the one that ended it.

    Raises:
        ModelError: Logits are NaN; the message names the first module that gives such values.
    """
    plan = plan_prefixes(
        prompts, max_shared_length=model.max_shared_length, prefix_pass_cost=model.prefix_pass_cost
    )
    answers: list[list[int]] = [[] for _ in range(plan.num_distinct)]
    occurrences = plan.indices_by_distinct()

    def ended(tokens: list[int]) -> bool:
        end = len(tokens) >= max_new_tokens or tokens[-1] in eos
        return end or (stopped is not None and stopped(tokens))

    for group in plan.groups:
        prefix = model.compute_prefix(group)

        def run(packed: list[PackedPrompt], prefix: SharedPrefixCache | None = prefix) -> None:
            sequence_ids = [sequence_id for prompt in packed for sequence_id in prompt.sequence_ids]
            for sequence_id, tokens in zip(
                sequence_ids, _decode_batch(model, packed, prefix, ended), strict=True
            ):
                answers[sequence_id] = tokens
                if keep is not None:
                    for i in occurrences[sequence_id]:
                        keep(i, tokens)
            if progress is not None:
                progress(sum(len(occurrences[sequence_id]) for sequence_id in sequence_ids))

        budget.run_batches(group.prompts, run, max_new_tokens=max_new_tokens)
    return [list(answers[sequence_id]) for sequence_id in plan.distinct_ids]


def _decode_batch(
    model: SharedPrefixModel,
    prompts: list[PackedPrompt],
    prefix: SharedPrefixCache | None,
    ended: Callable[[list[int]], bool],
) -> list[list[int]]:
    """New tokens of every suffix of these packed prompts, prompt by prompt."""
    cache = SharedPrefixCache(writable=True) if prefix is None else prefix.fork()
    batch = model.pack(prompts, prefix)
    logits = model.logits(batch, *batch.last_tokens(prompts), cache)
    cache.assign_sequences(batch, prompts)
    answers: list[list[int]] = [[] for _ in logits]
    cached = list(range(len(answers)))  # the sequences in the cache, finished ones among them
    unfinished = set(cached)
    while True:
        likeliest = logits.float().argmax(dim=-1)
        if logits.gather(-1, likeliest[:, None]).isnan().any():  # of NaN and a number NaN is the largest
            raise not_finite_error(
                model.model, lambda: model.logits(batch, *batch.last_tokens(prompts), prefix)
            )
        tokens = likeliest.tolist()
        for i, token in zip(cached, tokens, strict=True):
            if i in unfinished:
                answers[i].append(token)
                if ended(answers[i]):
                    unfinished.discard(i)
        if not unfinished:
            return answers
        if len(unfinished) <= tuning.MAX_UNFINISHED_TO_COMPACT * len(cached):
            keep = [position for position, i in enumerate(cached) if i in unfinished]
            cache.select_sequences(torch.tensor(keep))
            cached, tokens = [cached[position] for position in keep], [tokens[position] for position in keep]
        logits = model.decode_step(cache, tokens)
