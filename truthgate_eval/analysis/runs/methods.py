"""The method of a run: the paper's (vanilla, TruthProbe_LLM, TruthProbe_MLLM, random), or a baseline of ours.

It is read from what the results file records, never from a folder's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from truthgate_eval.analysis.runs.paper_models import is_multimodal, is_same_model, model_name, paper_name
from truthgate_eval.analysis.runs.results_files import RunError
from truthgate_eval.analysis.runs.run import Run

Method = Literal["vanilla", "llm", "mllm", "random", "prompt", "contrast", "other"]
# In the order of a leaderboard's rows.
METHODS: tuple[Method, ...] = get_args(Method)
# The labels of the paper's methods, in the order of its tables.
LABELS: dict[Method, str] = {
    "vanilla": "vanilla",
    "llm": "TruthProbe_LLM",
    "mllm": "TruthProbe_MLLM",
    "random": "random",
}
_SHOWN_INSTRUCTION = 24  # characters of a system instruction in its row's name


@dataclass(frozen=True)
class RunEntry:
    """A run in a leaderboard.

    Attributes:
        name: Unique among the entries.
        label: Of the row that it belongs to; random gates share one.
        method: The method that it stands for.
        run: The run.
    """

    name: str
    label: str
    method: Method
    run: Run


def method_of(run: Run) -> Method:
    """The method that a run stands for.

    * `vanilla`: a gate of kind `vanilla` (`scores=none`), or the harness's own model without an adapter;
    * `random`: a gate of kind `random` (`scores=random:SEED`), of any action;
    * `mllm`: a multimodal model gated by its own scores;
    * `llm`: a model gated by the scores of a language model, its own or its base's;
    * `contrast`: no gate, but a contrast with the context taken away (`contrast=ALPHA`);
    * `other`: shuffled scores, an action other than the paper's soft gate, a constant added to the logits of
      yes (`yes_offset=`), a gate with a contrast, scores without a record of the probed model, or those of
      another multimodal model. A model counts as multimodal by its architecture or its name in the paper.

    A run with a system instruction has the method that it would have without: `make_entries` makes it
    `prompt` where it stands beside a vanilla run. The user can name the run: NAME=RUN.
    """
    gate = run.gate
    if gate is None:
        return "other" if run.environment.get("adapter") else "vanilla"
    kind = _gate_kind(gate)
    if gate.get("yes_offset"):
        return "other"
    if gate.get("contrast"):
        return "contrast" if kind == "vanilla" else "other"
    if kind == "shuffled" or (kind == "scores" and gate.get("action", "soft") != "soft"):
        return "other"
    if kind != "scores":
        return kind
    probed = (gate.get("probed") or {}).get("model")
    if not probed:
        return "other"
    if is_same_model(str(probed), run.model):
        return "llm" if run.harness == "lm-eval" else "mllm"
    known = paper_name(str(probed))
    takes_images = "ConditionalGeneration" in str((gate.get("probed") or {}).get("architecture"))
    return "other" if takes_images or (known is not None and is_multimodal(known)) else "llm"


def _gate_kind(gate: Mapping[str, Any]) -> Literal["scores", "shuffled", "random", "vanilla"]:
    """`scores`, `shuffled`, `random` or `vanilla`, as `GateConfig.describe` writes it into results files.

    Results files from before there was a `kind` have only the `scores=` argument. The versions that wrote
    them took every argument that starts with "random" for the random gate.
    """
    kind = gate.get("kind")
    if kind == "scores" or kind == "shuffled" or kind == "random" or kind == "vanilla":
        return kind
    source = str(gate.get("scores"))
    if source.lower() == "none":
        return "vanilla"
    return "random" if source.startswith("random") else "scores"


def describe_gate(run: Run, *, found: bool = True) -> str:
    """A run's gate in a few words, such as `lam=4.5, centered, post, scores of vicuna-7b-v1.5`.

    Args:
        run: The run.
        found: Whether to say the number that was found for a strength of a given divergence, beside it.
    """
    gate = run.gate
    baselines = [_setting(gate, "yes_offset", found)] if gate and gate.get("yes_offset") else []
    if gate and gate.get("contrast"):
        baselines.append(_describe_contrast(gate["contrast"]))
    if not gate or "site" not in gate:
        return ", ".join(baselines)
    words = [_setting(gate, "lam", found)] if "lam" in gate else []
    words += [str(gate["norm"])] if "norm" in gate else []
    if gate.get("action", "soft") != "soft":
        names = ("top", "bottom", "in", "out", "per", "alpha", "direction")
        words += [str(gate["action"]), *(_setting(gate, name, found) for name in names if name in gate)]
    words.append(str(gate["site"]))
    if gate.get("positions", "all") != "all":
        words.append(f"{gate['positions']} positions")
    if gate.get("layers"):
        words.append(f"{len(gate['layers'])} layers")
    probed = (gate.get("probed") or {}).get("model")
    if probed and not is_same_model(str(probed), run.model):
        words.append(f"scores of {model_name(str(probed))}")
    return ", ".join([*words, *baselines])


def _setting(gate: Mapping[str, Any], name: str, found: bool) -> str:
    """`lam=4.5`; `lam=0.734 (kl:0.05)`, or `lam=kl:0.05`, for a strength that was found."""
    strength = gate.get("strength") or {}
    value = f"{gate[name]:g}" if name == "lam" or strength.get("argument") == name else gate[name]
    if strength.get("argument") != name:
        return f"{name}={value}"
    target = f"kl:{strength['target']:g}"
    return f"{name}={value} ({target})" if found else f"{name}={target}"


def _describe_contrast(contrast: Mapping[str, Any]) -> str:
    image, field = contrast.get("image"), contrast.get("field")
    against = f"no {field or 'context'}"
    if image is not None:
        against = "no image" if image == "none" else f"a {image} image"
    return f"contrast={contrast['alpha']:g} against {against}"


def make_entries(runs: Sequence[tuple[str | None, Run]]) -> list[RunEntry]:
    """Name the runs and find their methods.

    A vanilla run with a system instruction is a method of its own, `prompt`, where another vanilla run of the
    same model without one has a task in common with it. Where all runs have it, it is the vanilla run.

    Args:
        runs: Each run with the name that the user chose, or None. A name from `LABELS` puts the run into that
            row, any other name into a row of its own.

    Raises:
        RunError: Two runs would have one name.
    """
    entries = _label_random_gates([_make_entry(name, run, _method_among(run, runs)) for name, run in runs])
    times = Counter(entry.name for entry in entries)
    entries = [
        replace(entry, name=f"{entry.name} ({entry.run.folder_name})") if times[entry.name] > 1 else entry
        for entry in entries
    ]
    entries = [entry if entry.method == "random" else replace(entry, label=entry.name) for entry in entries]
    for name, count in Counter(entry.name for entry in entries).items():
        if count > 1:
            paths = " and ".join(str(entry.run.path) for entry in entries if entry.name == name)
            raise RunError(f"{paths} would both be called {name!r}: name them, NAME=RUN")
    return entries


def choose_baseline(entries: Sequence[RunEntry], name: str | None) -> tuple[RunEntry, list[str]]:
    """The run that the others are compared with, and what a reader should know about the choice.

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


