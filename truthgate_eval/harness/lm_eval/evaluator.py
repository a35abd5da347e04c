"""lm-eval as a bench for sweeps: one loaded model, many gates, either part of the documents."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.loggers import EvaluationTracker

from truthgate_eval.errors import TaskError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.sweep import EvalResult, lowest_gated_layer, split_indices
from truthgate_eval.harness.lm_eval.probing import load_lm, load_tasks, task_manager
from truthgate_eval.harness.outcomes import eval_result
from truthgate_eval.inference.lower_layer_cache import cache_lower_layers
from truthgate_eval.packaged.smollm2 import SMOLLM2

# Texts whose tokens are kept from setting to setting; a task's texts are in memory anyway.
_TEXTS = 1 << 16


class LmEvalEvaluator:
    """A language model with lm-eval's tasks; see `Bench`."""

    modality = "text"

    def __init__(
        self,
        artifact: TruthScores,
        source: str,
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
            source: Their name or path, from which HaluEval's tasks read the rows to leave out.
            tasks: Names of lm-eval's tasks or groups.
            metric: One that all of them have.
            model_args: As on lm-eval's command line; no `pretrained` takes the packaged model.
            limits: The most documents of a task, for each part.
            layers: The layers that every setting gates; None: all. Those below them run once.
            batch_size: Documents to a batch.
            device: As on lm-eval's command line.

        Raises:
            TaskError: A task is unknown, or has too few documents.
            ScoresError: The scores do not fit the model.
            GateError: The model has no such layers.
        """
        self.tasks, self.metric = tasks, metric
        recorded = isinstance(artifact.metadata.get("rows"), dict)
        self.metadata = {"exclude_rows_of": source} if recorded else {}
        self.places = {
            name: split_indices(name, task.eval_docs, limits)
            for name, task in load_tasks(tasks, self.metadata).items()
        }
        arguments = {"pretrained": SMOLLM2, **model_args}
        self.lm: Any = load_lm("hf", arguments, batch_size=batch_size, device=device)
        self.anatomy = find_attention_layout(self.lm.model)
        artifact.check_fits(self.anatomy.shape, str(self.lm.pretrained))
        lower = self.anatomy.layers[: lowest_gated_layer(layers, self.anatomy.num_layers)]
        self.kept, self.part = cache_lower_layers(self.lm.forward, lower), ""
        # Every setting asks the same: what is read into tokens once need not be read again.
        self.lm.tok_encode = functools.lru_cache(maxsize=_TEXTS)(self.lm.tok_encode)
        self.lm.prompt = functools.lru_cache(maxsize=_TEXTS)(self.lm.prompt)

    def judge(self, gate: GateConfig, part: str, output: Path | None = None) -> EvalResult:
        """See `Bench`.

        Raises:
            TaskError: The tasks have no such metric.
        """
        if part != self.part and self.kept is not None:
            self.kept.clear()
        self.part = part
        handle = gate.apply(self.lm.model, self.lm.model_name)
        self.lm.gate_settings, before = gate, self.lm.gate_settings
        tracker = EvaluationTracker(output_path=str(output)) if output else None
        documents = {name: places[part] for name, places in self.places.items()}
        try:
            run: Any = lm_eval.simple_evaluate(
                model=self.lm,
                tasks=self.tasks,
                samples=documents,
                task_manager=task_manager(self.metadata),
                metadata=self.metadata,
                log_samples=output is not None,
                bootstrap_iters=100,
                evaluation_tracker=tracker,
            )
        finally:
            self.lm.gate_settings = before
            if handle is not None:
                handle.remove()
        if run is None:
            raise TaskError("a sweep runs in one process; start it without accelerate launch")
        if tracker is not None:
            samples = run.pop("samples")
            tracker.save_results_aggregated(results=run, samples=samples)
            for name, found in samples.items():
                tracker.save_results_samples(task_name=name, samples=found)
        counts = {name: len(places) for name, places in documents.items()}
        return eval_result(run["results"], counts, self.metric)
