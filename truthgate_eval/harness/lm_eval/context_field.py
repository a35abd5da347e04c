"""The field of a task's documents that is their context, such as the knowledge that an answer must follow.

A task names it in its metadata (`context_field`), and its own template renders documents with and without it:
for the controls of probing, and for the contrast of a choice's log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from truthgate_eval.errors import TaskError
from truthgate_eval.probing.controls import ContextChange


def find_context_field(
    name: str, task: Any, documents: Sequence[Mapping[str, Any]], *, otherwise: str
) -> str:
    """The field that the task's metadata names, which its documents have and its prompts show.

    Args:
        name: The task's name.
        task: An lm-eval task.
        documents: Some of its documents, at least one.
        otherwise: What the user can do without it, for the message.

    Raises:
        TaskError: The task names no field, its documents do not have it, or their prompts do not show it.
    """
    field = (task.config.metadata or {}).get("context_field")
    if not field:
        raise TaskError(
            f"task {name!r} does not say which field of its documents is the knowledge: name it with "
            f'--metadata \'{{"context_field": "FIELD"}}\', or {otherwise}'
        )
    if field not in documents[0]:
        raise TaskError(f"context_field={field}: the documents of {name} have {', '.join(documents[0])}")
    if all(task.doc_to_text({**doc, field: ""}) == task.doc_to_text(doc) for doc in documents):
        raise TaskError(f"context_field={field}: {name} does not show it, so nothing would change without it")
    return str(field)


def change_context(name: str, task: Any, change: ContextChange, chosen: Sequence[int]) -> None:
    """Make a task render its documents with other knowledge. Choices and targets stay as they are.

    Few-shot examples are rendered the same way. lm-eval still leaves out the probed document.

    Args:
        name: The task's name.
        task: Changed in place.
        change: Replaces the knowledge.
        chosen: Indices of the documents that are probed.

    Raises:
        TaskError: As `find_context_field`.
    """
    documents = [task.eval_docs[index] for index in chosen]
    field = find_context_field(name, task, documents, otherwise="leave the controls of the context out")
    replace = change(str(doc[field]) for doc in documents)
    render: Callable[..., Any] = task.doc_to_text

    def changed(doc: dict[str, Any], *args: Any) -> Any:
        return render({**doc, field: replace(str(doc[field]))}, *args)

    task.doc_to_text = changed


def without_context(prompt: str, task: Any, doc: Mapping[str, Any], field: str) -> str:
    """A prompt in which the document at hand is rendered without its context; all else stays.

    What stands around it (a description, few-shot examples with their contexts, a chat template) is kept.

    Args:
        prompt: As lm-eval built it.
        task: An lm-eval task.
        doc: The document.
        field: Its context.

    Raises:
        TaskError: The prompt does not have the text that the task renders of the document.
    """
    # Chat templates may strip a message.
    shown, hidden = (str(task.doc_to_text(own)).strip() for own in (doc, {**doc, field: ""}))
    # The document at hand is the last one: a few-shot example may be equal to it.
    before, found, after = prompt.rpartition(shown) if shown else (prompt, "", "")
    if not found:
        raise TaskError(
            f"the prompt does not have the question as the task renders it, so {field} cannot be taken out: "
            "a chat template may have changed the text"
        )
    return before + hidden + after
