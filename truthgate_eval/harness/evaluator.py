"""What a sweep needs of a harness: one loaded model, evaluated under many gates on either split.

`lm_eval.evaluator` and `lmms_eval.evaluator` have the implementations.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from truthgate_eval.analysis.runs.results_files import (
    RunError,
    find_results_file,
    harness_of,
    read_results,
    samples_file,
)
from truthgate_eval.data.splits import SELECTION, Split
from truthgate_eval.errors import DataError, GateError, TaskError, TruthGateError, one_line
from truthgate_eval.files import read_json_lines
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.equal_strength import find_equal_strength
from truthgate_eval.gating.gate_config import GateConfig, Modality
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.sweep import EvalResult, lowest_gated_layer
from truthgate_eval.harness.gated_model import StoppedAtRequests
from truthgate_eval.inference.lower_layer_cache import LowerLayerCache
from truthgate_eval.inference.next_token_divergence import Divergence
from truthgate_eval.inference.self_check import cache_lower_layers
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.limits import check_limit

# Why a gate's model arguments are refused: those of the model that is loaded would act on every candidate.
SETS_THE_GATE = "a sweep sets the gate itself"


@dataclass(frozen=True)
class EvaluatorConfig:
    """The tasks, the model's arguments and the limits of a sweep.

    Attributes:
        tasks: Names of the harness's tasks or groups.
        metric: A metric that all of them have.
        model_args: As on the harness's command line, without the gate's.
        limits: The most documents of a task in each split, or a fraction below 1; None, or a missing split,
            is no limit.
        layers: The layers that every gate of the sweep has, as in `GateConfig.parse`; None for all. The
            layers below them run once for all gates.
        batch_size: Documents of a batch.
        device: As on the harness's command line; None for the best one.
    """

    tasks: Sequence[str]
    metric: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[Split, float | None] = field(default_factory=dict)
    layers: str | None = None
    batch_size: int = 8
    device: str | None = None

    def __post_init__(self) -> None:
        for split, limit in self.limits.items():
            check_limit(limit, f"limit of the {split} split")


class Evaluator(ABC):
    """A loaded model with tasks, under one of the harnesses.

    Attributes:
        modality: `text` or `image`, the input of the tasks.
        config: The tasks and limits.
        indices: For each task and split the indices of its documents.
        lm: The harness's model.
    """

    modality: ClassVar[Modality]

    def __init__(
        self,
        artifact: TruthScores,
        config: EvaluatorConfig,
        indices: Mapping[str, Mapping[Split, list[int]]],
        *,
        lm: Any,
        model: Any,
        name: str,
    ) -> None:
        """Check that the scores fit the model, and cache the layers that no gate changes.

        Args:
            artifact: The truth scores.
            config: The tasks and limits.
            indices: For each task and split the indices of its documents.
            lm: The harness's model, one of ours.
            model: The transformers model in it.
            name: The model's name.

        Raises:
            ScoresError: The scores do not fit the model.
            GateError: The model has no such layers.
        """
        self.config, self.indices, self.lm = config, indices, lm
        self._model, self._name = model, name
        layout = find_attention_layout(model)
        artifact.check_fits(layout.shape, name)
        lowest = lowest_gated_layer(config.layers, layout.num_layers)
        lower_layers = layout.layers[: layout.layer_numbers[lowest]]
        self._cache: LowerLayerCache | None = cache_lower_layers(self._shared_prefix_model(), lower_layers)
        self._cached_split: Split | None = None
        self._divergence: tuple[int, Divergence] | None = None

    def evaluate(self, gate: GateConfig, split: Split, output: Path | None = None) -> EvalResult:
        """Evaluate a gate on the tasks' documents of a split; the model has no gate afterwards.

        Args:
            gate: The gate.
            split: The split.
            output: A folder for the harness's result files, with the samples; None writes none.

        Raises:
            TaskError: The tasks do not have the metric.
            TruthGateError: The result files cannot be written.
            GateError: The gate does not act on all tokens alike, so that gates cannot share prefixes.
        """
        if gate.positions != "all":
            raise GateError(
                f"positions={gate.positions} cannot be evaluated with shared prefixes: run lm_eval or "
                "lmms_eval with it"
            )
        assert not gate.is_pending, "find_strength comes first"
        self._use_split(split)
        handle = gate.apply(self._model, self._name)
        self.lm.gate_settings, before = gate, self.lm.gate_settings
        try:
            results = self._run(gate, split, output)
        finally:
            self.lm.gate_settings = before
            if handle is not None:
                handle.remove()
        counts = {task: len(splits[split]) for task, splits in self.indices.items()}
        if output is not None:
            check_written(output, counts)
        return eval_result(results, counts, self.config.metric)

    def find_strength(self, gate: GateConfig) -> GateConfig:
        """Find the strength of a gate on prompts of the selection split; the model has no gate afterwards.

        Args:
            gate: A gate whose strength is given as a divergence.

        Raises:
            GateError: No strength has the divergence.
        """
        assert gate.target is not None
        self._use_split(SELECTION)
        count = gate.target.prompts
        if self._divergence is None or self._divergence[0] != count:
            self._divergence = count, self.lm.divergence(self._requests(SELECTION), count)
        model, tokenizer, name = self.lm.gated_parts()
        return find_equal_strength(gate, model, name, self._divergence[1], tokenizer=tokenizer)

    def _requests(self, split: Split) -> Sequence[Any]:
        """The first kind of requests that the harness makes of a split; none is answered."""
        self.lm.stops_at_requests = True
        try:
            self._run(GateConfig.parse("none"), split, None)
        except StoppedAtRequests as stop:
            return stop.requests
        finally:
            self.lm.stops_at_requests = False
        raise TaskError(f"{', '.join(self.config.tasks)}: there is no request to find a strength on")

    def _use_split(self, split: Split) -> None:
        """Drop what is cached of the other split."""
        if split != self._cached_split and self._cache is not None:
            self._cache.clear()
        self._cached_split = split

    @abstractmethod
    def _shared_prefix_model(self) -> SharedPrefixModel | None:
        """The model's forward pass with shared prefixes, or None if the model does not support it."""

    @abstractmethod
    def _run(self, gate: GateConfig, split: Split, output: Path | None) -> Mapping[str, Mapping[str, Any]]:
        """Run the harness on a split, and write its files; returns the harness's `results`."""


