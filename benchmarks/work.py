"""The model and documents of several benchmarks: SmolLM2-135M-Instruct and HaluEval-QA."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import transformers

from truthgate_eval.data import halueval
from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

# Of Llama-7B.
LAYERS = 32


def load_model(device: str = "cpu", layers: int = LAYERS) -> tuple[Any, Any]:
    """(model, tokenizer): on the CPU SmolLM2 in float32, on a GPU some layers of a 7B shape in bfloat16."""
    torch.set_num_threads(1)
    folder = resolve_smollm2(SMOLLM2)
    if device == "cuda":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return random_7b(len(tokenizer), layers), tokenizer
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def random_7b(vocabulary: int, layers: int = LAYERS) -> Any:
    """A Llama of 7B's shape with random weights, made on the GPU: nothing is downloaded or moved there."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        return transformers.AutoModelForCausalLM.from_config(
            config_7b(vocabulary, layers), dtype=torch.bfloat16
        ).eval()


def config_7b(vocabulary: int, layers: int = LAYERS) -> Any:
    """Llama-7B's shape, or its first layers."""
    return transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=vocabulary, max_position_embeddings=4096,
    )  # fmt: skip


def questions(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Documents of HaluEval-QA, in the file's order."""
    return list(itertools.islice(halueval.read_records("qa"), start, start + count))


def pairs(tokenizer: Any, count: int) -> list[list[int]]:
    """Token ids of the right and the hallucinated answer of each question, after its knowledge."""
    texts = [
        f"Context:\n{row['knowledge']}\n\nQuestion: {row['question']}\nAnswer: {row[key]}"
        for row in questions(count)
        for key in ("right_answer", "hallucinated_answer")
    ]
    return [tokenizer(text).input_ids for text in texts]


def free_answers(tokenizer: Any, count: int, tokens: int = 575) -> tuple[list[str], int]:
    """(HaluEval's questions after worked examples, number of tokens that they share)."""
    instruction = "You answer questions with facts, in a short sentence.\n"
    for row in questions(100, start=9000):
        example = f"\nQuestion: {row['question']}\nAnswer: {row['right_answer']}\n"
        if len(tokenizer(instruction + example).input_ids) > tokens:
            break
        instruction += example
    prompts = [f"{instruction}\nQuestion: {row['question']}\nAnswer:" for row in questions(count)]
    return prompts, len(tokenizer(instruction).input_ids)


def yes_no_prompts(tokenizer: Any, count: int, tokens: int = 575) -> tuple[list[str], int]:
    """(prompts after one instruction with worked examples, number of tokens of the instruction)."""
    instruction = "You judge answers. Say whether the answer is hallucinated, Yes or No.\n"
    for i, row in enumerate(questions(100, start=9000)):
        answer = row["hallucinated_answer"] if i % 2 else row["right_answer"]
        example = f"\nQuestion: {row['question']}\nAnswer: {answer}\nJudgement: {'Yes' if i % 2 else 'No'}\n"
        if len(tokenizer(instruction + example).input_ids) > tokens:
            break
        instruction += example
    prompts = []
    for i, row in enumerate(questions(count)):
        answer = row["hallucinated_answer"] if i % 2 else row["right_answer"]
        prompts.append(f"{instruction}\nQuestion: {row['question']}\nAnswer: {answer}\nJudgement:")
    return prompts, len(tokenizer(instruction).input_ids)
