"""How far a changed model's next-token distributions are from the unchanged model's, on some prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.kv_cache import SharedPrefixCache
from truthgate_eval.inference.prefix_plan import PackedPrompt, plan_prefixes
from truthgate_eval.inference.shared_prefix import SharedPrefixModel


class NextTokenDivergence:
    """Mean Kullback-Leibler divergence from a model as it was when this object was made.

    Attributes:
        model: The model.
        prompts: Token ids of each prompt.
    """

    def __init__(
        self, model: SharedPrefixModel, prompts: Sequence[Sequence[int]], *, batch_size: int | str = 8
    ) -> None:
        """Keep the model's distributions after each prompt.

        Args:
            model: The model, unchanged.
            prompts: Token ids; distinct prompts are computed once.
            batch_size: A batch has as many tokens as this many of the longest prompts.
        """
        self.model, self.prompts = model, [tuple(prompt) for prompt in prompts]
        self._batch_size = batch_size
        self._reference = self._log_probs()

    def mean(self) -> float:
        """Mean over prompts of KL(as it was || as it is now), in nats; 0 if nothing has changed."""
        now = self._log_probs()
        divergence = (self._reference.exp() * (self._reference - now)).sum(dim=-1)
        return float(divergence.mean())

    def _log_probs(self) -> torch.Tensor:
        """float32 [prompts, vocabulary], on the CPU."""
        model = self.model
        plan = plan_prefixes(
            self.prompts,
            share=model.supports_sharing,
            max_shared_length=model.max_shared_length,
            prefix_pass_cost=model.prefix_pass_cost,
        )
        found: dict[int, torch.Tensor] = {}
        budget = TokenBudget.for_batch_size(self._batch_size, self.prompts, model.device)
        for group in plan.groups:
            prefix = model.compute_prefix(group)

            def run(batch_prompts: list[PackedPrompt], prefix: SharedPrefixCache | None = prefix) -> None:
                batch = model.pack(batch_prompts, prefix)
                logits = model.logits(batch, *batch.last_tokens(batch_prompts), prefix)
                log_probs = torch.log_softmax(logits.float(), dim=-1).cpu()
                ids = [i for prompt in batch_prompts for i in prompt.sequence_ids]
                found.update(zip(ids, log_probs, strict=True))

            budget.run_batches(group.prompts, run)
        return torch.stack([found[i] for i in plan.distinct_ids])
