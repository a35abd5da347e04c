"""How far a model of lm-eval moves on its requests' prompts, with shared prefixes or by `hf`'s own pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs

from truthgate_eval.harness.lm_eval.prefix_sharing import SharedPrefixHF
from truthgate_eval.inference.next_token_divergence import (
    Divergence,
    NextTokenDivergence,
    shared_divergence,
)
from truthgate_eval.inference.prompt_sample import share_sample
from truthgate_eval.processes import Processes


def prompt_divergence(
    lm: SharedPrefixHF, requests: Sequence[Instance], count: int, processes: Processes
) -> Divergence:
    """The divergence of a model from what it is now, on prompts of some requests.

    Args:
        lm: The model.
        requests: Requests of generation or of log-likelihoods, whose contexts are the prompts.
        count: The most prompts, drawn by their text.
        processes: Those that call this together, each with its own requests.
    """
    chosen, places = share_sample([request.args[0] for request in requests], count, processes)
    prompts = [prompt_tokens(lm, requests[i]) for i in chosen]
    return shared_divergence(_own_divergence(lm, prompts) if prompts else None, places, processes)


def _own_divergence(lm: SharedPrefixHF, prompts: list[list[int]]) -> Divergence:
    shared = lm.shared_model
    if shared is not None and max(map(len, prompts)) <= shared.max_shared_length:
        return NextTokenDivergence(shared, prompts, batch_size=lm.batch_size)
    return Divergence(lambda: _log_probs(lm, prompts))


def prompt_tokens(lm: SharedPrefixHF, request: Instance) -> list[int]:
    """Token ids of a request's context as `hf` gives them to the model; at least one."""
    context, other = request.args[0], request.args[1]
    if request.request_type == "generate_until":
        settings = normalize_gen_kwargs(other, lm.max_gen_toks)
        token_ids = lm.prompt(context, int(settings["max_gen_toks"]))
    elif context:
        token_ids = lm._encode_pair(context, other)[0][-lm.max_length :]
    else:
        token_ids = []
    return token_ids or [lm.prefix_token_id]


def _log_probs(lm: SharedPrefixHF, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """See `next_token_log_probs`. Prompts of one length make a batch, so that there is no padding."""
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    size = lm.batch_size if isinstance(lm.batch_size, int) else 1
    found: dict[int, torch.Tensor] = {}
    for indices in by_length.values():
        for start in range(0, len(indices), size):
            batch = indices[start : start + size]
            inputs = torch.tensor([list(prompts[i]) for i in batch], device=lm.device)
            with torch.no_grad():
                logits = lm._model_call(inputs)[:, -1]
            found.update(zip(batch, torch.log_softmax(logits.float(), dim=-1).cpu(), strict=True))
    return torch.stack([found[i] for i in range(len(prompts))])
