"""May two runs be compared? The same documents they must have; what else differs is said.

Documents are matched by what they are and not by their number, which a run with `exclude_rows_of` counts
otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from truthgate_eval.analysis.leaderboard.comparison import BoardPart
from truthgate_eval.analysis.runs.methods import RunEntry
from truthgate_eval.analysis.runs.run import Run, RunError
from truthgate_eval.analysis.runs.samples import SampleResult

_NAMED = 3
_FEW_CLUSTERS = 20
_MANY_UNPARSED = 0.05


def check_documents(baseline: Run, run: Run, task: str) -> None:
    """Raise `RunError`, naming the first documents, unless both runs judged the same ones."""
    ours, theirs = baseline.tasks[task].samples, run.tasks[task].samples
    parts = []
    for here, other, path in ((ours, theirs, baseline.path), (theirs, ours, run.path)):
        only = [record for key, record in here.items() if key not in other]
        if only:
            named = ", ".join(_document(record) for record in only[:_NAMED])
            more = f" and {len(only) - _NAMED} more" if len(only) > _NAMED else ""
            parts.append(f"only {path} has document {named}{more}")
    if parts:
        raise RunError(
            f"{baseline.path} and {run.path} judged different documents of {task}: {'; '.join(parts)}. "
            "Run both on the same data with the same --limit"
        )


def differences(baseline: RunEntry, others: Sequence[RunEntry]) -> list[str]:
    """What besides the gate differs between the baseline and the other runs, a line each."""
    lines = []
    for entry in others:
        ours, theirs = baseline.run.environment, entry.run.environment
        for name in dict.fromkeys([*ours, *theirs]):
            lines += _difference(f"different {name}", ours.get(name), theirs.get(name), baseline, entry)
        for task in baseline.run.tasks:
            if task in entry.run.tasks:
                lines += _task_differences(task, baseline, entry)
    return lines


def missing_tasks(baseline: RunEntry, entry: RunEntry) -> list[str]:
    """Tasks that only one of two runs has, a line a side."""
    lines = []
    for has, lacks in ((baseline, entry), (entry, baseline)):
        names = [name for name in has.run.tasks if name not in lacks.run.tasks]
        if names:
            lines.append(f"{lacks.name} has no {', '.join(names)}: not compared with {has.name} there")
    return lines


def unparsed_warnings(entry: RunEntry, tasks: Iterable[str]) -> list[str]:
    """Why a run's figures say less than they seem to: answers that are none."""
    found = []
    for task in tasks:
        records = list(entry.run.tasks[task].samples.values()) if task in entry.run.tasks else []
        share = sum(record.unparsed for record in records) / len(records) if records else 0.0
        if share >= _MANY_UNPARSED:
            found.append(f"{share:.0%} of {task}")
    return (
        [f"{entry.name}: answers that say neither yes nor no, or both: {', '.join(found)}"] if found else []
    )


def few_cluster_warnings(board: str, parts: Sequence[BoardPart]) -> list[str]:
    """A line where there are too few clusters for a bootstrap, and one where they are not known."""
    lines = []
    few = min(parts, key=lambda part: part.clusters)
    if few.clusters < _FEW_CLUSTERS:
        lines.append(f"{board}: intervals from so few {few.cluster_kind}s ({few.clusters}) are too narrow")
    if any(part.cluster_kind == "document" for part in parts):
        lines.append(
            f"{board}: the samples do not say which picture or question documents share: its intervals take "
            "every document as independent"
        )
    return lines


def _task_differences(task: str, baseline: RunEntry, entry: RunEntry) -> list[str]:
    ours, theirs = baseline.run.tasks[task], entry.run.tasks[task]
    lines = []
    for name in ours.settings:
        lines += _difference(
            f"{task}: different {name}", ours.settings[name], theirs.settings.get(name), baseline, entry
        )
    other = sum(
        record.prompt != theirs.samples[key].prompt
        for key, record in ours.samples.items()
        if key in theirs.samples
    )
    if other:
        lines.append(
            f"{task}: the prompt differs in {other} of {len(ours.samples)} documents between {baseline.name} "
            f"and {entry.name}"
        )
    return lines


def _difference(what: str, ours: object, theirs: object, baseline: RunEntry, entry: RunEntry) -> list[str]:
    if ours == theirs:
        return []
    texts = ["not recorded" if value is None else str(value) for value in (ours, theirs)]
    return [f"{what}: {_short(texts[0])} ({baseline.name}), {_short(texts[1])} ({entry.name})"]


def _document(record: SampleResult) -> str:
    return f'{record.doc_id} ("{_short(record.question)}")' if record.question else str(record.doc_id)


def _short(text: str, width: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."
