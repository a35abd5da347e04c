"""lm-eval's `hf` model with shared prefixes computed once.

Requests for which this could give other answers (sampling, beams, penalties, very long inputs) take `hf`'s
own path: see `docs/performance.md#what-is-the-same-and-what-is-not`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from accelerate.utils import DistributedType
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from truthgate_eval.errors import DataError
from truthgate_eval.inference import self_check
from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.greedy import decode_greedily, end_tokens, is_plain_greedy
from truthgate_eval.inference.loglikelihood import check_request, log_likelihoods
from truthgate_eval.inference.self_check import Engine, parse_engine
from truthgate_eval.inference.shared_prefix import SharedPrefixModel

log = logging.getLogger(__name__)

T = TypeVar("T")
# A request as `HFLM._loglikelihood_tokens` takes it: (context, continuation) or None for a window of a
# rolling request, the context's token ids, the continuation's token ids.
TokenizedRequest = tuple[tuple[str, str] | None, list[int], list[int]]


class _GreedySettings(NamedTuple):
    """Generation settings of plain greedy decoding."""

    stop_strings: tuple[str, ...]
    max_new_tokens: int


class SharedPrefixHF(HFLM):
    """`hf` whose greedy generation and log-likelihoods share prefixes; its answers are those of `hf`.

    Attributes:
        engine: `auto`, or `off` for `hf`'s own path throughout.
    """

    engine: Engine = "auto"

    def set_engine(self, engine: Any) -> None:
        """Set `engine`.

        Raises:
            GateError: It is neither `auto` nor `off`.
        """
        self.engine = parse_engine(engine)

    @cached_property
    def shared_model(self) -> SharedPrefixModel | None:
        """The model with shared prefixes, checked at the first request; None means `hf`'s own path."""
        if self.engine == "off":
            return None
        accelerator = getattr(self, "accelerator", None)
        distributed_type = accelerator.distributed_type if accelerator else None
        is_sharded = distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        # What a subclass does around the model's pass, such as lm-eval's `steered`, would be left out.
        is_overridden = any(
            getattr(type(self), name) is not getattr(HFLM, name)
            for name in ("_model_call", "_model_generate")
        )
        is_plain = self.backend == "causal" and self.mixed_precision_dtype is None
        if not is_plain or is_sharded or is_overridden:
            log.warning("shared prefixes need a plain causal model: all requests take `hf`'s own path")
            return None
        shared = self_check.load(self.model)
        return shared if shared.supports_sharing else None

    def _budget(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 0,
        batch_size: int | str | None = None,
    ) -> TokenBudget:
        """The tokens that `hf` would have in memory at this batch size."""
        assert self.shared_model is not None
        return TokenBudget.for_batch_size(
            batch_size or self.batch_size, sequences, self.shared_model.device, max_new_tokens=max_new_tokens
        )

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        """See `HFLM._detect_batch_size`, without asking the other processes for theirs.

        `hf` asks whenever a request takes its path, and here not every process need have such a request.
        """
        count = self.world_size
        self._world_size = 1
        try:
            return int(super()._detect_batch_size(requests, pos))
        finally:
            self._world_size = count

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See `HFLM.loglikelihood`.

        Raises:
            DataError: A request has nothing to score (`check_request`).
        """
        for context, continuation in (request.args for request in requests):
            if context == "" and not self.tok_encode(continuation, add_special_tokens=False):
                raise DataError(f"the answer {continuation!r} to an empty context has no token")
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: list[TokenizedRequest],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """See `HFLM._loglikelihood_tokens`.

        Raises:
            DataError: A request has nothing to score (`check_request`).
        """
        max_length = self.max_length
        for texts, context, continuation in requests:
            check_request(context, continuation, max_length=max_length, texts=texts)
        model = self.shared_model

        def own_path(indices: list[int]) -> list[tuple[float, bool]]:
            chosen = [requests[i] for i in indices]
            return super(SharedPrefixHF, self)._loglikelihood_tokens(chosen, disable_tqdm, override_bs)

        if model is None:
            return own_path(list(range(len(requests))))
        # `hf` truncates the input from the left, and takes its last token off.
        pairs = [
            ((context + continuation)[-(max_length + 1) :][:-1], continuation)
            for _, context, continuation in requests
        ]
        fits = [
            len(continuation) <= len(input_ids) <= model.max_shared_length
            for input_ids, continuation in pairs
        ]

        def shared_path(indices: list[int]) -> list[tuple[float, bool]]:
            chosen = [pairs[i] for i in indices]
            self._warn_of_truncation([requests[i] for i in indices])

            def keep(number: int, answer: tuple[float, bool]) -> None:
                key = requests[indices[number]][0]
                if key is not None:  # a rolling request gets one cache entry for all its windows
                    self.cache_hook.add_partial("loglikelihood", key, answer)

            with self._progress_bar(len(indices), disable_tqdm, "loglikelihood") as bar:
                budget = self._budget([input_ids for input_ids, _ in chosen], batch_size=override_bs)
                dtype = self.softmax_dtype
                return log_likelihoods(
                    model, chosen, budget=budget, softmax_dtype=dtype, progress=bar.update, keep=keep
                )

        return _answer_on_two_paths(fits, shared_path, own_path)

    def _warn_of_truncation(self, requests: Sequence[TokenizedRequest]) -> None:
        """Say what `hf` says of every request that is longer than the model takes, in one line for all."""
        lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        too_long = [length for length in lengths if length > self.max_length + 1]
        if too_long:
            log.warning(
                "%d of %d requests are longer than the model's %d tokens, the longest has %d: their contexts "
                "are cut from the left",
                len(too_long), len(requests), self.max_length, max(too_long),
            )  # fmt: skip

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """See `HFLM.generate_until`."""
        settings, prompts = self._shared_generation(requests)

        def shared_path(indices: list[int]) -> list[str]:
            texts: dict[int, str] = {}
            with self._progress_bar(len(indices), disable_tqdm, "generate_until") as bar:
                for own in dict.fromkeys(settings[i] for i in indices):
                    group = [i for i in indices if settings[i] == own]

                    def keep(number: int, text: str, group: list[int] = group) -> None:
                        texts[group[number]] = text
                        self.cache_hook.add_partial("generate_until", requests[group[number]].args, text)

                    self._decode([prompts[i] for i in group], own, bar.update, keep)
            return [texts[i] for i in indices]

        def own_path(indices: list[int]) -> list[str]:
            if self.shared_model is not None:
                log.warning(
                    "%d of %d requests ask for more than plain greedy decoding: `hf` answers them",
                    len(indices), len(requests),
                )  # fmt: skip
            return super(SharedPrefixHF, self).generate_until([requests[i] for i in indices], disable_tqdm)

        return _answer_on_two_paths([i in prompts for i in range(len(requests))], shared_path, own_path)

    def _shared_generation(
        self, requests: Sequence[Instance]
    ) -> tuple[dict[int, _GreedySettings], dict[int, list[int]]]:
        """Settings and prompts of the requests that can share prefixes, by index."""
        settings: dict[int, _GreedySettings] = {}
        prompts: dict[int, list[int]] = {}
        if self.shared_model is None:
            return settings, prompts
        for i, request in enumerate(requests):
            context, gen_kwargs = request.args
            own = self._greedy_settings(gen_kwargs)
            if own is None:
                continue
            token_ids = self.prompt(context, own.max_new_tokens)
            if token_ids and len(token_ids) + own.max_new_tokens <= self.shared_model.max_shared_length:
                settings[i], prompts[i] = own, token_ids
        return settings, prompts

    def _greedy_settings(self, gen_kwargs: object) -> _GreedySettings | None:
        """Settings of plain greedy decoding; None where a request, or the model, asks for anything else."""
        if not isinstance(gen_kwargs, dict):
            return None  # `hf` says so
        kwargs = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        until = tuple(handle_stop_sequences(kwargs.pop("until", None), eos=eos))
        max_new_tokens = int(kwargs.pop("max_gen_toks"))
        is_greedy = not kwargs.pop("do_sample", None) and not kwargs.pop("temperature", None) and not kwargs
        fits = 0 < max_new_tokens < self.max_length
        if not is_greedy or not is_plain_greedy(self.model.generation_config) or not fits:
            return None
        return _GreedySettings(until, max_new_tokens)

    def prompt(self, context: str, max_new_tokens: int) -> list[int]:
        """Token ids of a prompt as `hf` has them in a batch of its own."""
        token_ids, _ = self.tok_batch_encode(
            [context], left_truncate_len=self.max_length - max_new_tokens, truncation=self.truncation
        )
        return token_ids[0].tolist()

    def _decode(
        self,
        prompts: list[list[int]],
        settings: _GreedySettings,
        progress: Callable[[int], Any],
        keep: Callable[[int, str], None],
    ) -> None:
        """Hand greedy answers up to the first stop string to `keep`, with their prompts' numbers."""
        assert self.shared_model is not None
        # Two tokens more than a stop string has, as in `hf`: it may be written in other tokens.
        windows = [
            (len(self.tokenizer.encode(text, add_special_tokens=False)) + 2, text)
            for text in settings.stop_strings
        ]

        def stopped(tokens: list[int]) -> bool:
            return any(text in self.tokenizer.decode(tokens[-window:]) for window, text in windows)

        decode_greedily(
            self.shared_model,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            budget=self._budget(prompts, max_new_tokens=settings.max_new_tokens),
            eos=end_tokens(self.model.generation_config),
            stopped=stopped,
            progress=progress,
            keep=lambda number, tokens: keep(number, self._answer_text(tokens, settings.stop_strings)),
        )

    def _answer_text(self, tokens: list[int], stop_strings: Sequence[str]) -> str:
        """An answer's text as `hf` gives it: without thoughts, and up to the first stop string."""
        think_end = self.think_end_token
        if isinstance(think_end, int) and think_end in tokens:
            tokens = tokens[len(tokens) - tokens[::-1].index(think_end) :]
        text = self.tok_decode(tokens)
        if isinstance(think_end, int):
            text = text.lstrip()
        return postprocess_generated_text(
            text, list(stop_strings), think_end if isinstance(think_end, str) else None
        )

    def _progress_bar(self, total: int, disable: bool, request_type: str) -> tqdm[Any]:
        return tqdm(total=total, disable=disable or self.rank != 0, desc=f"Running {request_type} requests")


def _answer_on_two_paths(
    fits: list[bool], shared_path: Callable[[list[int]], list[T]], own_path: Callable[[list[int]], list[T]]
) -> list[T]:
    """Answers in order: of requests that fit by the shared path, of the others by the model's own."""
    answers: dict[int, T] = {}
    for path, wanted in ((shared_path, True), (own_path, False)):
        indices = [i for i, fit in enumerate(fits) if fit == wanted]
        if indices:
            answers.update(zip(indices, path(indices), strict=True))
    return [answers[i] for i in range(len(fits))]