def system_instruction_of(run: Run) -> str | None:
    """The system instruction that a run had, or None."""
    text = run.environment.get("system instruction")
    return str(text) if text else None


def _method_among(run: Run, runs: Sequence[tuple[str | None, Run]]) -> Method:
    """The method of a run beside others."""
    method = method_of(run)
    if method != "vanilla" or system_instruction_of(run) is None:
        return method
    has_vanilla = any(
        method_of(other) == "vanilla"
        and system_instruction_of(other) is None
        and is_same_model(other.model, run.model)
        and other.tasks.keys() & run.tasks.keys()
        for _, other in runs
    )
    return "prompt" if has_vanilla else method


def _make_entry(name: str | None, run: Run, method: Method) -> RunEntry:
    if name is None:
        name = _own_name(run, method)
    else:
        named = next((known for known, label in LABELS.items() if label == name), None)
        # Under another name a vanilla run can still be the baseline, and a baseline is still what it is.
        method = named or (method if method in ("vanilla", "prompt", "contrast") else "other")
    return RunEntry(name, name, method, run)


def _own_name(run: Run, method: Method) -> str:
    gate = run.gate or {}
    contrast = gate.get("contrast")
    if method == "prompt":
        text = " ".join(str(system_instruction_of(run)).split())
        shown = text if len(text) <= _SHOWN_INSTRUCTION else f"{text[: _SHOWN_INSTRUCTION - 3].rstrip()}..."
        return f'system instruction "{shown}"'
    if contrast:
        image = ", image=none" if contrast.get("image") == "none" else ""
        name = f"contrast (alpha={contrast['alpha']:g}{image})"
        gated = method_of(replace(run, gate={**gate, "contrast": None}))
        if method != "contrast":  # with a gate, whose name comes first
            gate_name = str(gate.get("scores")) if gated == "random" else LABELS.get(gated)
            return f"{gate_name}, {name}" if gate_name else run.folder_name
        return name
    return LABELS.get(method) or run.folder_name


def _label_random_gates(entries: list[RunEntry]) -> list[RunEntry]:
    """Give random gates at one site and in the same layers one row; each has its seed in its name.

    Random gates of one divergence share a row, too: each has a lam of its own.
    """
    gates = {describe_gate(entry.run, found=False) for entry in entries if entry.method == "random"}
    labelled = []
    for entry in entries:
        if entry.method == "random":
            name = str((entry.run.gate or {}).get("scores", "random"))
            is_soft = (entry.run.gate or {}).get("action", "soft") == "soft"
            suffix = "" if len(gates) == 1 and is_soft else f" ({describe_gate(entry.run, found=False)})"
            entry = replace(entry, label=f"random{suffix}", name=f"{name}{suffix}")
        labelled.append(entry)
    return labelled
