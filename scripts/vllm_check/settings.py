"""What is compared: the model, its gate, and how much of which task."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "docs" / "engines_vllm.json"
MODEL = "smollm2-135m-instruct"
GATE = {"scores": f"{MODEL}__halueval-qa", "lam": 20, "norm": "centered"}
PROMPTS, NEW_TOKENS = 50, 16
TASK, DOCUMENTS = "halueval_qa_select", 12
MAX_LENGTH = 2048
# The largest difference of a log-probability, and of a text's or choice's log-likelihood.
LIMIT = 1e-3
