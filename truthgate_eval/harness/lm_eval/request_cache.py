"""lm-eval's cache of prompts, `--cache_requests`, with keys that see what the prompts are made of.

lm-eval keys them on the task's name, the number of examples and whether there is a chat template. A run with
other documents (`--metadata`), other documents of them (`--samples`), other examples (`--seed`) or other
generation settings (`--gen_kwargs`) would get the first run's requests. See `docs/harnesses.md#caches`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from lm_eval.api.task import ConfigurableTask, Task

from truthgate_eval.errors import TaskError
from truthgate_eval.harness.cache_keys import digest


class DocumentKeyedTask(ConfigurableTask):
    """A task whose cached prompts are those of its own documents: `class` of our task files.

    This is lm-eval's documented way to give a task file another class.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Make the task of a file.

        Args:
            config: The file's content, as lm-eval reads it.
        """
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def build_all_requests(self, **options: Any) -> None:
        """See `lm_eval.api.task.Task.build_all_requests`.

        Raises:
            TaskError: As `build_keyed_requests`.
        """
        build_keyed_requests(self, super().build_all_requests, **options)


def install_keys(task: Task) -> None:
    """Let one task of any class build its requests by `build_keyed_requests`, as ours do."""
    if not isinstance(task, DocumentKeyedTask):
        build = functools.partial(type(task).build_all_requests, task)
        task.build_all_requests = functools.partial(build_keyed_requests, task, build)


def build_keyed_requests(
    task: Task,
    build: Callable[..., None],
    *,
    cache_requests: bool = False,
    tokenizer_name: str = "",
    **options: Any,
) -> None:
    """Build a task's requests, or take them from the cache if it has exactly these.

    Args:
        task: The task.
        build: Its own `build_all_requests`.
        cache_requests: As in `build`.
        tokenizer_name: As in `build`, which uses it for the cache's key only; a hash is added to it.
        **options: The others of `build`.

    Raises:
        TaskError: The cached requests are not about the task's documents.
    """
    if cache_requests:
        tokenizer_name = f"{tokenizer_name}-{digest(_prompt_sources(task, options))[:32]}"
    build(cache_requests=cache_requests, tokenizer_name=tokenizer_name, **options)
    if cache_requests:
        _check_documents(task, options)


def _prompt_sources(task: Task, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a task's requests are made of, but what stands in lm-eval's own key.

    The configuration counts without its metadata, where lm-eval puts `--model_args` too: what metadata
    changes is in the documents.
    """
    config = {name: value for name, value in task.dump_config().items() if name != "metadata"}
    chat_template = options.get("chat_template")
    sources = {
        "version": version("lm_eval"),
        "config": config,
        "documents": list(task.eval_docs),
        "samples": options.get("samples"),
        "chat_template": chat_template and chat_template(_example_chat(options)),
    }
    if config.get("num_fewshot"):
        sampler = getattr(task, "sampler", None)
        random_states = [task.fewshot_rnd.getstate(), sampler and sampler.rnd.getstate()]
        sources |= {"examples": list(task.fewshot_docs()), "random_states": random_states}
    return sources


def _example_chat(options: Mapping[str, Any]) -> list[dict[str, str]]:
    """A chat with the roles of the task's own, to see what the template makes of it."""
    system = options.get("system_instruction")
    chat = [{"role": "system", "content": system}] if system else []
    if options.get("fewshot_as_multiturn"):
        chat += [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    return [*chat, {"role": "user", "content": "question"}]


def _check_documents(task: Task, options: Mapping[str, Any]) -> None:
    """Check that every document that will be judged is the one that its requests are about."""
    names = ("limit", "samples", "rank", "world_size")
    judged = dict(task.doc_iterator(**{name: options[name] for name in names if name in options}))
    asked: dict[int, list[Any]] = {}
    for instance in task.instances:
        asked.setdefault(instance.doc_id, []).append(instance.doc)
    for doc_id, doc in judged.items():
        if doc_id not in asked or any(other != doc for other in asked[doc_id]):
            raise TaskError(
                f"task {task.task_name!r}, document {doc_id}: the requests in lm-eval's cache are about "
                "another document; --cache_requests refresh builds them anew"
            )
