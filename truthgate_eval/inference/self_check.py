"""Finds out whether a model is right with shared prefixes, by comparing them with the model's own pass.

What a model does with masks and positions cannot be told from its name. So test prompts run through packed
prompts, a shared prefix and decoding, and their logits are held against those of the model's own forward
pass. See `docs/performance.md#self-check`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from truthgate_eval.errors import GateError, check_choice, reason_of
from truthgate_eval.inference import tuning
from truthgate_eval.inference.adapters import find_outer_adapter
from truthgate_eval.inference.kv_cache import SharedPrefixCache
from truthgate_eval.inference.lower_layer_cache import LowerLayerCache
from truthgate_eval.inference.not_finite import NotFiniteError, not_finite_error
from truthgate_eval.inference.prefix_plan import PackedPrompt, PrefixGroup
from truthgate_eval.inference.reference import ReferenceLogits
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.memory import free_memory

log = logging.getLogger(__name__)

# `auto` shares prefixes where the self check passes, `off` takes the harness's own path.
Engine = Literal["auto", "off"]
ENGINES: tuple[Engine, ...] = get_args(Engine)


def parse_engine(engine: Any) -> Engine:
    """A harness's model argument `engine`.

    Raises:
        GateError: It is neither `auto` nor `off`.
    """
    return check_choice("engine", engine, ENGINES, GateError)


def load(model: Any, decoder: nn.Module | None = None) -> SharedPrefixModel:
    """Wrap a model, check whether it is right with shared prefixes, and log one line if it is not.

    Args:
        model: A transformers model; it may carry a gate.
        decoder: Its text decoder, if it is known already.

    Returns:
        The model; its `supports_sharing` says what was found.

    Raises:
        NotFiniteError: The model gives NaN.
    """
    shared = SharedPrefixModel(model, decoder)
    reason = run_safely(lambda: find_mismatch(shared.for_self_check()))
    shared.supports_sharing = reason is None
    if reason is not None:
        log.warning("%s shares no prefixes, every sequence runs by itself: %s", type(model).__name__, reason)
    return shared


def cache_lower_layers(
    model: SharedPrefixModel | None, layers: Sequence[nn.Module]
) -> LowerLayerCache | None:
    """Make a model run its lowest layers once for each batch, if it is right when they are left out.

    A model whose upper layers read more than the hidden states of the layer below, or overwrite them, is
    found by running test prompts, and one line is logged.

    Args:
        model: The model; no gate may be on the layers, now or later. None caches nothing.
        layers: The decoder's lowest layers, from the first on; an empty list caches nothing.

    Returns:
        The cache, also `model.lower_layers`; or None.
    """
    if model is None or not layers:
        return None
    cache = LowerLayerCache(layers, int(tuning.LOWER_LAYER_MEMORY_SHARE * free_memory(model.device)))
    reason = run_safely(lambda: _find_cache_mismatch(model.for_self_check(), cache))
    cache.clear()
    if reason is not None:
        log.warning(
            "layers below the first gated one run again for every gate of %s: %s",
            type(model.model).__name__, reason,
        )  # fmt: skip
        return None
    model.lower_layers = cache
    return cache


def run_safely(check: Callable[[], str | None]) -> str | None:
    """What a check found, or the error it raised: a model's code may fail in any way on these inputs.

    Raises:
        NotFiniteError: The model gives NaN by itself.
    """
    try:
        return check()
    except NotFiniteError:
        raise
    except Exception as error:
        return reason_of(error)


def find_mismatch(model: SharedPrefixModel) -> str | None:
    """How logits with shared prefixes differ from the model's own; None if they agree.

    Args:
        model: A copy from `for_self_check`.

    Raises:
        NotFiniteError: The model's own logits are NaN.
    """
    added = find_outer_adapter(model.model)
    if added is not None:
        return added
    reference = model.make_reference()
    if reference.logits.isnan().any():
        raise not_finite_error(model.model, model.make_reference)
    prompt = reference.prompt
    cache, after = _split_prefix(model, prompt)
    for what, run in (
        ("packed prompts", lambda: _last_logits(model, prompt, None)),
        ("a shared prefix", lambda: _last_logits(model, after, cache)),
        ("decoding", lambda: decoded_logits(model, after, cache, unpacked=False)),
        ("decoding in rows of their own", lambda: decoded_logits(model, after, cache, unpacked=True)),
    ):
        difference = mismatch(run(), reference, model.dtype)
        if difference is not None:
            return f"with {what}, {difference}"
    return None


def mismatch(logits: torch.Tensor, reference: ReferenceLogits, dtype: torch.dtype) -> str | None:
    """How far logits are from a reference; None if rounding explains it.

    A wrong mask or position changes logits by about as much as the two test prompts differ. In float32 the
    tolerance is 1e-4 of the largest logit, and at most a tenth of that difference. In half precision, padding
    alone changes logits by as much as a wrong mask might, the more so under a gate. The tolerance is
    therefore twice the difference between the model's own padded and unpadded batches, capped at half of the
    difference between the two prompts, and never below a tenth of it.

    Args:
        logits: [2, vocabulary], of the reference's two sequences.
        reference: The model's own logits.
        dtype: What the model computes in.
    """
    expected = reference.logits
    prompts_differ = float((expected[0] - expected[1]).abs().max())
    if dtype == torch.float32:
        allowed = min(0.1 * prompts_differ, 1e-4 * float(expected.abs().max()))
    else:
        allowed = max(0.1 * prompts_differ, min(2 * reference.rounding, 0.5 * prompts_differ))
    error = float((logits.float() - expected).abs().max())
    if error <= allowed:
        return None
    return f"logits differ by {error:.1e} from the plain model's (allowed {allowed:.1e})"


def decoded_logits(
    model: SharedPrefixModel, prompt: PackedPrompt, prefix: SharedPrefixCache, *, unpacked: bool
) -> torch.Tensor:
    """Last logits of each suffix whose last token is decoded, and not part of the packed prompt.

    Args:
        model: The model.
        prompt: A packed prompt after `prefix`.
        prefix: The shared prefix.
        unpacked: Whether every sequence gets a row of its own before decoding.
    """
    shorter = tuple(suffix[:-1] for suffix in prompt.suffixes)
    prompts = [PackedPrompt(prompt.prefix, shorter, prompt.sequence_ids)]
    cache = prefix.fork()
    batch = model.pack(prompts, prefix)
    model.run(batch, cache)
    cache.assign_sequences(batch, prompts)
    if unpacked:
        cache.unpack()
    return model.decode_step(cache, [suffix[-1] for suffix in prompt.suffixes])


def _split_prefix(model: SharedPrefixModel, prompt: PackedPrompt) -> tuple[SharedPrefixCache, PackedPrompt]:
    """Half of a packed prompt's prefix as a shared prefix, and the packed prompt after it."""
    half = len(prompt.prefix) // 2
    cache = model.compute_prefix(PrefixGroup(prompt.prefix[:half], ()))
    assert cache is not None, "test prompts have a prefix of two tokens or more"
    return cache, PackedPrompt(prompt.prefix[half:], prompt.suffixes, prompt.sequence_ids)


def _last_logits(
    model: SharedPrefixModel, prompt: PackedPrompt, prefix: SharedPrefixCache | None
) -> torch.Tensor:
    """Last logits of each suffix, in a batch with another, short packed prompt."""
    prompts = [prompt, PackedPrompt((), (prompt.suffixes[0][:3],), (2,))]
    batch = model.pack(prompts, prefix)
    return model.logits(batch, *batch.last_tokens(prompts), prefix)[:2]


def _find_cache_mismatch(model: SharedPrefixModel, cache: LowerLayerCache) -> str | None:
    """How a pass with cached lower layers differs from the pass that filled the cache; or None."""
    model.lower_layers = cache
    prompt = model.make_reference().prompt
    first, again = (
        decoded_logits(model, after, prefix, unpacked=False)
        for prefix, after in (_split_prefix(model, prompt) for _ in range(2))
    )
    if cache.num_reused != 2:
        return "the outputs of a test prompt were not reused"
    return None if torch.equal(first, again) else "logits change where cached lower layers are used"
