"""lmms-eval as a bench for sweeps: one loaded model, many gates, either part of the documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmms_eval import evaluator
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.models import get_model
from lmms_eval.utils import get_datetime_str

from truthgate_eval.errors import ModelError, TaskError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.sweep import EvalResult, lowest_gated_layer, split_indices
from truthgate_eval.harness.lmms_eval.probing import load_tasks, task_manager
from truthgate_eval.harness.outcomes import eval_result
from truthgate_eval.inference.lower_layer_cache import cache_lower_layers


class LmmsEvalEvaluator:
    """A vision-language model with lmms-eval's tasks; see `Bench`."""

    modality = "image"

    def __init__(
        self,
        artifact: TruthScores,
        model: str,
        tasks: list[str],
        *,
        metric: str,
        model_args: dict[str, Any],
        limits: dict[str, int | None],
        layers: str | None = None,
        batch_size: int = 8,
        device: str | None = None,
    ) -> None:
        """Load tasks and model.

        Args:
            artifact: The scores.
            model: `gated_vlm`, `gated_llava` and so on.
            tasks: Names of lmms-eval's tasks or groups.
            metric: One that all of them have.
            model_args: As on lmms-eval's command line, without the gate's.
            limits: The most documents of a task, for each part.
            layers: The layers that every setting gates; None: all. Those below them run once.
            batch_size: Documents to a batch.
            device: Where the model runs, if model_args do not say.

        Raises:
            TaskError: A task is unknown, or has too few documents.
            ScoresError: The scores do not fit the model.
            GateError: The model has no such layers.
        """
        self.metric = metric
        self.tasks = dict(load_tasks(tasks))
        self.data = {name: (task.dataset, task.dataset_no_image) for name, task in self.tasks.items()}
        self.places = {
            name: split_indices(name, task.eval_docs_no_media, limits) for name, task in self.tasks.items()
        }
        if "scores" in model_args:
            raise ModelError("a sweep sets the gate itself: leave scores out of --model_args")
        arguments = {"scores": "none", "batch_size": batch_size, **model_args}
        if device is not None and "device_map" not in arguments:
            arguments.setdefault("device", device)
        self.model, self.model_args = (
            model,
            ",".join(f"{k}={v}" for k, v in arguments.items() if k != "scores"),
        )
        self.lm: Any = get_model(model)(**arguments)
        self.anatomy = find_attention_layout(self.lm.vlm.model)
        artifact.check_fits(self.anatomy.shape, self.lm.vlm.name)
        lower, shared = (
            self.anatomy.layers[: lowest_gated_layer(layers, self.anatomy.num_layers)],
            self.lm.shared,
        )
        self.kept, self.part = cache_lower_layers(shared and shared.forward, lower), ""

    def judge(self, gate: GateConfig, part: str, output: Path | None = None) -> EvalResult:
        """See `Bench`.

        Raises:
            TaskError: The tasks have no such metric.
        """
        if part != self.part and self.kept is not None:
            self.kept.clear()
        self.part = part
        self._keep(part)
        handle = gate.apply(self.lm.vlm.model, self.lm.vlm.name)
        self.lm.gate_settings, before = gate, self.lm.gate_settings
        try:
            run = evaluator.simple_evaluate(
                model=self.lm,
                tasks=list(self.tasks.values()),
                task_manager=task_manager(),
                log_samples=output is not None,
                bootstrap_iters=0,
            )
        finally:
            self.lm.gate_settings = before
            if handle is not None:
                handle.remove()
        if run is None:
            raise TaskError("a sweep runs in one process; start it without accelerate launch")
        if output is not None:
            self._save(run, gate, output)
        counts = {name: len(places[part]) for name, places in self.places.items()}
        return eval_result(run["results"], counts, self.metric)

    def _keep(self, part: str) -> None:
        """Leave a part's documents in every task: lmms-eval has no list of documents to run."""
        for name, task in self.tasks.items():
            split, places = _split(task), self.places[name][part]
            whole, bare = self.data[name]
            task.dataset = {**whole, split: whole[split].select(places)}
            task.dataset_no_image = {**bare, split: bare[split].select(places)}

    def _save(self, run: dict[str, Any], gate: GateConfig, output: Path) -> None:
        """The files that lmms-eval's command line would write."""
        tracker = EvaluationTracker(output_path=str(output))
        arguments = f"{self.model_args},scores={gate.source}"
        tracker.general_config_tracker.log_experiment_args(self.model, arguments, None, None, False)
        run["config"] |= {"model": self.model, "model_args": arguments}
        samples = run.pop("samples")
        tracker.save_results_aggregated(results=run, samples=samples, datetime_str=get_datetime_str())
        for name, found in samples.items():
            tracker.save_results_samples(task_name=name, samples=found)


def _split(task: Any) -> str:
    return task.config.test_split if task.has_test_docs() else task.config.validation_split
