"""lmms-eval as the evaluator of a sweep: one loaded model, many gates, either split of the documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmms_eval import evaluator
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.models import get_model
from lmms_eval.utils import get_datetime_str

from truthgate_eval.data.splits import Split, split_indices
from truthgate_eval.gating.gate_arguments import GATE_ARGUMENTS
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.evaluator import SETS_THE_GATE, Evaluator, EvaluatorConfig, check_complete
from truthgate_eval.harness.gated_model import check_not_given
from truthgate_eval.harness.lmms_eval.probing import load_tasks, task_manager
from truthgate_eval.inference.shared_prefix import SharedPrefixModel


class LmmsEvalEvaluator(Evaluator):
    """A vision-language model with lmms-eval's tasks."""

    modality = "image"

    def __init__(self, artifact: TruthScores, model: str, config: EvaluatorConfig) -> None:
        """Load tasks and model.

        Args:
            artifact: The truth scores.
            model: `gated_vlm`, `gated_llava` and so on.
            config: The tasks, the model's arguments and the limits.

        Raises:
            TaskError: A task is unknown, or has too few documents.
            ModelError: The model's arguments have some of a gate, or the model cannot be loaded.
            ScoresError: The scores do not fit the model.
            GateError: The model has no such layers.
        """
        check_not_given(config.model_args, GATE_ARGUMENTS, SETS_THE_GATE)
        self._tasks = dict(load_tasks(list(config.tasks)))
        self._datasets = {name: (task.dataset, task.dataset_no_image) for name, task in self._tasks.items()}
        indices = {
            name: split_indices(name, task.eval_docs_no_media, config.limits)
            for name, task in self._tasks.items()
        }
        arguments = {"batch_size": config.batch_size, **config.model_args, "scores": "none"}
        if config.device is not None and "device_map" not in arguments:
            arguments.setdefault("device", config.device)
        self._model_id = model
        self._model_args = ",".join(f"{k}={v}" for k, v in arguments.items() if k != "scores")
        lm: Any = get_model(model)(**arguments)
        super().__init__(artifact, config, indices, lm=lm, model=lm.vlm.model, name=lm.vlm.name)

    def _shared_prefix_model(self) -> SharedPrefixModel | None:
        engine = self.lm.question_engine
        return None if engine is None else engine.model

    def _run(self, gate: GateConfig, split: Split, output: Path | None) -> Mapping[str, Mapping[str, Any]]:
        self._select_documents(split)
        run = check_complete(
            evaluator.simple_evaluate(
                model=self.lm,
                tasks=list(self._tasks.values()),
                task_manager=task_manager(),
                log_samples=output is not None,
                bootstrap_iters=0,
            )
        )
        if output is not None:
            self._save(run, gate, output)
        results: Mapping[str, Mapping[str, Any]] = run["results"]
        return results

    def _select_documents(self, split: Split) -> None:
        """Leave only a split's documents in every task, since lmms-eval takes no list of documents."""
        for name, task in self._tasks.items():
            indices = self.indices[name][split]
            task_split = task.config.test_split if task.has_test_docs() else task.config.validation_split
            dataset, dataset_no_image = self._datasets[name]
            task.dataset = {**dataset, task_split: dataset[task_split].select(indices)}
            task.dataset_no_image = {
                **dataset_no_image,
                task_split: dataset_no_image[task_split].select(indices),
            }

    def _save(self, run: dict[str, Any], gate: GateConfig, output: Path) -> None:
        """Write the files that lmms-eval's command line would write."""
        tracker = EvaluationTracker(output_path=str(output))
        arguments = f"{self._model_args},scores={gate.source}"
        tracker.general_config_tracker.log_experiment_args(self._model_id, arguments, None, None, False)
        run["config"] |= {"model": self._model_id, "model_args": arguments}
        samples = run.pop("samples")
        tracker.save_results_aggregated(results=run, samples=samples, datetime_str=get_datetime_str())
        for name, found in samples.items():
            tracker.save_results_samples(task_name=name, samples=found)
