"""Quantized and adapted models: the live gate against one computed from scratch, and the exports against it.

`python -m scripts.engines.quantized` writes the section of docs/engines.md, in about a minute;
`python -m scripts.engines.quantized --check` prints its table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peft import PeftModel

import scripts.engines.models  # noqa: F401 (puts the tests' helpers on the path)
from scripts.engines.page import PAGE
from scripts.engines.sections import read_section, replace_section
from truthgate_eval.cli.export import export
from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import SITES, Site, find_attention_layout
from truthgate_eval.gating.gate import Gate, attach, fold
from truthgate_eval.gating.gate_config import GateConfig

from helpers import quantized_models  # isort: skip

MODULE, SCORES = "quantized", "random:1"
LORA, QLORA = "LoRA", "LoRA over bitsandbytes 4-bit"
MODELS = (*quantized_models.QUANTIZATIONS, LORA, QLORA)
DTYPES = (torch.float32, torch.bfloat16)
COLUMNS = ("gate", "live", "peft", "folded", "checkpoint")
HEADER = ("model", "computes in", "site", *COLUMNS)
Key = tuple[str, str, Site]
Row = dict[str, float | str]


@dataclass(frozen=True)
class Sources:
    """The checkpoints that the models are made of.

    Attributes:
        plain: The plain checkpoint.
        lora: A LoRA for it, on the output projections too.
        merged: Both, merged.
    """

    plain: Path
    lora: Path
    merged: Path

    def load(self, name: str, dtype: torch.dtype) -> Any:
        """The model of a row, without a gate."""
        if name in (LORA, QLORA):
            base = quantized_models.load(
                "bitsandbytes 4-bit" if name == QLORA else "plain", self.plain, dtype
            )
            return PeftModel.from_pretrained(base, str(self.lora)).eval()
        return quantized_models.load(name, self.plain, dtype)

    def exported(self, name: str) -> Path:
        """The checkpoint that a gate of the row's model is exported for."""
        return self.merged if name in (LORA, QLORA) else self.plain

    def load_exported(self, name: str, folder: Path, dtype: torch.dtype) -> Any:
        """Such a checkpoint, quantized as the row's model is."""
        return quantized_models.load(
            {LORA: "plain", QLORA: "bitsandbytes 4-bit"}.get(name, name), folder, dtype
        )


def save_sources(folder: Path) -> Sources:
    """Make the checkpoints in a folder."""
    plain = quantized_models.save_checkpoint(folder / "plain")
    sources = Sources(plain, quantized_models.save_lora(plain, folder / "lora"), folder / "merged")
    sources.load(LORA, torch.float32).merge_and_unload().save_pretrained(sources.merged)
    return sources


def measure(name: str, dtype: torch.dtype, site: Site, sources: Sources, work: Path) -> Row:
    """One row: the largest differences of any logit, or why there is none."""
    gate = _gate(sources.load(name, dtype), site)
    model = sources.load(name, dtype)
    vanilla = quantized_models.logits(model)
    with attach(model, gate):
        live = quantized_models.logits(model)
    scratch = quantized_models.gated_from_scratch(model, gate.values, site)
    row: Row = {"gate": _largest(live, vanilla), "live": _largest(live, scratch)}
    row["peft"] = _peft(name, dtype, site, sources, work, live)
    try:
        fold(model, gate)
        row["folded"] = _largest(quantized_models.logits(model), live)
    except GateError:
        row["folded"] = "refused"
    if name == quantized_models.GGUF:
        row["checkpoint"] = "no safetensors"
    else:
        folder = _export("checkpoint", sources.exported(name), site, work)
        row["checkpoint"] = _largest(
            quantized_models.logits(sources.load_exported(name, folder, dtype)), live
        )
    return row


def _peft(
    name: str, dtype: torch.dtype, site: Site, sources: Sources, work: Path, live: torch.Tensor
) -> float | str:
    """The exported adapter: under the merged model where there is a LoRA."""
    if name == QLORA:
        return "merge first"
    folder = _export("peft", sources.exported(name), site, work)
    base = sources.load_exported(name, sources.exported(name), dtype)
    adapted = PeftModel.from_pretrained(base, str(folder)).eval()
    try:
        return _largest(quantized_models.logits(adapted), live)
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        return "stops with an error"


