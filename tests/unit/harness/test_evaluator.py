"""What both evaluators share: the metric of several tasks, and limits checked before anything is loaded."""

from __future__ import annotations

import numpy as np
import pytest

from truthgate_eval.data.splits import SELECTION
from truthgate_eval.errors import GateError, ModelError, TaskError, TruthGateError
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.evaluator import EvaluatorConfig, check_complete, eval_result
from truthgate_eval.harness.lm_eval.evaluator import LmEvalEvaluator
from truthgate_eval.harness.lmms_eval.evaluator import LmmsEvalEvaluator


def test_the_metric_is_the_mean_over_tasks_with_its_standard_error() -> None:
    results = {
        "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.03},
        "b": {"acc,none": 0.7, "acc_stderr,none": "N/A", "acc_stderr_clustered,none": 0.04},
        "group": {"acc,none": 0.9},
    }
    found = eval_result(results, {"a": 10, "b": 30}, "acc")
    assert (found.value, found.stderr, found.documents) == (pytest.approx(0.6), pytest.approx(0.025), 40)
    assert eval_result(results, {"a": 10, "group": 1}, "acc").stderr is None
    with pytest.raises(TaskError, match="task 'a' has no metric 'f1': it has acc"):
        eval_result(results, {"a": 10}, "f1")


def test_a_negative_limit_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(
        TruthGateError, match="limit of the selection split=-3: expected a number of documents"
    ):
        EvaluatorConfig(["t"], "acc", limits={SELECTION: -3})


def test_a_process_without_results_is_refused() -> None:
    assert check_complete({"results": {}}) == {"results": {}}
    with pytest.raises(TaskError, match="one process"):
        check_complete(None)


def test_a_gate_of_some_tokens_is_refused_before_anything_runs() -> None:
    evaluator = object.__new__(LmEvalEvaluator)  # without a model, which it must not get to
    with pytest.raises(GateError, match="positions=last cannot be evaluated with shared prefixes"):
        evaluator.evaluate(GateConfig.parse("random:1", positions="last"), SELECTION)


@pytest.mark.parametrize(
    ("evaluator", "source"), [(LmEvalEvaluator, "a.npz"), (LmmsEvalEvaluator, "gated_vlm")]
)
@pytest.mark.parametrize("name", ["scores", "lam", "yes_offset", "mode"])
def test_a_gate_of_the_loaded_model_is_refused_before_anything_runs(
    name: str, evaluator: type[LmEvalEvaluator | LmmsEvalEvaluator], source: str
) -> None:
    """An offset, for one, would act under every candidate, and the results would not say so."""
    config = EvaluatorConfig(["no such task"], "acc", model_args={"scores": "none", name: "2"})
    with pytest.raises(ModelError, match=f"a sweep sets the gate itself: leave {name} out"):
        evaluator(TruthScores(np.ones((1, 1))), source, config)
