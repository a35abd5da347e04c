"""Test prompts, and the logits that a model's own forward pass gives for them.

The self check (`self_check`) holds passes with shared prefixes against these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from truthgate_eval.inference.prefix_plan import PackedPrompt

T = TypeVar("T")


@dataclass(frozen=True)
class ReferenceLogits:
    """Test prompts with the logits of the model's own pass.

    Attributes:
        prompt: A packed prompt of two suffixes that end in the same token: only mask, positions and prefix
            make their last logits differ.
        logits: The model's own last logits of each sequence alone, float32 [2, vocabulary].
        rounding: Largest difference between these and the model's own padded batches.
    """

    prompt: PackedPrompt
    logits: torch.Tensor
    rounding: float


def text_reference(model: Any, device: torch.device, dtype: torch.dtype) -> ReferenceLogits:
    """Reference of a language model, for 36 random tokens."""
    prompt, sequences = make_test_prompts(model)
    longer = [*sequences[0], *sequences[1]]
    logits, rounding = logits_and_rounding(
        lambda batch: last_logits(model, batch, device), sequences, longer, dtype
    )
    return ReferenceLogits(prompt, logits, rounding)


def make_test_prompts(model: Any) -> tuple[PackedPrompt, list[list[int]]]:
    """A packed prompt of two suffixes of different length that end in one token; its two sequences."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(min(3, vocabulary - 1), vocabulary, (36,), generator=generator).tolist()
    prefix, first, second = tokens[:16], tokens[16:30], tokens[30:]
    second[-1] = first[-1]
    prompt = PackedPrompt(tuple(prefix), (tuple(first), tuple(second)), (0, 1))
    return prompt, [prefix + first, prefix + second]


def last_logits(model: Any, sequences: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """The model's own last logits of sequences in one padded batch, float32 [n, vocabulary]."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    token_ids = pad_sequence([torch.tensor(sequence) for sequence in sequences], batch_first=True)
    mask = (torch.arange(token_ids.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        output = model(input_ids=token_ids.to(device), attention_mask=mask.to(device), use_cache=False)
    return output.logits[torch.arange(len(lengths)), lengths - 1].float()


def logits_and_rounding(
    run: Callable[[Sequence[T]], torch.Tensor], inputs: Sequence[T], longer: T, dtype: torch.dtype
) -> tuple[torch.Tensor, float]:
    """The model's own logits of each input alone, and how far its padded batches are from them.

    Args:
        run: Last logits of a batch, float32 [n, vocabulary].
        inputs: The inputs.
        longer: A longer input; in a batch with it, the others are padded.
        dtype: What the model computes in. Rounding is not measured in float32, and is 0 there.
    """
    alone = torch.cat([run([one]) for one in inputs])
    if dtype == torch.float32:
        return alone, 0.0
    batches = run(inputs), run([*inputs, longer])[: len(inputs)]
    return alone, max(float((batch - alone).abs().max()) for batch in batches)
