"""What the study runs: named steps in stages; the steps of one stage do not wait for each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA, SCENES_LLAVA_EARLY
from truthgate_eval.packaged.smollm2 import SMOLLM2

SITES = ("post", "pre")
# Probe site, gate site (METHOD.md, last section).
READINGS = {
    "post-post": "the paper's text",
    "pre-post": "the released code",
    "pre-pre": "a head's own output",
}
# Score sets that gate the child: the artifact they come from, and the paper's name.
GATES = {
    "halueval": ("base-halueval", "TruthProbe_LLM, HaluEval"),
    "scenes-text": ("base-scenes-text", "TruthProbe_LLM, scenes as text"),
    "scenes": ("child-picture", "TruthProbe_MLLM, scenes"),
}
CONTROLS = ("surface", "no-context", "swapped-context", "shuffled-labels")
# What is probed: model, and the task with its picture condition.
PROBED = {
    "base-halueval": ("base", "halueval"),
    "base-scenes-text": ("base", "text"),
    "child-halueval": ("child", "halueval"),
    "child-scenes-text": ("child", "text"),
    "child-picture": ("child", "document"),
    "child-black": ("child", "black"),
    "child-none": ("child", "none"),
}
FLOORS = {
    "random-halueval": ("random", "halueval"),
    "random-scenes-text": ("random", "text"),
    "permuted-halueval": ("permuted", "halueval"),
    "permuted-picture": ("permuted", "document"),
}
JUDGE_LANES = 2


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    Attributes:
        documents: Probed documents of a task, two sequences each.
        selection: Documents of a split on which gates are chosen.
        rest: Documents of a split on which the choices are judged.
        early_rest: The same for the earlier checkpoint, whose differences are larger.
        axis: Strengths that are tried, `sweep --lam`.
        early_axis: The same for the earlier checkpoint.
        seeds: Random gates at a site.
        deals: Gates of scores that are dealt out anew.
        batch: Batch size of judging.
    """

    documents: int = 292
    selection: int = 150
    rest: int = 4300
    early_rest: int = 1450
    axis: str = "-4.5,-1,-0.3,0.3,1,4.5"
    early_axis: str = "0.3,1,4.5"
    seeds: int = 5
    deals: int = 1
    batch: int = 32


FULL, QUICK = (
    Sizes(),
    Sizes(
        documents=20,
        selection=4,
        rest=8,
        early_rest=8,
        axis="-0.3,0.3",
        early_axis="0.3",
        seeds=2,
        deals=1,
        batch=8,
    ),
)


@dataclass(frozen=True)
class Study:
    """What is studied.

    Attributes:
        base: The text model, a name or a folder.
        child: The model that sees, likewise.
        early: An earlier state of the child, likewise.
        sizes: How much is run.
    """

    base: str = SMOLLM2
    child: str = SCENES_LLAVA
    early: str = SCENES_LLAVA_EARLY
    sizes: Sizes = FULL

    @property
    def children(self) -> dict[str, str]:
        """The models that are gated, by the name of their part of the study."""
        return {"child": self.child, "early": self.early}

    def rest(self, part: str) -> int:
        """How many documents of a split judge a part's gates."""
        return self.sizes.early_rest if part == "early" else self.sizes.rest


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Unique.
        program: `truthgate`, or a script beside this file.
        words: Its arguments; paths are relative to the study's folder.
        makes: What it writes.
        needs: Names of the steps whose products it reads.
        copies: A file that is copied first, and to where.
        data: The data folder, where it is one of the study's own.
    """

    name: str
    program: str
    words: tuple[str, ...]
    makes: tuple[str, ...]
    needs: tuple[str, ...] = ()
    copies: tuple[str, str] | None = None
    data: str | None = None


def stages(study: Study) -> list[list[Step]]:
    """All steps, in the order in which they are run."""
    material = Step("material", "results_material.py", ("material", study.base, study.child), ("material",))
    probes = list(_probes(study))
    # Documents of HaluEval that the first half probed are left out of the second.
    later = [step for step in probes if set(step.needs) - {"material"}]
    return [
        [material],
        [step for step in probes if step not in later],
        later,
        [step for part in study.children for step in _sweeps(study, part)],
        [step for part in study.children for step in _judged(study, part)],
        [*_correlated(), *(_compared(study, part) for part in study.children)],
    ]


def artifacts(site: str) -> list[str]:
    """Names of all artifacts of the inheritance matrix at a site, without `.npz`."""
    return [
        *(f"{name}-{half}-{site}" for name in PROBED for half in "ab"),
        *(f"{name}-a-{site}" for name in FLOORS),
    ]


def gate_artifact(part: str, gate: str, site: str) -> str:
    """Which artifact a gate is made of, for the child or its earlier state."""
    source = GATES[gate][0]
    if part == "early" and source.startswith("child"):
        source = source.replace("child", "early")
    return f"{source}-a-{site}"


def runs(study: Study, part: str) -> list[str]:
    """Names of the runs that are judged on the rest; of the earlier state, only each score set's best reading."""
    if part == "early":
        return ["vanilla", *(f"{gate}-best" for gate in GATES)]
    readings = [f"{gate}-{reading}" for gate in GATES for reading in READINGS]
    return ["vanilla", *readings, *(f"shuffled-{deal}" for deal in range(1, study.sizes.deals + 1))]


