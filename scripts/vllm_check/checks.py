"""What is compared, each in a process of its own with the environment's Python.

`python -m scripts.vllm_check.checks NAME FOLDER` writes FOLDER/NAME.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

# The tiny models' tokenizer is that of the tests.
sys.path.append(str(Path(__file__).parents[2] / "tests"))
from helpers.tiny_models import tiny_tokenizer

from scripts.vllm_check.settings import DOCUMENTS, GATE, MAX_LENGTH, NEW_TOKENS, PROMPTS, TASK
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import attach, fold, random_gate


def reference(_folder: Path) -> dict[str, Any]:
    """What gated_hf gives: greedy texts, and log-likelihoods of them and of a task's choices."""
    from truthgate_eval.harness.lm_eval.model import GatedHF

    lm = GatedHF(**GATE, site="post", dtype="float32", device="cpu", batch_size=8)
    texts = _texts(lm)
    scored = [(prompt, text) for prompt, text in zip(_prompts(), texts, strict=True) if text]
    found: dict[str, Any] = {"texts": texts, "scored": scored, "gated": _loglikelihoods(lm, scored)}
    lm.gate_handle.remove()
    found |= {"vanilla": _loglikelihoods(lm, scored), "vanilla_choices": _choices(lm)}
    return {
        **found,
        "choices": _choices(GatedHF(**GATE, site="pre", dtype="float32", device="cpu", batch_size=8)),
    }


def texts(folder: Path) -> dict[str, Any]:
    """Greedy texts of gated_vllm, and its log-likelihoods of gated_hf's."""
    from truthgate_eval.harness.lm_eval.vllm_model import GatedVLLM

    lm = GatedVLLM(**GATE, site="post", dtype="float32", max_model_len=MAX_LENGTH)
    scored = json.loads((folder / "reference.json").read_text())["scored"]
    caching = lm.model.llm_engine.vllm_config.cache_config.enable_prefix_caching
    return {"texts": _texts(lm), "gated": _loglikelihoods(lm, scored), "prefix_caching": caching}


def tensor_parallel(folder: Path) -> dict[str, Any]:
    """Two tensor parallel ranks."""
    return _parallel(folder, tensor_parallel_size=2)


def pipeline_parallel(folder: Path) -> dict[str, Any]:
    """The weights of two pipeline stages, against the gate folded in memory.

    vLLM 0.32 does not compute in stages on the CPU: without compiled code the second stops at an assertion
    (`intermediate_tensors is not None`), with or without a gate.
    """
    from vllm import LLM

    from truthgate_eval.export.vllm_engine import WORKER_EXTENSION, check_coverage, gate_data

    model = _tiny_llama(folder / "tiny")
    layout = find_attention_layout(model)
    llm = LLM(
        model=str(folder / "tiny"), dtype="float32", max_model_len=64, enforce_eager=True,
        pipeline_parallel_size=2, worker_extension_cls=WORKER_EXTENSION,
    )  # fmt: skip
    gate = random_gate(layout.shape, seed=1, site="pre")
    reports = llm.collective_rpc("truthgate_fold", args=(gate.site, gate_data(gate, layout)))
    check_coverage(reports, layout.layer_numbers)
    read = llm.collective_rpc("truthgate_read_back", args=(list(layout.layer_numbers),))
    fold(model, gate, layout=layout)
    found = {layer["layer"]: layer["sha256"] for report in read for layer in report["layers"]}
    expected = [
        hashlib.sha256(p.module.weight.detach().numpy().tobytes()).hexdigest() for p in layout.projections
    ]
    return {
        "layers": [[layer["layer"] for layer in report["layers"]] for report in read],
        "differ": sum(found[number] != digest for number, digest in enumerate(expected)),
    }


def _parallel(folder: Path, **sizes: int) -> dict[str, Any]:
    """Log-probabilities of a tiny random Llama: without a gate, with one at `pre`, and one at `post` over it.

    In transformers both gates are live.
    """
    from vllm import LLM, SamplingParams

    from truthgate_eval.export.vllm_engine import WORKER_EXTENSION, fold_into_engine

    model = _tiny_llama(folder / "tiny")
    layout = find_attention_layout(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (4, 24), generator=generator)
    llm = LLM(
        model=str(folder / "tiny"), dtype="float32", max_model_len=64, enforce_eager=True, **sizes,
        worker_extension_cls=WORKER_EXTENSION,
    )  # fmt: skip

    def of_vllm() -> torch.Tensor:
        parameters = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        prompts: Any = [{"prompt_token_ids": row} for row in ids.tolist()]
        return torch.tensor(
            [
                [
                    values[token].logprob
                    for token, values in zip(row[1:], output.prompt_logprobs[1:], strict=True)
                ]
                for row, output in zip(
                    ids.tolist(), llm.generate(prompts, parameters, use_tqdm=False), strict=True
                )
            ]
        )

    @torch.no_grad()
    def of_transformers() -> torch.Tensor:
        log_probs = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        return log_probs.gather(-1, ids[:, 1:, None])[..., 0]

    vanilla = of_transformers()
    found: dict[str, Any] = {"vanilla": _largest(of_vllm(), vanilla)}
    for site, seed in (("pre", 1), ("post", 2)):
        gate = random_gate(layout.shape, seed=seed, site=site)  # type: ignore[arg-type]
        fold_into_engine(llm, gate, layout)
        attach(model, gate, layout=layout)
        found[site] = _largest(of_vllm(), of_transformers())
    return {**found, "gate": _largest(of_transformers(), vanilla)}


def versions(_folder: Path) -> dict[str, Any]:
    """The versions of what ran."""
    import vllm

    packages = ("torch", "transformers", "lm_eval")
    return {"vllm": vllm.__version__, **{name: version(name).partition("+")[0] for name in packages}}


def _tiny_llama(folder: Path) -> Any:
    """A random Llama whose heads two ranks can share, with biases, and its checkpoint."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = transformers.LlamaConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=256, vocab_size=len(tokenizer), max_position_embeddings=256, attention_bias=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def _prompts() -> list[str]:
    """The prompts of the first documents of `halueval_qa`."""
    from lm_eval.tasks import TaskManager, get_task_dict

    task = get_task_dict(["halueval_qa"], TaskManager())["halueval_qa"]
    return [str(task.doc_to_text(task.eval_docs[index])) for index in range(PROMPTS)]


def _texts(lm: Any) -> list[str]:
    settings = {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    return list(lm.generate_until(_instances("generate_until", [(p, settings) for p in _prompts()]), True))


def _choices(lm: Any) -> list[float]:
    """Log-likelihoods of a task's choices, as `__main__` reads them from the samples of a command line."""
    import lm_eval

    run: Any = lm_eval.simple_evaluate(model=lm, tasks=[TASK], limit=DOCUMENTS, log_samples=True)
    samples = sorted(run["samples"][TASK], key=lambda sample: sample["doc_id"])
    return [float(value) for sample in samples for value, _ in sample["filtered_resps"]]


def _loglikelihoods(lm: Any, scored: list[Any]) -> list[float]:
    requests = _instances("loglikelihood", [tuple(pair) for pair in scored])
    return [value for value, _ in lm.loglikelihood(requests, True)]


def _instances(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


CHECKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    check.__name__: check for check in (reference, texts, tensor_parallel, pipeline_parallel, versions)
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CHECKS)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    found = CHECKS[options.name](options.folder)
    (options.folder / f"{options.name}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
