"""The page docs/engines.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from scripts.engines.engines import BFLOAT16, ENGINES
from scripts.engines.sections import all_sections
from truthgate_eval.gating.attention_layout import Site

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"
HEADER = ("class", "site", "gate", *ENGINES)
_PACKAGES = ("transformers", "torch", "peft", "lm_eval", "lmms_eval")
_INTRODUCTION = """\
# Engines

<!-- Written by `python -m scripts.engines`; do not edit. -->

A gate found here is used elsewhere in one of two forms, both written by
[`truthgate export`](cli.md#truthgate-export): an IA3 adapter of PEFT, and a checkpoint with the gate folded
in. The table has the largest absolute difference of any logit from that of the live gate, for tiny random
models in float32 whose gate is drawn at random, with
{versions}.
`uv run python -m scripts.engines` writes this page, and
`uv run python -m scripts.engines --check LlamaForCausalLM` prints the rows of one class.

* *gate*: the live gate against the model without a gate, for scale.
* *folded*: `fold`, in memory.
* *peft*, *peft merged*: `PeftModel.from_pretrained(model, FOLDER)`, and after `merge_and_unload()`.
* *checkpoint*: the exported checkpoint in transformers.
* *lm-eval*: `--model hf`, with `pretrained=MODEL,peft=FOLDER` and with `pretrained=FOLDER`. With `peft=`
  lm-eval cuts or extends the vocabulary to the tokenizer's size; where the two differ (Qwen2.5),
  log-likelihoods are those over the tokenizer's tokens, for every adapter. The table has the logits of the
  tokens that are in both.
* *lmms-eval*: its own `llava_hf` and `qwen2_5_vl`, with `pretrained=FOLDER`. The second always computes in
  bfloat16 and is compared with the live gate in bfloat16 (marked †).

"""
_REST = """
Measured once, by the command lines of `tests/real/test_export.py`, on the real SmolLM2-135M-Instruct with its
shipped scores, `lam=20,norm=centered`: over the choices of the first 12 documents of `halueval_qa_select` the
gate moves log-likelihoods by up to 6.8. `lm_eval --model hf` with the adapter differs from `--model gated_hf`
by at most 2.7e-05, with the exported checkpoint by 1.9e-05.

A checkpoint in the shape of Llama-7B (13.5 GB in bfloat16) is exported in 107 MiB of memory above the 1,032
MiB of the imports, without a GPU (`tests/unit/export/test_memory.py`).

Several processes, in tests with two on the CPU (gloo): `truthgate probe` and both harnesses' evaluation
split the work and give one process's artifact and samples
(`tests/integration/test_probe_in_several_processes.py`, `test_several_processes.py` of each harness). Under
transformers' tensor parallelism (`tp_plan=auto`) the gate is cut with the projection: on a tiny Llama the
logits are those of one process to 1e-5, at both sites, through lm-eval to 1e-4
(`tests/unit/gating/test_tensor_parallel.py`).

Not run: lm-eval's `hf` with images, which it does not take; a shift (`action=shift`), which is no adapter;
and several GPUs.
"""


def page(rows: Mapping[tuple[str, Site], Mapping[str, float | str]]) -> str:
    """The page's Markdown, with the sections that other modules have written into it as they are."""
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in _PACKAGES)
    text = _INTRODUCTION.format(versions=versions)
    text += f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}\n"
    text += "".join(f"{table_row(name, site, row)}\n" for (name, site), row in rows.items())
    return text + _REST + all_sections(PAGE.read_text(encoding="utf-8"))


def table_row(name: str, site: Site, row: Mapping[str, float | str]) -> str:
    """One row of the table."""
    cells = [name, site]
    for engine in HEADER[2:]:
        value = row[engine]
        mark = "†" if (name, engine) in BFLOAT16 else ""
        cells.append(value if isinstance(value, str) else f"{value:.1e}{mark}" if value else "0")
    return f"| {' | '.join(cells)} |"


def rows_of_page(text: str) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """The class and site, and the other cells, of every row of a page's table."""
    for line in text.splitlines():
        cells = line.strip("| ").split(" | ")
        if line.startswith("| ") and len(cells) == len(HEADER) and cells[1] in ("post", "pre"):
            yield (cells[0], cells[1]), cells[2:]
