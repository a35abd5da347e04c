"""The log-odds of a document's right answer against its wrong one, as a tensor that can be differentiated.

The answers of a document share their context, so what is compared is the log-probability of the tokens after
the longest common prefix of its sequences. The context runs once for all answers of a document
(`docs/performance.md#how-the-engine-works`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from truthgate_eval.errors import ProbeError
from truthgate_eval.inference.packing import PackedBatch
from truthgate_eval.inference.prefix_plan import PackedPrompt, plan_prefixes
from truthgate_eval.inference.shared_prefix import SharedPrefixModel


@dataclass(frozen=True)
class AnswerDocument:
    """One question with right and wrong answers, as token ids.

    Attributes:
        sequences: Context + answer, of each answer.
        truthful: Whether each answer is right; at least one is, and at least one is not.
        group: The question's number, for standard errors.
    """

    sequences: tuple[tuple[int, ...], ...]
    truthful: tuple[bool, ...]
    group: int

    @property
    def context_length(self) -> int:
        """Number of tokens that all sequences begin with, and that each goes on after.

        Where one answer begins like another and ends earlier, its last token counts as no context.
        """
        shortest = min(map(len, self.sequences)) - 1
        first = self.sequences[0]
        return next(
            (i for i in range(shortest) if any(own[i] != first[i] for own in self.sequences)), shortest
        )


def answer_documents(
    tokens: Sequence[Sequence[int]], labels: NDArray[np.int64], groups: NDArray[np.int64]
) -> list[AnswerDocument]:
    """The documents of probing sequences that have a right and a wrong answer.

    Args:
        tokens: Token ids of each sequence.
        labels: int [n]; 1 where the answer is right.
        groups: int [n]; the question of each sequence.

    Raises:
        ProbeError: There is none, or the sequences of one do not begin with the same token.
    """
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(i)
    documents = []
    for group, own in members.items():
        # A repeated question repeats its sequences.
        distinct = {tuple(tokens[i]): bool(labels[i]) for i in own}
        if len(set(distinct.values())) < 2:
            continue
        document = AnswerDocument(tuple(distinct), tuple(distinct.values()), group)
        if document.context_length == 0:
            raise ProbeError(
                f"the answers of document {group} do not begin with the same token: log-odds need a context"
            )
        documents.append(document)
    if not documents:
        raise ProbeError("no document has both a right and a wrong answer to compare")
    return documents


@dataclass(frozen=True, eq=False)
class AnswerBatch:
    """Some documents as one input of a model.

    Attributes:
        indices: Which documents, as indices in the caller's list.
        batch: The input.
        owners: int64 [rows, length]; which of `indices` a token belongs to, len(indices) for padding.
        rows: int64 [n]; the row of each token whose logits are read.
        columns: int64 [n]; its column.
        reads: int64 [m]; for each answer token, the index of the logits that predict it.
        targets: int64 [m]; the answer token.
        answers: int64 [m]; its answer, numbered through the batch.
        answer_documents: int64 [answers]; the position in `indices` of each answer's document.
        truthful: bool [answers].
    """

    indices: list[int]
    batch: PackedBatch
    owners: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    reads: torch.Tensor
    targets: torch.Tensor
    answers: torch.Tensor
    answer_documents: torch.Tensor
    truthful: torch.Tensor


def make_batches(
    model: SharedPrefixModel,
    documents: Sequence[AnswerDocument],
    *,
    batch_size: int,
    part: slice = slice(None),
) -> Iterator[AnswerBatch]:
    """The documents as inputs of at most `batch_size` documents, longest first.

    Args:
        model: What they will run on.
        documents: The documents.
        batch_size: Documents in a batch; the same number of short ones takes less memory.
        part: Which of the batches to make.
    """
    order = sorted(range(len(documents)), key=lambda i: -sum(map(len, documents[i].sequences)))
    for start in range(0, len(order), batch_size)[part]:
        yield _make_batch(model, documents, order[start : start + batch_size])


def _make_batch(
    model: SharedPrefixModel, documents: Sequence[AnswerDocument], indices: list[int]
) -> AnswerBatch:
    prompts: list[PackedPrompt] = []
    prompt_documents: list[int] = []
    answers_of_prompt: list[list[tuple[int, list[int]]]] = []  # suffix, answers with that input
    answer_targets: list[list[int]] = []
    answer_documents: list[int] = []
    truthful: list[bool] = []
    for number, index in enumerate(indices):
        document = documents[index]
        start = document.context_length
        plan = plan_prefixes(
            [sequence[:-1] for sequence in document.sequences],
            first_read_positions=[start - 1] * len(document.sequences),
            share=model.supports_sharing,
            max_shared_length=model.max_shared_length,
            prefix_pass_cost=math.inf,  # one graph: a pass of its own would cut the gradient
        )
        same_input = plan.indices_by_distinct()
        first_answer = len(answer_targets)
        for group in plan.groups:
            assert not group.prefix
            for prompt in group.prompts:
                prompts.append(prompt)
                prompt_documents.append(number)
                answers_of_prompt.append(
                    [
                        (suffix, [first_answer + i for i in same_input[sequence_id]])
                        for suffix, sequence_id in enumerate(prompt.sequence_ids)
                    ]
                )
        answer_targets += [list(sequence[start:]) for sequence in document.sequences]
        answer_documents += [number] * len(document.sequences)
        truthful += document.truthful
    batch = model.pack(prompts)
    owners = torch.full(batch.token_ids.shape, len(indices))
    read_index: dict[tuple[int, int], int] = {}
    reads: list[int] = []
    targets: list[int] = []
    answers: list[int] = []
    for prompt, (row, offset), number, of_suffixes in zip(
        prompts, batch.offsets, prompt_documents, answers_of_prompt, strict=True
    ):
        owners[row, offset : offset + len(prompt)] = number
        for suffix, own in of_suffixes:
            columns = (prompt.columns(suffix) + offset).tolist()
            for answer in own:
                target = answer_targets[answer]
                for column, token in zip(columns[len(columns) - len(target) :], target, strict=True):
                    reads.append(read_index.setdefault((row, column), len(read_index)))
                    targets.append(token)
                    answers.append(answer)
    return AnswerBatch(
        indices,
        batch,
        owners,
        torch.tensor([row for row, _ in read_index]),
        torch.tensor([column for _, column in read_index]),
        torch.tensor(reads),
        torch.tensor(targets),
        torch.tensor(answers),
        torch.tensor(answer_documents),
        torch.tensor(truthful),
    )


def log_odds(model: SharedPrefixModel, batch: AnswerBatch) -> torch.Tensor:
    """Log P(right answers) - log P(wrong answers) of each document of a batch.

    Args:
        model: A model from `SharedPrefixModel.with_gradients`, where gradients are needed.
        batch: The documents.

    Returns:
        float32 [documents], in the order of `batch.indices`.
    """
    logits = model.logits(batch.batch, batch.rows, batch.columns).float()
    log_probs = torch.log_softmax(logits, dim=-1)
    device = log_probs.device
    tokens = log_probs[batch.reads.to(device), batch.targets.to(device)]
    num_answers = len(batch.answer_documents)
    answers = torch.zeros(num_answers, device=device).index_add(0, batch.answers.to(device), tokens)
    odds = []
    for number in range(len(batch.indices)):
        own = batch.answer_documents == number
        right, wrong = (
            answers[(own & (batch.truthful == truthful)).to(device)].logsumexp(0)
            for truthful in (True, False)
        )
        odds.append(right - wrong)
    return torch.stack(odds)


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """No parameter of the model gets a gradient inside the block."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
