"""The requests of a run of lmms-eval, read as questions about images, which are looked at beforehand."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lmms_eval.api.instance import Instance
from tqdm import tqdm

from truthgate_eval.errors import ModelError, TaskError
from truthgate_eval.harness.command_line import exit_on_error
from truthgate_eval.harness.lmms_eval.image_check import check_images
from truthgate_eval.harness.lmms_eval.prefix_sharing import SharedPrefixLmms
from truthgate_eval.harness.lmms_eval.requests import (
    ImageRequest,
    bisect_on_failure,
    cut_at_stop,
    generation_options,
)
from truthgate_eval.vision.loading import LoadOptions

# Requests whose third argument is `doc_to_visual` and whose last three say which document.
_TYPES = ("generate_until", "generate_until_multi_round", "loglikelihood")


class RunRequests(SharedPrefixLmms):
    """A model that reads lmms-eval's requests.

    Attributes:
        options: What was loaded, and how.
    """

    options: LoadOptions
    # Tasks of the run whose images have not been looked at yet; None outside of lmms-eval's `evaluate`.
    _tasks_to_check: list[Any] | None = None

    @contextmanager
    def check_images_of_run(self, tasks: Iterable[Any]) -> Iterator[None]:
        """In this block, the first request lets the images of all these tasks' requests be looked at.

        Args:
            tasks: lmms-eval's task objects, which have their requests by then.
        """
        self._tasks_to_check = list(tasks)
        try:
            yield
        finally:
            self._tasks_to_check = None

    @contextmanager
    def system_instruction_of_run(self, text: str | None) -> Iterator[None]:
        """In this block, a system message before each question: lmms-eval's `--system_instruction`.

        Args:
            text: The message; None changes nothing.

        Raises:
            ModelError: The chat template has no system role, or the model has another system message already.
        """
        before = self.options.system_instruction
        if not text or text == before:
            yield
            return
        loaded = self.options, self.vlm
        with exit_on_error():
            if before:
                raise ModelError(
                    "--system_instruction and the model argument system_instruction differ: give one"
                )
            chat = self.vlm.chat.with_system(text, self.vlm.name)
        self.options = dataclasses.replace(self.options, system_instruction=text)
        self.vlm = dataclasses.replace(self.vlm, chat=chat)
        self.__dict__.pop("question_engine", None)  # it has the model without the message
        try:
            yield
        finally:
            self.options, self.vlm = loaded
            self.__dict__.pop("question_engine", None)

    def check_images(self, requests: Sequence[Instance]) -> None:
        """Look at the images of these requests, or once at those of the whole run if its tasks are known.

        Raises:
            DataError: Some cannot be used; the message names a document of each.
        """
        if self._tasks_to_check is not None:
            requests = [request for task in self._tasks_to_check for request in task.instances]
            self._tasks_to_check = []
        with_images = [
            request.args for request in requests if request.request_type in _TYPES and len(request.args) >= 6
        ]
        with exit_on_error():
            check_images(
                (self.question("", args[2], *args[-3:]) for args in with_images if args[2] is not None),
                self.vlm.processor,
            )

    def question(
        self, text: str, doc_to_visual: Callable[[Any], Any] | None, doc_id: int, task: str, split: str
    ) -> ImageRequest:
        """A request's text as a question about its document's images.

        Raises:
            TaskError: The request has lost its images.
        """
        if doc_to_visual is None:  # what lmms-eval's `--cache_requests` leaves of a function
            raise TaskError(f"task {task!r}, document {doc_id}: the request has lost its images")
        documents = self.task_dict[task][split]
        return ImageRequest(text, doc_to_visual, lambda: documents[doc_id], task, doc_id, documents=documents)

    def scoring_question(self, text: str, target: str | Callable[[Any], Any], *document: Any) -> ImageRequest:
        """A question with its answer; without a document where lmms-eval scores the answer alone."""
        if not document:
            return ImageRequest(text, None, dict, "without a document", 0, str(target))
        question = self.question(text, *document)
        answer = target if isinstance(target, str) else str(target(question.document()))
        return dataclasses.replace(question, answer=answer)

    def question_of(self, request: Instance) -> ImageRequest:
        """A request of any type as a question; one in several rounds as that of its first round."""
        if request.request_type == "loglikelihood":
            return self.scoring_question(*request.args)
        text, _, doc_to_visual = request.args[:3]
        return self.question(text, doc_to_visual, *request.args[-3:])

    def answer_rounds(
        self,
        text: str,
        settings: Mapping[str, Any],
        doc_to_visual: Callable[[Any], Any],
        next_round: Callable[..., Any],
        *document: Any,
        progress: tqdm[Any],
    ) -> list[str]:
        """One request's answers in all its rounds, each generated from that round's text and images alone."""
        question = self.question(text, doc_to_visual, *document)
        answers: list[str] = []
        info: Any = None
        options, until = generation_options(settings)
        while True:
            answer = bisect_on_failure([question], functools.partial(self._answers, options=options))[0]
            answers.append(cut_at_stop(answer, until))
            visuals, text, ended, answers, info = next_round(
                question.document(), previous_output=answers, round_idx=len(answers), previous_round_info=info
            )
            answers = list(answers)
            if ended:
                progress.update(1)
                return answers
            question = self.question(text, _constant(visuals), *document)


def wants_sum(request: Instance) -> bool:
    """Whether the request's task asks for losses that are sums; lmms-eval copies a task's metadata there."""
    return (request.metadata or {}).get("losses") == "sum"


def _constant(visuals: Any) -> Callable[[Any], Any]:
    """A `doc_to_visual` that gives the same images for every document."""
    return lambda _document: visuals