def check_complete(run: dict[str, Any] | None) -> dict[str, Any]:
    """What a harness's `simple_evaluate` returned.

    Raises:
        TaskError: It returned nothing, as in every process but the first of several.
    """
    if run is None:
        raise TaskError("a sweep runs in one process; start it without accelerate launch")
    return run


def check_written(folder: Path, counts: Mapping[str, int]) -> None:
    """Check that a harness's files are whole: both harnesses only log what they cannot write.

    Args:
        folder: Where they were written.
        counts: The number of documents by task.

    Raises:
        TruthGateError: A file is missing, or cut off.
    """
    try:
        file, _ = find_results_file(folder)
        harness = harness_of(read_results(file))
        for task, count in counts.items():
            samples = samples_file(file, harness, task)
            found = sum(1 for _ in read_json_lines(samples))
            if found < count:
                raise DataError(f"{samples} has {found} of {count} documents")
    except (RunError, DataError) as error:
        raise TruthGateError(
            f"the harness could not write its files in {folder} (is the disk full?): {one_line(error)}"
        ) from error


def eval_result(
    results: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int], metric: str
) -> EvalResult:
    """The mean of a metric over tasks with equal weights, as in the paper's means over POPE's splits.

    Args:
        results: The harness's `results`: metrics by task, with names such as `acc,none`.
        counts: Number of documents of each task to include.
        metric: The metric's name.

    Raises:
        TaskError: A task has no such metric.
    """
    values, errors = [], []
    for task in counts:
        found = {key.split(",")[0]: value for key, value in results[task].items()}
        if not isinstance(found.get(metric), int | float):
            known = sorted(
                key for key, value in found.items() if isinstance(value, float) and "_stderr" not in key
            )
            raise TaskError(f"task {task!r} has no metric {metric!r}: it has {', '.join(known)}")
        values.append(float(found[metric]))
        # lmms-eval's clustered error takes into account that questions about one image are related.
        clustered = found.get(f"{metric}_stderr_clustered")
        errors.append(clustered if isinstance(clustered, float) else found.get(f"{metric}_stderr"))
    known_errors = [float(error) for error in errors if isinstance(error, int | float)]
    complete = len(known_errors) == len(values)
    stderr = math.sqrt(sum(error**2 for error in known_errors)) / len(values) if complete else None
    return EvalResult(sum(values) / len(values), stderr, sum(counts.values()))
