"""One planted head: a gate on it changes the leaderboard, and a gate on another head does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.leaderboards import leaderboard

from truthgate_eval.gating.scores import TruthScores


def planted_checkpoint(folder: Path) -> str:
    """A Llama that says Yes or No by how much head 3 of its only layer writes, and nothing else."""
    import torch
    import transformers as hf
    from helpers import tiny_models as factories

    words = factories.tiny_tokenizer()
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8}
    config = hf.LlamaConfig(
        **shape,
        vocab_size=len(words),
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = hf.LlamaForCausalLM(config)
    token = {text: words(text, add_special_tokens=False).input_ids[0] for text in ":YesNo\n"}
    mark = {text: place for place, text in enumerate(":YesNo", start=1)}
    constant, slice_of_head_3 = 0, 24
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:, constant] = 1
        for text, place in mark.items():
            embedding[token[text], place] = 1
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight[slice_of_head_3, constant] = 1
        attention.o_proj.weight[slice_of_head_3, slice_of_head_3] = 0.1  # writes about 0.56
        for before, after in (":Y", ":N", "Ye", "es", "No", "s\n", "o\n"):
            head[token[after], mark[before]] = 10
        head[token["Y"], slice_of_head_3] = 1
        head[token["N"], constant] = 1
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def evaluate(out: Path, checkpoint: str, data: Path, **gate: Any) -> Path:
    """What lm-eval's command line does with --log_samples, in this process."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(out))
    results = simple_evaluate(
        model="gated_hf", model_args={"pretrained": checkpoint, "device": "cpu", **gate}, tasks=["halueval_qa"],
        metadata={"halueval_path": str(data)}, evaluation_tracker=tracker, bootstrap_iters=0, batch_size=8,
    )  # fmt: skip
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name="halueval_qa", samples=samples["halueval_qa"])
    return out


@pytest.mark.slow
def test_a_head_that_decides_the_answer_is_found_and_another_head_is_not(tmp_path: Path) -> None:
    from truthgate_eval.data.halueval import make_judgement

    rows = [
        {"knowledge": f"{i}.", "question": f"{i}?", "right_answer": f"{i}", "hallucinated_answer": f"not {i}"}
        for i in range(200)
    ]
    wanted = [row for row in rows if make_judgement("qa", 0, row)["hallucinated"] == "yes"][:30]
    wanted += [row for row in rows if make_judgement("qa", 0, row)["hallucinated"] == "no"][:10]
    data = tmp_path / "qa_data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in wanted))
    checkpoint = planted_checkpoint(tmp_path / "planted")
    gates = {}
    for head in (1, 3):
        scores = np.zeros((1, 4))
        scores[0, head] = 1
        gates[head] = TruthScores(scores, metadata={"model": checkpoint}).save(tmp_path / f"head{head}.npz")
    vanilla = evaluate(tmp_path / "vanilla", checkpoint, data, scores="none")
    same = evaluate(tmp_path / "again", checkpoint, data, scores="none")
    runs = [
        (
            f"head {head}",
            evaluate(tmp_path / f"run{head}", checkpoint, data, scores=str(path), lam=2, norm="none"),
        )
        for head, path in gates.items()
    ]
    made = leaderboard(vanilla, ("again", same), *runs)
    found = {one.name: one for one in made.task_leaderboards[0].comparisons}
    assert {name: one.verdict for name, one in found.items()} == {
        "again": "no difference",
        "head 1": "no difference",
        "head 3": "better",
    }
    assert (found["head 3"].only_run, found["head 3"].only_baseline) == (30, 10)
    assert (found["head 1"].only_run, found["head 1"].only_baseline) == (0, 0)
    assert found["head 3"].differences["f1"].value == pytest.approx(2 * 0.75 / 1.75)
