"""Make the table of docs/method.md#equal-strength: is a divergence reached on prompts that it was not found on?

    python studies/make_equal_strength.py

SmolLM2-135M-Instruct on HaluEval-QA's questions. Each action's strength is found on `PROMPTS` of them, and the
divergence measured on as many others. The page's table stands between two comments, and is replaced.
"""

from __future__ import annotations

import logging
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from make_controls import machine

from truthgate_eval.data import halueval
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.equal_strength import find_equal_strength
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.inference import self_check
from truthgate_eval.inference.next_token_divergence import NextTokenDivergence
from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2
from truthgate_eval.probing.config import CaptureConfig, ProbeConfig
from truthgate_eval.probing.dataset import TokenizedDataset
from truthgate_eval.probing.run import run_probing

log = logging.getLogger(__name__)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "method.md"
BEGIN, END = "<!-- studies/make_equal_strength.py writes from here -->\n", "<!-- to here -->\n"
TARGET, PROBED, PROMPTS = 0.05, 100, 2048
GATES: dict[str, dict[str, Any]] = {
    "soft": {"lam": f"kl:{TARGET}"},
    "select": {"action": "select", "lam": f"kl:{TARGET}"},
    "shift": {"action": "shift", "top": 48, "alpha": f"kl:{TARGET}"},
}


def main() -> None:
    """Probe, find the strengths, measure, and write the table."""
    folder = resolve_smollm2(SMOLLM2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    records = list(halueval.read_records("qa"))
    scores = probe(model, tokenizer, records[:PROBED])
    prompts = [tokenizer(context(row)).input_ids for row in records[PROBED : PROBED + 2 * PROMPTS]]
    # The file's order is no random order.
    order = np.random.default_rng(0).permutation(len(prompts)).tolist()
    shared = self_check.load(model, find_attention_layout(model).decoder)
    found_on, fresh = (
        NextTokenDivergence(shared, [prompts[i] for i in half]) for half in (order[:PROMPTS], order[PROMPTS:])
    )
    lines = [
        "| action | strength | divergence where it was found | on fresh prompts | off by |",
        "| --- | --- | --- | --- | --- |",
    ]
    for action, arguments in GATES.items():
        config = GateConfig.parse(scores, site="pre", **arguments)
        config = find_equal_strength(config, model, "SmolLM2", found_on, tokenizer=tokenizer)
        lines.append(row_of(action, config, model, fresh))
        log.info("%s", lines[-1])
    packages = ", ".join(f"{name} {version(name)}" for name in ("truthgate_eval", "torch", "transformers"))
    lines += [
        "",
        f"SmolLM2-135M-Instruct, kl:{TARGET}, {PROMPTS} questions of HaluEval-QA and {PROMPTS} fresh ones, scores of "
        f"{PROBED} others at site pre; {machine()}, {packages}.",
    ]
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1], encoding="utf-8")


def row_of(action: str, config: GateConfig, model: Any, fresh: NextTokenDivergence) -> str:
    """Gate the model, measure on the fresh prompts, and take the gate off."""
    handle = config.apply(model, "SmolLM2")
    assert handle is not None and config.target is not None and config.target.reached is not None
    each = fresh.of_each()
    handle.remove()
    reached, stderr = float(each.mean()), float(each.std()) / math.sqrt(len(each))
    strength = config.lam if config.shift is None else config.shift.alpha
    return (
        f"| `{action}` | {strength:.4g} | {config.target.reached:.4f} | {reached:.4f} ± {stderr:.4f} | "
        f"{abs(reached / TARGET - 1):.1%} |"
    )


def context(row: dict[str, Any]) -> str:
    """What stands before the answer, as `probe_halueval_qa` writes it, without the knowledge, which is long."""
    return f"Question: {row['question']}\nAnswer:"


def probe(model: Any, tokenizer: Any, records: list[dict[str, Any]]) -> TruthScores:
    """Scores at site pre, with directions for the shift."""
    answers = [
        (f"{context(row)} {row[column]}", number, column == "right_answer")
        for number, row in enumerate(records)
        for column in ("right_answer", "hallucinated_answer")
    ]
    sequences = TokenizedDataset(
        [tokenizer(text).input_ids for text, _, _ in answers],
        np.array([truthful for _, _, truthful in answers], dtype=np.int64),
        np.array([number for _, number, _ in answers]),
        {},
        "",
    )
    config = ProbeConfig(solver="newton")
    return run_probing(model, sequences, config, name="SmolLM2", capture_config=CaptureConfig(site="pre"))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
