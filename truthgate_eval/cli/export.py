"""`truthgate export`: a gate as an adapter of PEFT, or as a checkpoint, for engines that do not know us."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from truthgate_eval.cli.console import print_line
from truthgate_eval.errors import GateError, ModelError, TruthGateError, check_choice
from truthgate_eval.harness.lmms_eval.registry import MODELS

if TYPE_CHECKING:
    from truthgate_eval.export.source import ModelSource
    from truthgate_eval.gating.gate_config import GateConfig

Format = Literal["peft", "checkpoint"]
FORMATS: tuple[Format, ...] = get_args(Format)
# Model arguments that say how an evaluation runs. They change no weights, so the arguments with which a gate
# was evaluated can be given as they are.
_OF_A_RUN = frozenset(
    {
        "attn_implementation", "add_bos_token", "backend", "batch_size", "chat_template",
        "chat_template_args", "device", "device_map", "dtype", "enable_thinking", "engine", "logits_cache",
        "max_batch_size", "max_length", "max_pixels", "min_pixels", "parallelize", "system_instruction",
        "think_end_token", "tokenizer", "truncation", "use_fast_tokenizer",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What is to be exported.

    Attributes:
        source: The model.
        gate: The gate's configuration.
    """

    source: ModelSource
    gate: GateConfig


def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    format: Annotated[
        str,
        typer.Option("--format", help="peft: an IA3 adapter; checkpoint: the model with the gate folded in."),
    ] = "peft",
    model: Annotated[
        str, typer.Option(help="hf (lm-eval's models), or vlm, gated_llava, ... (image and text).")
    ] = "hf",
    model_args: Annotated[
        str,
        typer.Option("--model_args", "-a", help="pretrained=, scores=, lam=, ... as in the harness."),
    ] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export or another model in the folder.")
    ] = False,
) -> None:
    """Write the gate in a form that other engines load: an adapter of PEFT, or a whole checkpoint.

    No weights are loaded. A checkpoint is copied file by file, and needs no GPU and little memory.
    """
    from truthgate_eval.export.adapter import export_adapter
    from truthgate_eval.export.checkpoint import export_checkpoint
    from truthgate_eval.export.output import check_output_folder, provenance
    from truthgate_eval.gating.attention_layout import find_attention_layout
    from truthgate_eval.harness.model_args import parse_model_args

    # All arguments are checked before anything is fetched or built.
    kind = check_choice("--format", format, FORMATS)
    check_output_folder(output, overwrite=overwrite)
    request = read_request(model, parse_model_args(model_args))
    source, config = request.source, request.gate
    if Path(source.location).is_dir():
        check_output_folder(output, overwrite=overwrite, source=Path(source.location))
    skeleton = source.skeleton()
    layout = find_attention_layout(skeleton)
    gate = config.gate(layout, source.name)
    task = None if config.scores is None else config.scores.metadata.get("task")
    record = provenance(source.name, source.commit, config.describe(), task)
    options: dict[str, Any] = {"record": record, "layout": layout, "overwrite": overwrite}
    options |= {"base_model": source.base_model}
    if kind == "peft":
        export_adapter(skeleton, gate, output, modality=source.modality, **options)
    else:
        export_checkpoint(source.checkpoint(), skeleton, gate, output, **options)
    what = "an IA3 adapter" if kind == "peft" else "a checkpoint"
    print_line(
        f"{layout.num_layers} layers x {layout.num_heads} heads of {source.name}, as {what} -> {output}"
    )


def read_request(model: str, arguments: Mapping[str, Any]) -> Request:
    """The model and the gate of model arguments.

    Args:
        model: The value of `--model`.
        arguments: As in the harness.

    Raises:
        TruthGateError: An argument does not exist, or is nothing that weights can hold.
    """
    from truthgate_eval.export.source import find_source
    from truthgate_eval.gating.gate_arguments import GATE_ARGUMENTS, Modality, is_missing
    from truthgate_eval.gating.gate_config import GateConfig

    given = {name: value for name, value in arguments.items() if not is_missing(value)}
    takes_images = model == "vlm" or model in MODELS
    if not takes_images and model not in ("hf", "gated_hf"):
        raise TruthGateError(f"--model {model}: an export takes hf, vlm, or one of {', '.join(MODELS)}")
    modality: Modality = "image" if takes_images else "text"
    chosen = {name: given.pop(name) for name in GATE_ARGUMENTS if name in given}
    for name in ("scores", "norm"):  # lm-eval reads scores=none and norm=none as None
        if name in arguments and arguments[name] is None:
            chosen[name] = "none"
    pretrained, scores = _default_model(model, given.pop("pretrained", None), chosen.pop("scores", None))
    where = {name: given.pop(name) for name in ("revision", "trust_remote_code") if name in given}
    gguf_file = None if takes_images or "gguf_file" not in given else str(given.pop("gguf_file"))
    _check_rest(given)
    if scores is None:
        raise GateError("nothing to export: give scores=FILE, which `truthgate probe` makes, and lam=NUMBER")
    config = GateConfig.parse(scores, modality=modality, **chosen)
    _check_exportable(config)
    source = find_source(
        str(pretrained),
        modality,
        revision=None if "revision" not in where else str(where["revision"]),
        trust_remote_code=str(where.get("trust_remote_code", False)).lower() in ("true", "1"),
        gguf_file=gguf_file,
    )
    return Request(source, config)


def _default_model(model: str, pretrained: Any, scores: Any) -> tuple[Any, Any]:
    """What gated_hf, or the named gated model, loads where `pretrained` or `scores` is left out."""
    if model in ("hf", "gated_hf"):
        from truthgate_eval.packaged.models import default_scores
        from truthgate_eval.packaged.smollm2 import SMOLLM2

        pretrained = pretrained or SMOLLM2
        return pretrained, default_scores(pretrained, scores)
    if pretrained is None:
        from truthgate_eval.harness.lmms_eval.model import DEFAULTS

        pretrained = DEFAULTS["gated_vlm" if model == "vlm" else model]
    return pretrained, scores


def _check_rest(arguments: Mapping[str, Any]) -> None:
    """Raise unless the arguments that are left say only how an evaluation runs."""
    from truthgate_eval.inference.quantization import BITSANDBYTES_OPTIONS

    left = [name for name in arguments if name not in _OF_A_RUN | BITSANDBYTES_OPTIONS]
    if not left:
        return
    if left[0] in ("peft", "delta"):
        raise ModelError(
            f"{left[0]}={arguments[left[0]]}: a gate is exported for a model without adapters; merge the "
            "adapter into a checkpoint (PeftModel.from_pretrained, merge_and_unload, save_pretrained) and "
            "export with pretrained=FOLDER"
        )
    if left[0] == "contrast":
        raise GateError("contrast= is computed in each answer and no weights can hold it: leave it out")
    from truthgate_eval.gating.gate_arguments import GATE_ARGUMENTS

    raise GateError(
        f"an export takes no {left[0]}: expected pretrained, revision, trust_remote_code, gguf_file, "
        f"{', '.join(GATE_ARGUMENTS)}"
    )


def _check_exportable(config: GateConfig) -> None:
    """Raise unless weights can hold what the configuration does."""
    if config.is_pending and config.target is not None:
        raise GateError(
            f"{config.target.text} is found by running the model: evaluate it once, and give the number that "
            "its results file records"
        )
    if config.is_vanilla:
        raise GateError(f"scores={config.source} is the vanilla model: there is no gate to export")
    if config.yes_offset:
        raise GateError(
            "yes_offset changes logits, which no weight of an output projection can: leave it out"
        )
