from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories

from truthgate_eval.attribution.copying import copy_scores
from truthgate_eval.attribution.divergence import context_divergence
from truthgate_eval.attribution.log_odds import AnswerDocument
from truthgate_eval.errors import ProbeError
from truthgate_eval.gating.attention_layout import find_attention_layout


def test_divergence_is_the_change_relative_to_the_heads_size() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(5, 2, 3, 4))
    after = before.copy()
    after[:, 1, 2] *= -1
    found = context_divergence(before, after)
    assert found.shape == (5, 2, 3)
    assert found[:, 1, 2].mean() == pytest.approx(2.0)
    assert np.delete(found.reshape(5, 6), 5, axis=1).max() == 0
    scaled = context_divergence(before * 10, after * 10)
    np.testing.assert_allclose(found, scaled)


def test_copy_scores_are_the_attention_on_copies_of_the_written_token() -> None:
    model = factories.tiny_model("llama")
    layout = find_attention_layout(model)
    # The right answer's tokens 6 and 7: 6 stands twice in the context, 7 does not.
    document = AnswerDocument(((1, 6, 8, 6, 9, 6, 7), (1, 6, 8, 6, 9, 10)), (True, False), 0)
    before = model.config._attn_implementation
    found, indices = copy_scores(model, layout, [document])
    assert indices == [0] and found.shape == (1, 3, 4)
    assert model.config._attn_implementation == before
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(torch.tensor([[1, 6, 8, 6, 9, 6, 7]]), output_attentions=True).attentions
    for layer in range(3):
        expected = weights[layer][0, :, 4, 1] + weights[layer][0, :, 4, 3]
        np.testing.assert_allclose(found[0, layer], expected.numpy(), atol=1e-5)


def test_answers_without_copies_are_left_out_and_named_where_there_are_none() -> None:
    model = factories.tiny_model("llama")
    layout = find_attention_layout(model)
    none = AnswerDocument(((1, 5, 6), (1, 5, 7)), (True, False), 0)
    with pytest.raises(ProbeError, match="nothing to copy"):
        copy_scores(model, layout, [none])
