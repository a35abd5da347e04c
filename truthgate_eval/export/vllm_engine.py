"""A gate folded into a loaded vLLM engine: sent to all workers, and checked across them.

vLLM is not imported: an `LLM` is given.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from truthgate_eval.errors import GateError, ModelError
from truthgate_eval.gating.attention_layout import AttentionLayout
from truthgate_eval.gating.gate import Gate, layer_gates

log = logging.getLogger(__name__)

# What vLLM is given as `worker_extension_cls`, by its name: the workers import it themselves.
WORKER_EXTENSION = "truthgate_eval.export.vllm_worker.GateWorker"
# Weights that changed by this much, relative to the largest, change the log-probabilities of any text.
_VISIBLE = 0.01
_TEXT = "The quick brown fox jumps over the lazy dog. It was seen on"


def fold_into_engine(llm: Any, gate: Gate, layout: AttentionLayout) -> None:
    """Put a gate into the weights of every worker of an engine, and check that they compute with it.

    Prefixes that were cached before are forgotten; prefix caching stays as it was.

    Args:
        llm: vLLM's `LLM`, made with `worker_extension_cls=WORKER_EXTENSION`.
        gate: The gate; its shape must be the model's.
        layout: The model's attention heads, found on a skeleton of it.

    Raises:
        GateError: The gate does not fit the model, does not change all positions, or a worker's weights
            cannot be folded into. The weights of other workers may have been changed then.
        ModelError: A layer was folded by no worker or by the wrong number of them, or the model computes
            without the gate.
    """
    if gate.positions != "all":
        raise GateError(f"positions={gate.positions} cannot be folded into weights: use gated_hf")
    layers = gate_data(gate, layout)
    numbers = [layer["layer"] for layer in layers]
    before = _log_probabilities(llm)
    folded = _call(llm, "truthgate_fold", gate.site, layers)
    check_coverage(folded, numbers)
    check_read_back(folded, _call(llm, "truthgate_read_back", numbers))
    if not llm.reset_prefix_cache():
        raise ModelError("vLLM did not forget the prefixes that it had cached before the gate: load it again")
    change = max(layer["change"] for report in folded for layer in report["layers"])
    if change > _VISIBLE and _log_probabilities(llm) == before:
        raise ModelError(
            f"the gate changed weights by up to {change:.0%}, and the model's log-probabilities not at all: "
            "vLLM computes with a copy of the weights; add enforce_eager=True"
        )
    log.info("gated %d layers in %d workers of vLLM", len(numbers), len(folded))


def gate_data(gate: Gate, layout: AttentionLayout) -> list[dict[str, Any]]:
    """A gate as plain data, for `GateWorker.truthgate_fold`; float32 values are exact in it.

    Args:
        gate: The gate.
        layout: The model's attention heads.

    Raises:
        GateError: The gate's shape is not the model's.
    """
    return [
        {
            "layer": number,
            "factors": part.factors.tolist(),
            "shift": None if part.shift is None else part.shift.tolist(),
        }
        for number, part in zip(layout.layer_numbers, layer_gates(layout, gate), strict=True)
    ]


def check_coverage(reports: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> None:
    """Check that every layer was folded by each tensor parallel rank, and as often as it is held.

    Args:
        reports: What `truthgate_fold` gave on each worker.
        numbers: The layers that are gated.

    Raises:
        ModelError: A layer was folded by no worker, or by the wrong number of them.
    """
    tp_size, pp_size = (int(reports[0][name]) for name in ("tp_size", "pp_size"))
    copies, rest = divmod(len(reports), tp_size * pp_size)
    if rest or not copies:
        raise ModelError(
            f"{len(reports)} workers of vLLM answered, which is no multiple of {tp_size} tensor parallel x "
            f"{pp_size} pipeline parallel ranks: start vLLM in one process, which reaches all of them"
        )
    found = Counter((layer["layer"], layer["tp_rank"]) for report in reports for layer in report["layers"])
    for number in numbers:
        counts = [found[number, rank] for rank in range(tp_size)]
        if counts != [copies] * tp_size:
            raise ModelError(
                f"layer {number} was gated {counts} times on vLLM's {tp_size} tensor parallel ranks, and "
                f"should be {[copies] * tp_size}: use gated_hf, or `truthgate export --format checkpoint`"
            )
    if sum(found.values()) != len(numbers) * tp_size * copies:
        raise ModelError(f"vLLM's workers gated layers that are not among {list(numbers)}")


def check_read_back(folded: Sequence[Mapping[str, Any]], read: Sequence[Mapping[str, Any]]) -> None:
    """Check that every worker has the weights that it said it had folded.

    Args:
        folded: What `truthgate_fold` gave on each worker.
        read: What `truthgate_read_back` gave on each of them afterwards.

    Raises:
        ModelError: Some weights differ.
    """
    names = ("layer", "tp_rank", "sha256")
    wanted, found = (
        [[[layer[name] for name in names] for layer in report["layers"]] for report in reports]
        for reports in (folded, read)
    )
    if wanted != found:
        raise ModelError(
            "vLLM's workers do not have the weights that the gate was folded into: load it again"
        )


def _call(llm: Any, method: str, *arguments: Any) -> list[dict[str, Any]]:
    """What a method of `GateWorker` gives on every worker.

    Raises:
        GateError: A worker refuses.
    """
    reports: list[dict[str, Any]] = llm.collective_rpc(method, args=arguments)
    refusal = next((report["error"] for report in reports if "error" in report), None)
    if refusal is not None:
        raise GateError(str(refusal))
    return reports


def _log_probabilities(llm: Any) -> list[float]:
    """The log-probabilities of the tokens of a fixed text."""
    parameters = llm.get_default_sampling_params()
    parameters.temperature, parameters.max_tokens, parameters.prompt_logprobs = 0.0, 1, 1
    [output] = llm.generate([_TEXT], parameters, use_tqdm=False)
    return [value.logprob for token in output.prompt_logprobs if token for value in token.values()]
