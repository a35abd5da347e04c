"""The gate in vLLM: a section of docs/engines.md, from the figures in docs/engines_vllm.json.

`python -m scripts.vllm_check` measures them in an environment of its own, and `python -m
scripts.engines.vllm` writes the section.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scripts.engines.page import PAGE
from scripts.engines.sections import replace_section
from scripts.vllm_check.figures import table
from scripts.vllm_check.settings import DOCUMENTS, GATE, NEW_TOKENS, OUTPUT, TASK

MODULE = "vllm"
_TEXT = """\
## vLLM

`gated_vllm` of lm-eval and lmms-eval folds the gate into the weights of every worker after loading
([Gates in vLLM](harnesses.md#gates-in-vllm)). Log-probabilities on the CPU in float32, against the live gate
in transformers, with {versions}; measured by
`uv run python -m scripts.vllm_check`, which makes an environment for it, and written by
`uv run python -m scripts.engines.vllm`.

{table}
*gate* is what the live gate changes, for scale.
{notes}
Not run: lmms-eval's `gated_vllm` and models that take images; GPUs, where weights change in place under
compiled code and CUDA graphs; several nodes; and a shift.
"""
_SMOLLM2 = """\
* SmolLM2-135M-Instruct has its shipped scores, `lam={lam},norm={norm}`. The texts are greedy, of {tokens}
  tokens after prompts of `halueval_qa`; {equal} are those of `gated_hf`. The choices are those of the
  first {documents} documents of `{task}`, on lm-eval's command line. Prefix caching is on.
"""
_TINY = """\
* The tiny Llama is random, with 4 layers, 4 heads, 2 key-value heads and biases, and so are its gates.
"""
_STAGES = """\
* In two pipeline stages each worker has the weights of its layers as `fold` makes them, bit for bit. vLLM
  0.32 does not compute in stages on the CPU, with or without a gate.
"""


def section(found: Mapping[str, Any]) -> str:
    """The section's Markdown."""
    notes = ""
    if "texts" in found and "choices" in found:
        differ, prompts = found["texts"]["differ"], found["texts"]["prompts"]
        notes += _SMOLLM2.format(
            **GATE,
            tokens=NEW_TOKENS,
            equal="all of them" if not differ else f"{prompts - differ} of {prompts}",
            documents=DOCUMENTS,
            task=TASK,
        )
    if "tensor_parallel" in found:
        notes += _TINY
    if "pipeline_parallel" in found:
        notes += _STAGES
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return _TEXT.format(versions=versions, table=table(found), notes=f"\n{notes}" if notes else "")


def main() -> None:
    """Replace the section of docs/engines.md."""
    found = json.loads(OUTPUT.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_section(text, MODULE, section(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