def random_runs(study: Study, part: str) -> list[str]:
    """Names of the random gates, judged where the gates were chosen: they are too strong to need more polls."""
    seeds = range(1, study.sizes.seeds + 1) if part == "child" else ()
    return [f"random-{seed}-{site}" for site in SITES for seed in seeds]


def _probes(study: Study) -> Iterator[Step]:
    for site in SITES:
        for name, (model, task) in PROBED.items():
            for half in "ab":
                yield _probe(study, f"{name}-{half}-{site}", model, task, half, site)
        for name, (model, task) in FLOORS.items():
            yield _probe(study, f"{name}-a-{site}", model, task, "a", site)
        yield _probe(study, f"early-picture-a-{site}", "early", "document", "a", site)


def _probe(study: Study, name: str, model: str, task: str, half: str, site: str) -> Step:
    names = {
        "base": study.base, "random": "material/random_base", "child": study.child,
        "permuted": "material/permuted_child", "early": study.early,
    }  # fmt: skip
    sees = model in ("child", "permuted", "early")
    words = [
        "probe", "--model", "vlm" if sees else "hf", "--model_args", f"pretrained={names[model]},dtype=bfloat16",
    ]  # fmt: skip
    if task == "halueval":
        words += ["--tasks", "probe_halueval_qa", *(["--image", "none"] if sees else [])]
        if half == "b":
            rows = {"exclude_rows_of": f"base-halueval-a-{site}.npz"}
            words += ["--metadata", json.dumps(rows)]
    elif task == "text":
        words += ["--tasks", "probe_scenes_text", *(["--image", "none"] if sees else [])]
    else:
        words += ["--tasks", "probe_scenes", *(["--image", task] if task != "document" else [])]
    if half == "a":
        # The floor costs no pass through the model; the others do, and are asked once for each kind of data.
        full = site == "post" and name.split("-a-")[0] in {source for source, _ in GATES.values()}
        for control in CONTROLS if full else ("shuffled-labels",):
            words += ["--control", control]
    words += ["--site", site, "--seed", "42" if half == "a" else "43"]
    words += ["--limit", str(study.sizes.documents), "--device", "cpu", "--output", f"{name}.npz"]
    data = None if task == "halueval" else f"material/data_{half}"
    needs = ["material"] if data or model in ("random", "permuted") else []
    needs += [f"base-halueval-a-{site}"] if task == "halueval" and half == "b" else []
    return Step(name, "truthgate", tuple(words), (f"{name}.npz",), tuple(needs), data=data)


def _sweeps(study: Study, part: str) -> Iterator[Step]:
    """A sweep for each score set and site; the scores are copied, since a sweep notes its choice in them."""
    for gate in GATES:
        for site in SITES:
            name = f"sweep-{part}-{gate}-{site}"
            gated = ",".join(reading.split("-")[1] for reading in READINGS if reading.startswith(site))
            source = gate_artifact(part, gate, site)
            words = (
                "sweep", f"{name}.npz", "--model", "gated_vlm",
                "--model_args", f"pretrained={study.children[part]},dtype=bfloat16", "--tasks", "scenes",
                "--lam", study.sizes.early_axis if part == "early" else study.sizes.axis, "--norm", "minmax" if part == "early" else "minmax,centered", "--site", gated,
                "--limit", str(study.sizes.selection), "--rest_limit", "0", "--device", "cpu",
                "--batch_size", str(study.sizes.batch),
            )  # fmt: skip
            makes, copies = (f"{name}.npz", f"{name}.sweep"), (f"{source}.npz", f"{name}.npz")
            yield Step(name, "truthgate", words, makes, (source,), copies)


def _judged(study: Study, part: str) -> Iterator[Step]:
    """All gates of a part, dealt out to processes that load the model once each."""
    sizes = tuple(str(n) for n in (study.sizes.selection, study.rest(part), study.sizes.batch))
    names = [*runs(study, part), *random_runs(study, part)]
    for lane in range(JUDGE_LANES):
        own = names[lane::JUDGE_LANES]
        words = (part, study.children[part], *sizes, *own)
        makes = tuple(str(folder_of(part, name)) for name in own)
        needs = tuple(step.name for step in _sweeps(study, part))
        yield Step(f"judge-{part}-{lane + 1}", "results_judge.py", words, makes, needs)


def _correlated() -> Iterator[Step]:
    for site in SITES:
        name = f"matrix-{site}"
        members = [f"{one.removesuffix(f'-{site}')}={one}.npz" for one in artifacts(site)]
        words = ("correlate", *members, "--json", f"{name}.json", "--plot", f"{name}.png")
        yield Step(name, "truthgate", words, (f"{name}.json", f"{name}.png"), tuple(artifacts(site)))


def _compared(study: Study, part: str) -> Step:
    folders = {name: str(folder_of(part, name)) for name in runs(study, part)}
    given = [folder if name == "vanilla" else f"{name}={folder}" for name, folder in folders.items()]
    name = f"compare-{part}"
    words = ("compare", *given, "--published", "none", "--json", f"{name}.json", "--markdown", f"{name}.md")
    needs = tuple(f"judge-{part}-{lane + 1}" for lane in range(JUDGE_LANES))
    return Step(name, "truthgate", words, (f"{name}.json", f"{name}.md"), needs)


def folder_of(part: str, run: str) -> Path:
    """Where a judged run is, relative to the study's folder."""
    return Path(f"judged-{part}", "rest", run)
