"""What a run is in the paper's terms: vanilla, TruthProbe_LLM, TruthProbe_MLLM, random, or something else.

Read from the gate's record in the results file, never from a folder's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from truthgate_eval.analysis.leaderboard.published import is_multimodal, paper_name
from truthgate_eval.analysis.runs.run import Run, RunError

LABELS = {"vanilla": "vanilla", "llm": "TruthProbe_LLM", "mllm": "TruthProbe_MLLM", "random": "random"}
KINDS = (*LABELS, "other")


@dataclass(frozen=True)
class RunEntry:
    """A run in a leaderboard.

    Attributes:
        name: Unique among the entries.
        label: The row it belongs to; the random gates share one.
        kind: One of `KINDS`.
        run: The run.
    """

    name: str
    label: str
    method: str
    run: Run


def method_of(run: Run) -> str:
    """One of `KINDS`.

    * `vanilla`: `scores=none`, or a host's own model without an adapter;
    * `random`: `scores=random:SEED`;
    * `mllm`: a multimodal model gated by its own scores;
    * `llm`: a model gated by the scores of a language model, its own or its base's;
    * `other`: scores that do not say which model was probed, or those of another multimodal model, known by
      the probed architecture or by a name of the paper's; a run can be named otherwise, NAME=RUN.
    """
    gate = run.gate
    if gate is None:
        return "other" if run.environment.get("adapter") else "vanilla"
    source = str(gate.get("scores"))
    if source.lower() == "none":
        return "vanilla"
    if source.startswith("random"):
        return "random"
    probed = (gate.get("probed") or {}).get("model")
    if not probed:
        return "other"
    if _same(probed, run.model):
        return "llm" if run.harness == "lm-eval" else "mllm"
    known = paper_name(str(probed))
    pictured = "ConditionalGeneration" in str((gate.get("probed") or {}).get("architecture"))
    return "other" if pictured or (known is not None and is_multimodal(known)) else "llm"


def describe_gate(run: Run) -> str:
    """A run's gate in a few words, such as `lam=4.5, centered, post, scores of vicuna-7b-v1.5`."""
    gate = run.gate
    if not gate or "site" not in gate:
        return ""
    words = [f"lam={gate['lam']:g}", str(gate["norm"])] if "lam" in gate else []
    words.append(str(gate["site"]))
    if gate.get("layers"):
        words.append(f"{len(gate['layers'])} layers")
    probed = (gate.get("probed") or {}).get("model")
    if probed and not _same(probed, run.model):
        words.append(f"scores of {str(probed).rstrip('/').rsplit('/', 1)[-1]}")
    return ", ".join(words)


def make_entries(given: Sequence[tuple[str | None, Run]]) -> list[RunEntry]:
    """Name the runs; `given` pairs each with the name that the user chose, or None.

    A name of `LABELS` puts the run into that row. Any other name makes a row of its own.

    Raises:
        RunError: Two runs would bear one name.
    """
    entries = [_entry(name, run) for name, run in given]
    entries = _random_rows(entries)
    crowded = Counter(entry.name for entry in entries)
    entries = [
        replace(entry, name=f"{entry.name} ({entry.run.folder_name})") if crowded[entry.name] > 1 else entry
        for entry in entries
    ]
    entries = [entry if entry.method == "random" else replace(entry, label=entry.name) for entry in entries]
    for name, count in Counter(entry.name for entry in entries).items():
        if count > 1:
            paths = " and ".join(str(entry.run.path) for entry in entries if entry.name == name)
            raise RunError(f"{paths} would both be called {name!r}: name them, NAME=RUN")
    return entries


def choose_baseline(entries: Sequence[RunEntry], name: str | None) -> tuple[RunEntry, list[str]]:
    """The run that the others are compared with, and what a reader should know of the choice.

    Raises:
        RunError: There is no run by that name, or no vanilla run.
    """
    names = ", ".join(entry.name for entry in entries)
    if name is not None:
        for entry in entries:
            if name in (entry.name, str(entry.run.path), entry.run.folder_name):
                return entry, []
        raise RunError(f"--baseline {name}: no run by that name; expected one of {names}")
    vanilla = [entry for entry in entries if entry.method == "vanilla"]
    if not vanilla:
        raise RunError(
            f"no vanilla run among {names}: add one (scores=none), or name another with --baseline NAME"
        )
    if len(vanilla) == 1:
        return vanilla[0], []
    return vanilla[0], [f"several vanilla runs: {vanilla[0].name}, the first given, is the baseline"]


def _entry(name: str | None, run: Run) -> RunEntry:
    kind = method_of(run)
    if name is not None:
        as_role = next((role for role, label in LABELS.items() if label == name), None)
        # A vanilla run under a name of its own can still be the baseline.
        kind = as_role or ("vanilla" if kind == "vanilla" else "other")
        return RunEntry(name, name, kind, run)
    name = LABELS.get(kind) or run.folder_name
    return RunEntry(name, name, kind, run)


def _random_rows(entries: list[RunEntry]) -> list[RunEntry]:
    """Random gates at one site and in the same layers make one row; each keeps its seed as its name."""
    kinds = {describe_gate(entry.run) for entry in entries if entry.method == "random"}
    result = []
    for entry in entries:
        if entry.method == "random":
            gate = describe_gate(entry.run)
            label = "random" if len(kinds) == 1 else f"random ({gate})"
            name = str((entry.run.gate or {}).get("scores", "random"))
            entry = replace(entry, label=label, name=name if len(kinds) == 1 else f"{name} ({gate})")
        result.append(entry)
    return result


def _same(first: str, second: str) -> bool:
    """Whether two names (hub ids, folders) mean one model."""
    one, two = (name.rstrip("/").rsplit("/", 1)[-1].lower() for name in (str(first), str(second)))
    return one == two or (paper_name(one) is not None and paper_name(one) == paper_name(two))
