"""How far a changed model's next-token distributions are from the unchanged model's, on some prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.kv_cache import SharedPrefixCache
from truthgate_eval.inference.prefix_plan import PackedPrompt, plan_prefixes
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.processes import Processes


class Divergence:
    """Mean Kullback-Leibler divergence from a model as it was when this object was made.

    Attributes:
        reference: Log-probabilities after each prompt as they were, float32 [prompts, vocabulary].
    """

    def __init__(self, log_probs: Callable[[], torch.Tensor], reference: torch.Tensor | None = None) -> None:
        """Keep the model's distributions as they are.

        Args:
            log_probs: Computes them with the model as it is at that moment.
            reference: What it computes now, if that is known already.
        """
        self._log_probs = log_probs
        self.reference = log_probs() if reference is None else reference

    def mean(self) -> float:
        """Mean over prompts of KL(as it was || as it is now), in nats; 0 if nothing has changed."""
        return float(self.of_each().mean())

    def of_each(self) -> torch.Tensor:
        """The divergence on each prompt, float32 [prompts]."""
        now = self._log_probs()
        return (self.reference.exp() * (self.reference - now)).sum(dim=-1)

    def of_first(self, count: int) -> Divergence:
        """The divergence on the first prompts alone, where that is cheaper, or else on all."""
        del count
        return self

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The values on all prompts, [prompts], given those on the prompts of `reference`: the same."""
        return values


class NextTokenDivergence(Divergence):
    """The divergence of a model that shares prefixes.

    Attributes:
        model: The model.
        prompts: Token ids of each prompt.
    """

    def __init__(
        self,
        model: SharedPrefixModel,
        prompts: Sequence[Sequence[int]],
        *,
        batch_size: int | str = 8,
        reference: torch.Tensor | None = None,
    ) -> None:
        """Keep the model's distributions after each prompt.

        Args:
            model: The model, unchanged.
            prompts: Token ids; distinct prompts are computed once.
            batch_size: A batch has as many tokens as this many of the longest prompts.
            reference: As in `Divergence`.
        """
        self.model, self.prompts = model, [tuple(prompt) for prompt in prompts]
        self._batch_size = batch_size
        super().__init__(lambda: next_token_log_probs(model, self.prompts, batch_size=batch_size), reference)

    def of_first(self, count: int) -> NextTokenDivergence:
        """See `Divergence.of_first`; the model's distributions are not computed again."""
        if count >= len(self.prompts):
            return self
        return NextTokenDivergence(
            self.model, self.prompts[:count], batch_size=self._batch_size, reference=self.reference[:count]
        )


class SharedDivergence(Divergence):
    """The divergence on prompts that several processes share. All of them must call its methods.

    Attributes:
        reference: As in `Divergence`, of this process's prompts alone.
    """

    def __init__(self, own: Divergence | None, places: Sequence[int], processes: Processes) -> None:
        """Put together what the processes have.

        Args:
            own: The divergence on this process's prompts, None where it has none.
            places: Which of all prompts these are, in ascending order.
            processes: The processes.
        """
        self.reference = torch.zeros(0, 0) if own is None else own.reference
        self._own, self._places, self._processes = own, list(places), processes

    def of_each(self) -> torch.Tensor:
        """The divergence on each prompt of all processes, float64 [prompts]."""
        return self.gather(torch.zeros(0) if self._own is None else self._own.of_each())

    def of_first(self, count: int) -> Divergence:
        """See `Divergence.of_first`."""
        places = [place for place in self._places if place < count]
        own = self._own.of_first(len(places)) if places and self._own is not None else None
        is_cheaper = own is not self._own or places == self._places
        told = self._processes.exchange((len(self._places), is_cheaper))
        if count >= sum(number for number, _ in told) or not all(cheaper for _, cheaper in told):
            return self
        return SharedDivergence(own, places, self._processes)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """See `Divergence.gather`; each process gives the values on its own prompts."""
        told = self._processes.exchange(list(zip(self._places, values.tolist(), strict=True)))
        found = {place: value for part in told for place, value in part}
        return torch.tensor([found[place] for place in range(len(found))], dtype=torch.float64)


def shared_divergence(own: Divergence | None, places: Sequence[int], processes: Processes) -> Divergence:
    """The divergence on the prompts of all processes.

    Args:
        own: The divergence on this process's prompts, None where it has none.
        places: Which of all prompts these are.
        processes: The processes; of one alone it is its own.
    """
    if processes.count == 1 and own is not None:
        return own
    return SharedDivergence(own, places, processes)


def next_token_log_probs(
    model: SharedPrefixModel, prompts: Sequence[Sequence[int]], *, batch_size: int | str
) -> torch.Tensor:
    """Log-probabilities of the token after each prompt, float32 [prompts, vocabulary], on the CPU.

    Args:
        model: The model.
        prompts: Token ids; distinct prompts are computed once.
        batch_size: A batch has as many tokens as this many of the longest prompts.
    """
    plan = plan_prefixes(
        prompts,
        share=model.supports_sharing,
        max_shared_length=model.max_shared_length,
        prefix_pass_cost=model.prefix_pass_cost,
    )
    found: dict[int, torch.Tensor] = {}
    budget = TokenBudget.for_batch_size(batch_size, prompts, model.device)
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
