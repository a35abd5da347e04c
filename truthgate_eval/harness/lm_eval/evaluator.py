"""lm-eval as the evaluator of a sweep: one loaded model, many gates, either split of the documents."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.loggers import EvaluationTracker

from truthgate_eval.data.splits import Split, split_indices
from truthgate_eval.gating.gate_arguments import GATE_ARGUMENTS
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.evaluator import SETS_THE_GATE, Evaluator, EvaluatorConfig, check_complete
from truthgate_eval.harness.gated_model import check_not_given
from truthgate_eval.harness.lm_eval.model import GatedHF
from truthgate_eval.harness.lm_eval.task_index import load_tasks, task_manager
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.packaged.smollm2 import SMOLLM2

# Texts whose tokens are cached for the following gates; a task's texts are in memory anyway.
_CACHED_TEXTS = 1 << 16


class LmEvalEvaluator(Evaluator):
    """A language model with lm-eval's tasks."""

    modality = "text"

    def __init__(self, artifact: TruthScores, source: str, config: EvaluatorConfig) -> None:
        """Load tasks and model; without `pretrained` that is the packaged model.

        Args:
            artifact: The truth scores.
            source: Their name or path, from which HaluEval's tasks read the rows to leave out.
            config: The tasks, the model's arguments and the limits.

        Raises:
            TaskError: A task is unknown, or has too few documents.
            ModelError: The model's arguments have some of a gate, or the model cannot be loaded.
            ScoresError: The scores do not fit the model.
            GateError: The model has no such layers.
        """
        check_not_given(config.model_args, GATE_ARGUMENTS, SETS_THE_GATE)
        has_rows = isinstance(artifact.metadata.get("rows"), dict)
        self._metadata = {"exclude_rows_of": source} if has_rows else {}
        indices = {
            name: split_indices(name, task.eval_docs, config.limits)
            for name, task in load_tasks(list(config.tasks), self._metadata).items()
        }
        settings = {"pretrained": SMOLLM2, "batch_size": config.batch_size, "device": config.device}
        lm: Any = GatedHF(**{**settings, **config.model_args, "scores": "none"})
        super().__init__(artifact, config, indices, lm=lm, model=lm.model, name=str(lm.pretrained))
        # Every gate is evaluated on the same texts: they are tokenized once.
        lm.tok_encode = functools.lru_cache(maxsize=_CACHED_TEXTS)(lm.tok_encode)
        lm.prompt = functools.lru_cache(maxsize=_CACHED_TEXTS)(lm.prompt)

    def _shared_prefix_model(self) -> SharedPrefixModel | None:
        shared: SharedPrefixModel | None = self.lm.shared_model
        return shared

    def _run(self, gate: GateConfig, split: Split, output: Path | None) -> Mapping[str, Mapping[str, Any]]:
        del gate  # the model says it in the results file
        tracker = EvaluationTracker(output_path=str(output)) if output else None
        run = check_complete(
            lm_eval.simple_evaluate(
                model=self.lm,
                tasks=list(self.config.tasks),
                samples={name: splits[split] for name, splits in self.indices.items()},
                task_manager=task_manager(self._metadata),
                metadata=self._metadata,
                log_samples=output is not None,
                bootstrap_iters=100,
                evaluation_tracker=tracker,
            )
        )
        if tracker is not None:
            samples = run.pop("samples")
            tracker.save_results_aggregated(results=run, samples=samples)
            for name, found in samples.items():
                tracker.save_results_samples(task_name=name, samples=found)
        results: Mapping[str, Mapping[str, Any]] = run["results"]
        return results
