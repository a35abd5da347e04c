"""Whether two runs can be compared: they need the same documents, and other differences make warnings.

Documents are matched by their content and not by their number, which differs in a run with `exclude_rows_of`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from truthgate_eval.analysis.leaderboard.comparison import LeaderboardPart
from truthgate_eval.analysis.runs.methods import RunEntry, system_instruction_of
from truthgate_eval.analysis.runs.results_files import RunError
from truthgate_eval.analysis.runs.run import Run
from truthgate_eval.analysis.runs.samples import SampleResult

_MAX_NAMED = 3
_FEW_CLUSTERS = 20
_MANY_UNPARSED = 0.05


def check_common_tasks(baseline: RunEntry, others: Sequence[RunEntry]) -> None:
    """Raise `RunError` unless every run has a task of the baseline, and the same documents in it."""
    for entry in others:
        common = [task for task in baseline.run.tasks if task in entry.run.tasks]
        if not common:
            raise RunError(
                f"{baseline.run.path} ({', '.join(baseline.run.tasks)}) and {entry.run.path} "
                f"({', '.join(entry.run.tasks)}) have no task in common"
            )
        for task in common:
            _check_documents(baseline.run, entry.run, task)


def _check_documents(baseline: Run, run: Run, task: str) -> None:
    """Raise `RunError`, naming the first documents, unless both runs have the same ones."""
    ours, theirs = baseline.tasks[task].samples, run.tasks[task].samples
    parts = []
    for here, other, path in ((ours, theirs, baseline.path), (theirs, ours, run.path)):
        only = [sample for key, sample in here.items() if key not in other]
        if only:
            named = ", ".join(_document(sample) for sample in only[:_MAX_NAMED])
            more = f" and {len(only) - _MAX_NAMED} more" if len(only) > _MAX_NAMED else ""
            parts.append(f"only {path} has document {named}{more}")
    if parts:
        raise RunError(
            f"{baseline.path} and {run.path} have different documents of {task}: {'; '.join(parts)}. "
            "Run both on the same data with the same --limit"
        )


def differences(baseline: RunEntry, others: Sequence[RunEntry]) -> list[str]:
    """What differs between the baseline and the other runs besides the method, one line each.

    The prompt is the method of a run with a system instruction (`prompt`): beside a run without one it is no
    reason to warn. Two runs that are gated, or otherwise changed, differ by their prompts as well.
    """
    lines = []
    for entry in others:
        ours, theirs = baseline.run.environment, entry.run.environment
        compares_prompts = _compares_prompts(baseline, entry)
        for name in dict.fromkeys([*ours, *theirs]):
            if compares_prompts and name == "system instruction":
                continue
            lines += _difference(f"different {name}", ours.get(name), theirs.get(name), baseline, entry)
        for task in baseline.run.tasks:
            if task in entry.run.tasks:
                lines += _task_differences(task, baseline, entry)
                if not compares_prompts:
                    lines += _prompt_difference(task, baseline, entry)
    return lines


def missing_tasks(baseline: RunEntry, entry: RunEntry) -> list[str]:
    """Tasks that only one of two runs has, one line for each run that lacks some."""
    lines = []
    for has, lacks in ((baseline, entry), (entry, baseline)):
        names = [name for name in has.run.tasks if name not in lacks.run.tasks]
        if names:
            lines.append(f"{lacks.name} has no {', '.join(names)}: not compared with {has.name} there")
    return lines


def unparsed_warnings(entry: RunEntry, tasks: Iterable[str]) -> list[str]:
    """A line if many of a run's answers were not parsed, so that its figures mean less than they seem to."""
    found = []
    for task in tasks:
        samples = list(entry.run.tasks[task].samples.values()) if task in entry.run.tasks else []
        share = sum(sample.unparsed for sample in samples) / len(samples) if samples else 0.0
        if share >= _MANY_UNPARSED:
            found.append(f"{share:.0%} of {task}")
    return (
        [f"{entry.name}: answers that say neither yes nor no, or both: {', '.join(found)}"] if found else []
    )


def few_cluster_warnings(name: str, parts: Sequence[LeaderboardPart]) -> list[str]:
    """A line if there are too few clusters for a bootstrap, and one if clusters are not recorded.

    Args:
        name: Of the task leaderboard.
        parts: Its parts.
    """
    lines = []
    few = min(parts, key=lambda part: part.clusters)
    if few.clusters < _FEW_CLUSTERS:
        lines.append(f"{name}: intervals from so few {few.cluster_kind}s ({few.clusters}) are too narrow")
    if any(part.cluster_kind == "document" for part in parts):
        lines.append(
            f"{name}: the samples do not record which image or question documents share: its intervals treat "
            "all documents as independent"
        )
    return lines


def _task_differences(task: str, baseline: RunEntry, entry: RunEntry) -> list[str]:
    ours, theirs = baseline.run.tasks[task], entry.run.tasks[task]
    lines = []
    for name in ours.settings:
        lines += _difference(
            f"{task}: different {name}", ours.settings[name], theirs.settings.get(name), baseline, entry
        )
    return lines


def _compares_prompts(baseline: RunEntry, entry: RunEntry) -> bool:
    """Whether a system instruction is what one of two runs stands for, and the other has none of its own."""
    pair = (baseline, entry)
    return any(one.method == "prompt" for one in pair) and all(
        one.method == "prompt" or system_instruction_of(one.run) is None for one in pair
    )


def _prompt_difference(task: str, baseline: RunEntry, entry: RunEntry) -> list[str]:
    ours, theirs = baseline.run.tasks[task], entry.run.tasks[task]
    other = sum(
        sample.prompt != theirs.samples[key].prompt
        for key, sample in ours.samples.items()
        if key in theirs.samples
    )
    if not other:
        return []
    return [
        f"{task}: the prompt differs in {other} of {len(ours.samples)} documents between {baseline.name} "
        f"and {entry.name}"
    ]


def _difference(what: str, ours: object, theirs: object, baseline: RunEntry, entry: RunEntry) -> list[str]:
    if ours == theirs:
        return []
    texts = ["not recorded" if value is None else str(value) for value in (ours, theirs)]
    return [f"{what}: {_shorten(texts[0])} ({baseline.name}), {_shorten(texts[1])} ({entry.name})"]


def _document(sample: SampleResult) -> str:
    return f'{sample.doc_id} ("{_shorten(sample.question)}")' if sample.question else str(sample.doc_id)


def _shorten(text: str, width: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."
