"""lm-eval's `hf` model, on the forward pass that computes shared prefixes once.

Requests that this cannot honour exactly (sampling, beams, penalties, very long inputs) take `hf`'s own path.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from accelerate.utils import DistributedType
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from truthgate_eval.inference.greedy import decode_greedily, end_tokens, is_plain_greedy
from truthgate_eval.inference.loglikelihood import log_likelihoods
from truthgate_eval.inference.shared_prefix import SharedPrefixModel, TokenBudget, check_engine

log = logging.getLogger(__name__)


class SharedPrefixHF(HFLM):
    """`hf` whose greedy generation and log-likelihoods share prefixes; answers are those of `hf`."""

    engine = "auto"

    def set_engine(self, engine: Any) -> None:
        """Choose `auto`, or `off` for `hf`'s own path throughout.

        Raises:
            GateError: It is neither.
        """
        self.engine = check_engine(engine)

    @cached_property
    def forward(self) -> SharedPrefixModel | None:
        """The shared forward pass, tried on the model at the first request; None where it does not fit."""
        if self.engine == "off":
            return None
        accelerator = getattr(self, "accelerator", None)
        kind = accelerator.distributed_type if accelerator else None
        sharded = kind in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if self.backend != "causal" or sharded or self.mixed_precision_dtype is not None:
            log.warning(
                "shared prefixes are computed once only for plain causal models; going on as `hf` does"
            )
            return None
        forward = SharedPrefixModel(self.model)
        return forward if forward.supports_sharing else None

    def _budget(
        self, sequences: Sequence[Sequence[int]], extra: int = 0, size: int | None = None
    ) -> TokenBudget:
        """Tokens to a batch: what `hf` would have in memory at this batch size."""
        assert self.forward is not None
        budget = TokenBudget.for_batch_size(size or self.batch_size, sequences, self.forward.device)
        if isinstance(size or self.batch_size, int):
            budget.tokens += (size or self.batch_size) * extra
        return budget

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """As in `hf`; requests are ((context, continuation), their token ids)."""
        forward = self.forward

        def own_path(some: list[Any]) -> list[tuple[float, bool]]:
            return super(SharedPrefixHF, self)._loglikelihood_tokens(some, disable_tqdm, override_bs)

        if forward is None:
            return own_path(requests)
        # The input is cut as `hf` cuts it: from the left, and without the last token.
        pairs = [
            ((context + continuation)[-(self.max_length + 1) :][:-1], continuation)
            for _, context, continuation in requests
        ]
        fits = [
            len(continuation) <= len(tokens) <= forward.max_shared_length for tokens, continuation in pairs
        ]

        def share(some: list[int]) -> list[tuple[float, bool]]:
            chosen = [pairs[i] for i in some]
            with self._bar(len(some), disable_tqdm, "loglikelihood") as bar:
                answers = log_likelihoods(
                    forward, chosen, budget=self._budget([tokens for tokens, _ in chosen], size=override_bs),
                    softmax_dtype=self.softmax_dtype, progress=bar.update,
                )  # fmt: skip
            for i, answer in zip(some, answers, strict=True):
                if requests[i][0] is not None:  # a window of a rolling request, which has its own entry
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
            return answers

        return _both(fits, share, lambda some: own_path([requests[i] for i in some]))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As in `hf`."""
        forward = self.forward
        plans = [None if forward is None else self._greedy_settings(request.args[1]) for request in requests]
        prompts: dict[int, list[int]] = {}
        for i, settings in enumerate(plans):
            if settings is not None and forward is not None:
                tokens = self.prompt(requests[i].args[0], settings[1])
                if tokens and len(tokens) + settings[1] <= forward.max_shared_length:
                    prompts[i] = tokens

        def share(some: list[int]) -> list[str]:
            texts: dict[int, str] = {}
            with self._bar(len(some), disable_tqdm, "generate_until") as bar:
                for settings in dict.fromkeys(plans[i] for i in some):
                    assert settings is not None
                    group = [i for i in some if plans[i] == settings]
                    answers = self._greedy([prompts[i] for i in group], *settings, bar.update)
                    texts.update(zip(group, answers, strict=True))
            for i in some:
                self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
            return [texts[i] for i in some]

        def own_path(some: list[int]) -> list[str]:
            if forward is not None:
                log.warning(
                    "%d of %d requests ask for more than plain greedy decoding: `hf` answers them",
                    len(some),
                    len(requests),
                )
            return super(SharedPrefixHF, self).generate_until([requests[i] for i in some], disable_tqdm)

        return _both([i in prompts for i in range(len(requests))], share, own_path)

    def _greedy_settings(self, gen_kwargs: dict[str, Any]) -> tuple[tuple[str, ...], int] | None:
        """(stop strings, most new tokens) of plain greedy decoding; None where anything else is asked for."""
        kwargs = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        until = tuple(handle_stop_sequences(kwargs.pop("until", None), eos=eos))
        most = int(kwargs.pop("max_gen_toks"))
        plain = not kwargs.pop("do_sample", None) and not kwargs.pop("temperature", None) and not kwargs
        if not plain or not is_plain_greedy(self.model.generation_config) or not 0 < most < self.max_length:
            return None
        return until, most

    def prompt(self, context: str, most: int) -> list[int]:
        """Token ids as `hf` gives them to a prompt in a batch of its own."""
        tokens, _ = self.tok_batch_encode(
            [context], left_truncate_len=self.max_length - most, truncation=self.truncation
        )
        return tokens[0].tolist()

    def _greedy(
        self, prompts: list[list[int]], until: tuple[str, ...], most: int, progress: Callable[[int], Any]
    ) -> list[str]:
        assert self.forward is not None
        # Like `hf`: two tokens more than the stop string has, since it may be spelt in other tokens.
        windows = [(len(self.tokenizer.encode(text, add_special_tokens=False)) + 2, text) for text in until]

        def stopped(tokens: list[int]) -> bool:
            return any(text in self.tokenizer.decode(tokens[-window:]) for window, text in windows)

        answers = decode_greedily(
            self.forward, prompts, max_new_tokens=most, budget=self._budget(prompts, extra=most),
            eos=end_tokens(self.model.generation_config), stopped=stopped, progress=progress,
        )  # fmt: skip
        return [self._text(tokens, list(until)) for tokens in answers]

    def _text(self, tokens: list[int], until: list[str]) -> str:
        """The answer as `hf` reads it: without thoughts, and up to the first stop string."""
        end = self.think_end_token
        if isinstance(end, int) and end in tokens:
            tokens = tokens[len(tokens) - tokens[::-1].index(end) :]
        text = self.tok_decode(tokens)
        if isinstance(end, int):
            text = text.lstrip()
        return postprocess_generated_text(text, until, end if isinstance(end, str) else None)

    def _bar(self, total: int, disable: bool, what: str) -> tqdm:
        return tqdm(total=total, disable=disable or self.rank != 0, desc=f"Running {what} requests")


def _both(
    fits: list[bool], share: Callable[[list[int]], list[Any]], own: Callable[[list[int]], list[Any]]
) -> list[Any]:
    """Answers in order: of the requests that fit by `share`, of the others by `own`."""
    answers: dict[int, Any] = {}
    for path, kind in ((share, True), (own, False)):
        some = [i for i, fit in enumerate(fits) if fit == kind]
        if some:
            answers.update(zip(some, path(some), strict=True))
    return [answers[i] for i in range(len(fits))]
