"""The engines of the page: each gives the logits of a gated model."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scripts.engines.models import TinyCheckpoint, save_checkpoint
from truthgate_eval.cli.export import export
from truthgate_eval.gating.attention_layout import SITES, Site, find_attention_layout
from truthgate_eval.gating.gate import Gate, attach, fold
from truthgate_eval.gating.gate_config import GateConfig

SCORES = "random:1"


@dataclass(frozen=True)
class Case:
    """One model class and site.

    Attributes:
        checkpoint: The model.
        site: The gate's.
        adapter: What `truthgate export --format peft` wrote.
        folded: What `truthgate export --format checkpoint` wrote.
    """

    checkpoint: TinyCheckpoint
    site: Site
    adapter: Path
    folded: Path

    def gate(self, model: Any) -> Gate:
        """The gate that the exports hold."""
        return GateConfig.parse(SCORES, site=self.site).gate(
            find_attention_layout(model), self.checkpoint.name
        )


def export_case(checkpoint: TinyCheckpoint, site: Site, folder: Path) -> Case:
    """Export a gate of a checkpoint in both formats, as the command line does."""
    arguments = f"pretrained={checkpoint.folder},scores={SCORES},site={site}"
    case = Case(checkpoint, site, folder / "adapter", folder / "folded")
    for format, output in (("peft", case.adapter), ("checkpoint", case.folded)):
        with contextlib.redirect_stdout(io.StringIO()):
            export(
                output=output,
                format=format,
                model="vlm" if checkpoint.is_multimodal else "hf",
                model_args=arguments,
            )
    return case


@torch.no_grad()
def logits(model: Any, checkpoint: TinyCheckpoint) -> torch.Tensor:
    """All logits of a checkpoint's inputs, in float32."""
    dtype = next(model.parameters()).dtype
    inputs = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in checkpoint.inputs.items()
    }
    return model(**inputs).logits.float()


def live(case: Case, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The gate as hooks: what the others are compared with."""
    model = case.checkpoint.load(dtype=dtype)
    with attach(model, case.gate(model)):
        return logits(model, case.checkpoint)


def vanilla(case: Case) -> torch.Tensor:
    """Without a gate: a gate that does nothing would otherwise be equal everywhere."""
    return logits(case.checkpoint.load(), case.checkpoint)


def _folded(case: Case) -> torch.Tensor:
    model = case.checkpoint.load()
    fold(model, case.gate(model))
    return logits(model, case.checkpoint)


def _peft(case: Case) -> torch.Tensor:
    from peft import PeftModel

    return logits(
        PeftModel.from_pretrained(case.checkpoint.load(), str(case.adapter)).eval(), case.checkpoint
    )


def _peft_merged(case: Case) -> torch.Tensor:
    from peft import PeftModel

    model = PeftModel.from_pretrained(case.checkpoint.load(), str(case.adapter))
    return logits(model.merge_and_unload(), case.checkpoint)


def _checkpoint(case: Case) -> torch.Tensor:
    return logits(case.checkpoint.load(case.folded), case.checkpoint)


def _lm_eval(case: Case, **arguments: Any) -> torch.Tensor:
    from lm_eval.models.huggingface import HFLM

    if case.checkpoint.is_multimodal:
        raise NotImplementedError("text models only")
    model = HFLM(**arguments, device="cpu", dtype="float32", batch_size=2)
    with torch.no_grad():
        return model._model_call(case.checkpoint.inputs["input_ids"]).float()


def _lm_eval_peft(case: Case) -> torch.Tensor:
    found = _lm_eval(case, pretrained=str(case.checkpoint.folder), peft=str(case.adapter))
    # Beside an adapter lm-eval makes the vocabulary as large as the tokenizer.
    return found[..., : case.checkpoint.load().config.get_text_config().vocab_size]


def _lm_eval_checkpoint(case: Case) -> torch.Tensor:
    return _lm_eval(case, pretrained=str(case.folded))


def _lmms_eval(case: Case) -> torch.Tensor:
    from lmms_eval.models import get_model

    # lmms-eval's class for each of ours, and what it needs to run on the CPU.
    classes: dict[str, tuple[str, dict[str, Any]]] = {
        "LlavaForConditionalGeneration": ("llava_hf", {"dtype": "float32"}),
        "Qwen2_5_VLForConditionalGeneration": ("qwen2_5_vl", {}),  # it takes no dtype
    }
    if case.checkpoint.name not in classes:
        raise NotImplementedError("image models only")
    name, options = classes[case.checkpoint.name]
    model = get_model(name, force_simple=True)(
        pretrained=str(case.folded), device="cpu", device_map="cpu", batch_size=1, **options
    )
    return logits(model.model.eval(), case.checkpoint)


ENGINES: dict[str, Callable[[Case], torch.Tensor]] = {
    "folded": _folded,
    "peft": _peft,
    "peft merged": _peft_merged,
    "checkpoint": _checkpoint,
    "lm-eval, peft": _lm_eval_peft,
    "lm-eval, checkpoint": _lm_eval_checkpoint,
    "lmms-eval, checkpoint": _lmms_eval,
}
# lmms-eval's qwen2_5_vl loads every checkpoint in bfloat16; it is compared with the live gate in bfloat16.
BFLOAT16 = {("Qwen2_5_VLForConditionalGeneration", "lmms-eval, checkpoint")}


def differences(case: Case) -> dict[str, float | str]:
    """For each engine the largest difference of its logits from the live gate's, or why it was not run.

    The key `gate` has the live gate's difference from the model without a gate.
    """
    reference = live(case)
    found: dict[str, float | str] = {"gate": _largest(reference, vanilla(case))}
    for name, engine in ENGINES.items():
        try:
            result = engine(case)
        except NotImplementedError as error:
            found[name] = str(error)
            continue
        in_half = (case.checkpoint.name, name) in BFLOAT16
        found[name] = _largest(result, live(case, torch.bfloat16) if in_half else reference)
    return found


def measure(name: str) -> dict[tuple[str, Site], dict[str, float | str]]:
    """The rows of one class."""
    rows: dict[tuple[str, Site], dict[str, float | str]] = {}
    for site in SITES:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = save_checkpoint(name, Path(folder, "model"))
            rows[name, site] = differences(export_case(checkpoint, site, Path(folder)))
    return rows


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())
