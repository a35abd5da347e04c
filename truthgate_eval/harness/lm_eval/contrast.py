"""The contrast of lm-eval's log-likelihoods with those without the documents' context."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from lm_eval.api.instance import Instance

from truthgate_eval.errors import GateError, TaskError
from truthgate_eval.harness.contrast import Contrast
from truthgate_eval.harness.lm_eval.context_field import find_context_field, without_context

LogLikelihood = tuple[float, bool]


class ContextContrast:
    """A model's contrast, with what it must know of the tasks of a run.

    Attributes:
        contrast: The strength.
        fields: By the name of each of the run's tasks: the field of its documents that is taken away.
    """

    def __init__(self, contrast: Contrast) -> None:
        """Make the contrast of a model that has not run yet."""
        self.contrast = contrast
        self.fields: dict[str, str] = {}
        self._tasks: dict[str, Any] = {}

    def start_run(self, tasks: Iterable[Any]) -> None:
        """Get to know the tasks of a run, before its requests are made.

        Args:
            tasks: lm-eval's task objects.

        Raises:
            TaskError: A task is not scored by log-likelihoods of answers, or does not name its context.
        """
        self._tasks = {str(task.config.task): task for task in tasks}
        self.fields = {}
        for name, task in self._tasks.items():
            self.contrast.check_output_type(name, task.OUTPUT_TYPE, "lm_eval")
            if getattr(task, "multiple_input", False):
                raise TaskError(
                    f"contrast needs choices that follow a context: those of task {name!r} are contexts"
                )
            self.fields[name] = find_context_field(name, task, task.eval_docs, otherwise="leave contrast out")

    def check_requests(self, requests: list[Instance], output_type: str) -> None:
        """Refuse requests that are not log-likelihoods of answers.

        Raises:
            TaskError: There is such a request.
        """
        if requests:
            self.contrast.check_output_type(str(requests[0].task_name), output_type, "lm_eval")

    def describe(self) -> dict[str, Any]:
        """What a results file says of it; `field` has a + between several tasks' fields."""
        fields = "+".join(sorted(set(self.fields.values())))
        return {"alpha": self.contrast.alpha, **({"field": fields} if fields else {})}

    def key(self) -> dict[str, Any]:
        """What an answer depends on besides its request, for the key of a cache."""
        templates = {name: str(task.config.doc_to_text) for name, task in self._tasks.items()}
        return {"alpha": self.contrast.alpha, "fields": self.fields, "templates": templates}

    def log_likelihoods(
        self, requests: list[Instance], score: Callable[[list[Instance]], list[LogLikelihood]]
    ) -> list[LogLikelihood]:
        """The contrasted log-likelihood of each choice, and whether it is the greedy answer with the context.

        lm-eval's second value stays that of the model without contrast: of the contrasted distribution only
        the choices are computed, and its greedy token may be another one.

        Args:
            requests: Of the run's tasks.
            score: Gives the log-likelihoods of requests.

        Raises:
            TaskError: A document's context cannot be taken out of its prompt.
            GateError: The requests are not those of the run.
        """
        changed = [
            dataclasses.replace(request, arguments=(self._without(request), *request.args[1:]))
            for request in requests
        ]
        found = score([*requests, *changed])
        return [
            (self.contrast.combine(with_context, without), is_greedy)
            for (with_context, is_greedy), (without, _) in zip(
                found[: len(requests)], found[len(requests) :], strict=True
            )
        ]

    def _without(self, request: Instance) -> str:
        task = self._tasks.get(str(request.task_name))
        if task is None:
            raise GateError(
                f"contrast={self.contrast.alpha:g} must know the tasks of its requests: evaluate the model "
                "with lm_eval.simple_evaluate"
            )
        field = self.fields[str(request.task_name)]
        if not request.args[0]:  # mutual information scores every answer after an empty prompt as well
            return ""
        try:
            return without_context(request.args[0], task, request.doc, field)
        except TaskError as error:
            raise TaskError(f"task {request.task_name!r}, document {request.doc_id}: {error}") from None
