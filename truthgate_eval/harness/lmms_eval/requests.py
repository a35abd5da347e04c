"""lmms-eval's requests as questions with images, and its generation settings as transformers' own.

The requests are those of lmms-eval's simple interface: `docs/harnesses.md#requests`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

import torch
from PIL import Image

from truthgate_eval.data.images import raise_on_unsound_files
from truthgate_eval.errors import DataError, ModelError, TaskError, TruthGateError, one_line, reason_of
from truthgate_eval.memory import is_out_of_memory

log = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")
_MAX_NEW_TOKENS = 1024
# lmms-eval adds this one to every task that names none; its own models do not stop at it.
_DEFAULT_UNTIL = "\n\n"
_SAMPLING = {"temperature": float, "top_p": float, "top_k": int}
_SEARCH = {"num_beams": int, "min_new_tokens": int, "no_repeat_ngram_size": int}
_WEIGHTS = {"repetition_penalty": float, "length_penalty": float}
_HANDLED = {"max_new_tokens", "until", "do_sample", *_SAMPLING, *_SEARCH, *_WEIGHTS}


@dataclass(frozen=True, eq=False)
class ImageRequest:
    """One request: a text, and how to read its document and images.

    Attributes:
        text: The question.
        doc_to_visual: The task's function that gives a document's images; None for a request without a
            document.
        document: Reads the document. Data sets decode their images here, so it is called only when they are
            needed.
        task: The task's name.
        doc_id: The document's number.
        answer: The answer to score, for log-likelihoods.
        documents: The split that has the document; None where it is not known.
    """

    text: str
    doc_to_visual: Callable[[Any], Any] | None
    document: Callable[[], Any]
    task: str
    doc_id: int
    answer: str = ""
    documents: Any = None

    @property
    def where(self) -> str:
        """Names the document in messages."""
        return f"task {self.task!r}, document {self.doc_id}"

    def load_images(self) -> list[Image.Image]:
        """The document's images, decoded.

        Raises:
            DataError: One cannot be read, or is no image; the message names the document.
        """
        if self.doc_to_visual is None:
            return []
        try:
            with raise_on_unsound_files():
                found = list(flatten(self.doc_to_visual(self.document())))
                for visual in found:
                    if isinstance(visual, Image.Image):
                        visual.load()  # until now its file may only have been opened
        except (Exception, SystemExit) as error:
            # On the command line, the functions of our own tasks end the program: see `exit_with_error`.
            cause = error.__cause__ if isinstance(error, SystemExit) else error
            if cause is None:
                raise
            reason = one_line(cause) if isinstance(cause, TruthGateError) else reason_of(cause)
            raise DataError(f"{self.where}: its picture cannot be read: {reason}") from cause
        other = next((visual for visual in found if not isinstance(visual, Image.Image)), None)
        if other is not None:
            raise DataError(f"{self.where}: gated models take pictures, got a {type(other).__name__}")
        return found


def generation_options(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    r"""A task's `generation_kwargs` as options of transformers' `generate`, and the texts to stop at.

    As in lmms-eval's own models, a temperature above 0 means sampling, and 1024 new tokens are the default
    limit.

    Raises:
        TaskError: A setting has a value of the wrong type.

    Example:
        >>> options, until = generation_options({"max_new_tokens": 16, "until": ["\n\n", "Q:"]})
        >>> options["max_new_tokens"], options["do_sample"], until
        (16, False, ['Q:'])
    """
    try:
        temperature = float(settings.get("temperature") or 0)
        options: dict[str, Any] = {"max_new_tokens": int(settings.get("max_new_tokens") or _MAX_NEW_TOKENS)}
        options["do_sample"] = temperature > 0
        for name, convert in (_SAMPLING | _SEARCH | _WEIGHTS).items():
            if settings.get(name) is not None:
                options[name] = convert(settings[name])
    except (TypeError, ValueError) as error:
        raise TaskError(f"generation_kwargs {dict(settings)} hold a wrong value: {error}") from error
    if not options["do_sample"]:  # unset what the checkpoint may recommend for sampling
        options |= dict.fromkeys(_SAMPLING)
    until = settings.get("until") or []
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, list | tuple) or not all(isinstance(text, str) for text in until):
        raise TaskError(f"generation_kwargs have until={until!r}, expected a text or a list of texts")
    return options, [text for text in until if text and text != _DEFAULT_UNTIL]


def unknown_settings(settings: Mapping[str, Any]) -> list[str]:
    """The generation settings that have no effect here."""
    return sorted(set(settings) - _HANDLED)


def cut_at_stop(text: str, until: Sequence[str]) -> str:
    """The text up to the first of the stop texts.

    Example:
        >>> cut_at_stop("yes. Q: and", ["Q:", "."])
        'yes'
    """
    for stop in until:
        text = text.split(stop, 1)[0]
    return text


def batches(keys: Sequence[object], texts: Sequence[str], size: int) -> Iterator[list[int]]:
    """Indices of the texts in batches: equal keys together, the longest texts first.

    With the longest first, memory ends early if it ends at all.

    Args:
        keys: What all texts of a batch must have in common, such as generation settings.
        texts: The texts.
        size: The most texts of a batch.

    Example:
        >>> list(batches(["a", "b", "a"], ["x", "xx", "xxx"], 2))
        [[2, 0], [1]]
    """
    groups: dict[str, list[int]] = {}
    for position in range(len(texts)):
        groups.setdefault(json.dumps(keys[position], sort_keys=True, default=str), []).append(position)
    for group in groups.values():
        group.sort(key=lambda position: -len(texts[position]))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def try_sharing(prompts: list[S], work: Callable[[list[S]], list[T | None]]) -> list[T | None]:
    """Answers with shared prefixes; None for all where that fails (the own path names the document)."""
    try:
        return work(prompts)
    except TruthGateError:
        raise
    except Exception as error:
        log.warning("answering without shared prefixes, which failed: %s", reason_of(error))
        return [None] * len(prompts)


def bisect_on_failure(
    items: Sequence[S],
    work: Callable[[Sequence[S]], list[T]],
    *,
    where: Callable[[S], str] = attrgetter("where"),
) -> list[T]:
    """Results of a batch; where it fails, of its halves, down to the document that fails by itself.

    Args:
        items: The batch, such as `ImageRequest`s.
        work: Gives one result for each item.
        where: Names an item's document.

    Raises:
        ModelError: A document fails by itself; the message names it.
    """
    try:
        return work(items)
    except TruthGateError:
        raise
    except Exception as error:
        if len(items) == 1:
            raise ModelError(f"{where(items[0])} failed: {reason_of(error)}") from error
        log.warning("a batch of %d failed (%s): trying its halves", len(items), reason_of(error))
        is_out = is_out_of_memory(error)
    if is_out:  # outside of the handler: the error's traceback holds the tensors of the batch
        torch.cuda.empty_cache()
    middle = len(items) // 2
    halves = items[:middle], items[middle:]
    return [result for half in halves for result in bisect_on_failure(half, work, where=where)]


def leaf_tasks(tasks: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Names and task objects of the nested groups that lmms-eval makes of tasks."""
    for name, task in tasks.items():
        if isinstance(task, Mapping):
            yield from leaf_tasks(task)
        else:
            yield str(name), task[1] if isinstance(task, tuple) else task


def flatten(visuals: Any) -> Iterator[Any]:
    """Images out of the nested lists that tasks return; None is no image."""
    if isinstance(visuals, list | tuple):
        for visual in visuals:
            yield from flatten(visual)
    elif visuals is not None:
        yield visuals
