"""The right and wrong answers of a task's documents, whichever harness the task belongs to.

A multiple-choice task names its answers. A task that has yes or no written has them as well, if each of its
right answers is one of the two: then the other one is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import TaskError, shorten
from truthgate_eval.metrics.yes_no import YES_NO, Answer
from truthgate_eval.probing.surface import equally_long

# What may stand around the word in a target, such as `Yes.`
_AROUND = " \t\n."


def as_yes_no(text: object) -> Answer | None:
    """The answer that a text consists of, or None where it is anything else than yes or no.

    Example:
        >>> as_yes_no(" Yes."), as_yes_no("NO"), as_yes_no("yes, it is"), as_yes_no(0)
        ('yes', 'no', None, None)
    """
    word = text.strip(_AROUND).lower() if isinstance(text, str) else None
    return next((answer for answer in YES_NO if answer == word), None)


def answer_words(answers: Iterable[str]) -> dict[str, list[str]]:
    """The distinct answers, for a data set's settings, if each of them is yes or no; else nothing.

    Example:
        >>> answer_words([" Yes", " No", " Yes"]), answer_words([" yes", " a dog"])
        ({'answer_words': ['Yes', 'No']}, {})
    """
    distinct = list(dict.fromkeys(answer.strip() for answer in answers))
    return {"answer_words": distinct} if distinct and all(map(as_yes_no, distinct)) else {}


def give_choices(name: str, task: Any, documents: Iterable[Mapping[str, Any]]) -> list[str] | None:
    """See to it that `task.doc_to_choice` gives the answers of every document.

    A task that generates text, and whose targets are all yes or no, is made a multiple-choice task, in place;
    its prompts stay as they are. The answers are spelled as its targets. Where those are in lower case,
    capitalized answers are added, since that is how most chat models begin theirs: log-odds add up the
    spellings of an answer (`docs/tasks.md#tasks-that-ask-for-yes-or-no`).

    Args:
        name: The task's name.
        task: A task of lm-eval or of lmms-eval.
        documents: All its documents; images are not needed.

    Returns:
        The answers that were given to it, or None where it has choices of its own.

    Raises:
        TaskError: It is neither a multiple-choice task nor one whose right answers are all yes or no.
    """
    if task.OUTPUT_TYPE == "multiple_choice":
        return None
    problem = (
        f"task {name!r} is of type {task.OUTPUT_TYPE}: probing needs a multiple-choice task, or one that "
        "generates yes or no"
    )
    if task.OUTPUT_TYPE != "generate_until":
        raise TaskError(problem)
    spelling: dict[Answer, str] = {}
    for index, document in enumerate(documents):
        target = task.doc_to_target(document)
        answer = as_yes_no(target)
        if answer is None:
            raise TaskError(f"{problem}; the right answer to document {index} is {shorten(target)}")
        spelling.setdefault(answer, target.strip(_AROUND))
    if not spelling:
        raise TaskError(f"{problem}; this one has no documents")
    choices = spellings(spelling)
    task.OUTPUT_TYPE = "multiple_choice"
    task.doc_to_choice = lambda _document, *_: choices
    return choices


def spellings(of_targets: Mapping[Answer, str]) -> list[str]:
    """The answers of a yes/no task, all that mean yes before all that mean no.

    Args:
        of_targets: How the task spells yes and no; one of them is enough.

    Example:
        >>> spellings({"yes": "Yes", "no": "No"}), spellings({"no": "NO"})
        (['Yes', 'No'], ['YES', 'NO'])
        >>> spellings({"yes": "yes"})
        ['yes', 'Yes', 'no', 'No']
    """
    known = next(iter(of_targets.values()))
    like = str.upper if known.isupper() else str.lower if known.islower() else str.capitalize
    is_lower = any(text.islower() for text in of_targets.values())
    found: list[str] = []
    for answer in YES_NO:
        own = of_targets.get(answer, like(answer))
        found += dict.fromkeys([own, answer, answer.capitalize()] if is_lower else [own])
    return found


def right_choices(task: Any, doc: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which choices are targets, bool [choices], for each way that lm-eval and lmms-eval write a target.

    Where all choices are spellings of yes or no, every spelling of the right answer is right.
    """
    if task.multiple_input:  # the choices are contexts, and doc_to_text returns the right one
        choices, target = task.doc_to_choice(doc), task.doc_to_text(doc)
    else:
        choices, target = task.doc_to_choice(doc), task.doc_to_target(doc)
    answers = list(map(as_yes_no, choices))
    if None not in answers:
        if isinstance(target, int):
            target = choices[target]
        wanted = as_yes_no(target)
        if wanted is not None:
            return np.array([answer == wanted for answer in answers], dtype=bool)
    if isinstance(target, str):
        target = choices.index(target) if target in choices else int(target)
    elif isinstance(target, bool):  # to NumPy no index, but all choices or none
        target = int(target)
    right = np.zeros(len(choices), dtype=bool)
    right[target] = True
    return right


def matched_documents(name: str, task: Any, documents: Sequence[Any]) -> list[int]:
    """Indices of the documents whose answers differ by at most one word in length.

    Raises:
        TaskError: There is none.
    """
    found = [index for index, doc in enumerate(documents) if equally_long(task.doc_to_choice(doc))]
    if not found:
        raise TaskError(
            f"--surface-matched leaves nothing of {name}: in all {len(documents)} documents the answers "
            "differ by more than one word"
        )
    return found
