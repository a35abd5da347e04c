from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories
from helpers.finite_differences import gate_derivatives

from truthgate_eval.attribution.gradient import document_weights, gate_gradients
from truthgate_eval.attribution.log_odds import AnswerDocument, answer_documents
from truthgate_eval.errors import ProbeError
from truthgate_eval.gating.attention_layout import Site, find_attention_layout
from truthgate_eval.inference import self_check

DOCUMENTS = [
    AnswerDocument(((1, 5, 6, 7, 8), (1, 5, 6, 9)), (True, False), 0),
    AnswerDocument(
        ((1, 20, 21, 22, 30), (1, 20, 21, 22, 31), (1, 20, 21, 22, 32, 33)), (False, True, False), 1
    ),
    AnswerDocument(((1, 40, 41), (1, 40, 42)), (True, False), 2),
    # One answer is the beginning of the other.
    AnswerDocument(((1, 50, 51, 52), (1, 50, 51)), (True, False), 3),
]


def plain_log_odds(model: object, document: AnswerDocument) -> float:
    """From scratch: the model's own logits, one sequence at a time."""
    answers = []
    for sequence in document.sequences:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([sequence])).logits[0].double()  # type: ignore[operator]
        log_probs = torch.log_softmax(logits, -1)
        answers.append(
            sum(log_probs[i - 1, sequence[i]] for i in range(document.context_length, len(sequence)))
        )
    stacked, truthful = torch.stack(answers), torch.tensor(document.truthful)
    return float(stacked[truthful].logsumexp(0) - stacked[~truthful].logsumexp(0))


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize(
    ("name", "projection"),
    [
        ("llama", "model.layers.{}.self_attn.o_proj"),
        ("qwen2", "model.layers.{}.self_attn.o_proj"),
        ("gpt_neox", "gpt_neox.layers.{}.attention.dense"),
    ],
)
def test_gradients_equal_finite_differences_of_the_scaled_weights(
    name: str, projection: str, site: Site
) -> None:
    model = factories.tiny_model(name)
    layout = find_attention_layout(model)
    shared = self_check.load(model, layout.decoder)
    assert shared.supports_sharing
    gradients, odds = gate_gradients(shared, layout, DOCUMENTS, site=site, batch_size=2)
    exact = copy.deepcopy(model).double()
    projections = [exact.get_submodule(projection.format(layer)) for layer in range(3)]
    for i, document in enumerate(DOCUMENTS):
        log_odds = partial(plain_log_odds, exact, document)
        assert odds[i] == pytest.approx(log_odds(), abs=1e-4)
        expected = gate_derivatives(log_odds, projections, heads=4, site=site)
        assert np.abs(gradients[i] - expected).max() < 1e-3 * np.abs(expected).max()


def test_parameters_stay_trainable_and_get_no_gradient() -> None:
    model = factories.tiny_model("llama")
    layout = find_attention_layout(model)
    gate_gradients(self_check.load(model), layout, DOCUMENTS)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_documents_are_the_questions_with_a_right_and_a_wrong_answer() -> None:
    tokens = [[1, 2, 3], [1, 2, 4], [1, 5, 6], [1, 2, 3]]
    found = answer_documents(tokens, np.array([1, 0, 1, 1]), np.array([0, 0, 1, 0]))
    assert found == [AnswerDocument(((1, 2, 3), (1, 2, 4)), (True, False), 0)]
    with pytest.raises(ProbeError, match="no document"):
        answer_documents(tokens[2:3], np.array([1]), np.array([1]))
    with pytest.raises(ProbeError, match="do not begin with the same token"):
        answer_documents([[1, 2], [3, 4]], np.array([1, 0]), np.array([0, 0]))


def test_every_stratum_has_the_same_weight() -> None:
    assert document_weights([None, None]).tolist() == [0.5, 0.5]
    assert document_weights(["yes", "no", "no", "no"]).sum() == pytest.approx(1)