def _gate(model: Any, site: Site) -> Gate:
    return GateConfig.parse(SCORES, site=site).gate(find_attention_layout(model), "tiny")


def _export(format: str, checkpoint: Path, site: Site, work: Path) -> Path:
    """Export the gate for a checkpoint, unless that is done already."""
    output = work / f"{format}-{checkpoint.name}-{site}"
    if not output.is_dir():
        arguments = f"pretrained={checkpoint},scores={SCORES},site={site}"
        with contextlib.redirect_stdout(io.StringIO()):
            export(output=output, format=format, model="hf", model_args=arguments)
    return output


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def measure_all(chosen: Callable[[Key], bool] = lambda _: True) -> dict[Key, Row]:
    """All rows, or the chosen ones."""
    rows: dict[Key, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = save_sources(Path(folder))
        for name in MODELS:
            for dtype in DTYPES:
                for site in SITES:
                    key = name, str(dtype).removeprefix("torch."), site
                    if chosen(key):
                        rows[key] = measure(name, dtype, site, sources, Path(folder))
    return rows


def table(rows: Mapping[Key, Row]) -> str:
    """The rows in Markdown."""
    lines = [f"| {' | '.join(HEADER)} |", f"|{' --- |' * len(HEADER)}"]
    for key, row in rows.items():
        cells = [
            value if isinstance(value, str) else f"{value:.1e}" if value else "0" for value in row.values()
        ]
        lines.append(f"| {' | '.join((*key, *cells))} |")
    return "".join(f"{line}\n" for line in lines)


def rows_of_section(text: str) -> Iterator[tuple[Key, dict[str, str]]]:
    """The rows of the section of a page, as `measure_all` gives them, with cells as texts."""
    for line in read_section(text, MODULE).splitlines():
        cells = line.strip("| ").split(" | ")
        if line.startswith("| ") and len(cells) == len(HEADER) and cells[2] in SITES:
            site: Site = "post" if cells[2] == "post" else "pre"
            yield (cells[0], cells[1], site), dict(zip(COLUMNS, cells[3:], strict=True))


_TEXT = """\
## Quantised and adapted models

The same for a tiny Llama with 64 features, on the CPU, with
{versions}.
`uv run python -m scripts.engines.quantized` writes this section.

* *gate*: the live gate against the model without a gate, for scale.
* *live*: the live gate against hooks that the script makes itself, on the same quantised or adapted model.
* *peft*: the exported adapter on the quantised model, against the live gate. Under bitsandbytes PEFT's IA3
  layers return float32, and a model that computes in bfloat16 stops with an error: gate it live, with
  `gated_hf` or `gated_vlm`. A LoRA is merged first.
* *folded*: `mode=folded` against the live gate. It needs floating-point weights, which GGUF files are read
  as.
* *checkpoint*: the checkpoint exported from the plain weights (of a LoRA: from the merged ones) and
  quantised when it is loaded, against the live gate. Other weights are rounded then: it is another model.

{table}
int4 is torchao's `IntxWeightOnlyConfig` in groups of 32; its `Int4WeightOnlyConfig` has layouts for GPUs. A
LoRA that leaves the output projections alone needs no merging: it runs on the exported checkpoint of its
base, and `mode=folded` works beside it. On a CPU with AVX-512 for bfloat16, put an adapter on a 4-bit model
before it runs: PEFT reads the state dict, and bitsandbytes 0.50 then changes 4-bit weights that have run.
"""


def section(rows: Mapping[Key, Row]) -> str:
    """The section's Markdown."""
    packages = ("transformers", "torch", "peft", "bitsandbytes", "torchao", "gguf")
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in packages)
    return _TEXT.format(versions=versions, table=table(rows))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.engines.quantized", description=__doc__)
    parser.add_argument("--check", action="store_true", help="print the table and write nothing")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    rows = measure_all()
    if options.check:
        print(table(rows))
    else:
        write(rows)
    return 0


def write(rows: Mapping[Key, Row]) -> None:
    """Replace the section of docs/engines.md."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_section(text, MODULE, section(rows)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
