"""The steps of the study, in stages; the steps of one stage do not depend on each other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA, SCENES_LLAVA_EARLY
from truthgate_eval.packaged.smollm2 import SMOLLM2

SITES = ("post", "pre")
# Probe site, gate site (docs/method.md#what-the-released-code-does).
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
# What is probed: model, and the task with its image condition.
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
EVALUATION_PROCESSES = 2


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    Attributes:
        documents: Probed documents of a task, two sequences each.
        selection: Documents of a split on which gates are chosen.
        test: Documents of a split on which the choices are evaluated.
        early_test: The same for the earlier checkpoint, whose differences are larger.
        axis: Strengths that are tried, `sweep --lam`.
        early_axis: The same for the earlier checkpoint.
        seeds: Number of random gates at a site.
        shuffles: Number of gates of shuffled scores.
        batch: Batch size of the evaluation.
    """

    documents: int = 292
    selection: int = 150
    test: int = 4300
    early_test: int = 1450
    axis: str = "-4.5,-1,-0.3,0.3,1,4.5"
    early_axis: str = "0.3,1,4.5"
    seeds: int = 5
    shuffles: int = 1
    batch: int = 32

    def as_dict(self) -> dict[str, int | str]:
        """The sizes under the keys that docs/results.json has."""
        keys = {"test": "rest", "early_test": "early_rest", "shuffles": "deals"}
        return {keys.get(name, name): value for name, value in dataclasses.asdict(self).items()}


FULL, QUICK = (
    Sizes(),
    Sizes(
        documents=20,
        selection=4,
        test=8,
        early_test=8,
        axis="-0.3,0.3",
        early_axis="0.3",
        seeds=2,
        shuffles=1,
        batch=8,
    ),
)


@dataclass(frozen=True)
class Study:
    """What is studied.

    Attributes:
        base: The text model, a name or a folder.
        child: The vision-language model, likewise.
        early: An earlier state of the child, likewise.
        sizes: How much is run.
    """

    base: str = SMOLLM2
    child: str = SCENES_LLAVA
    early: str = SCENES_LLAVA_EARLY
    sizes: Sizes = FULL

    @property
    def checkpoints(self) -> dict[str, str]:
        """The gated models: the child and its earlier state."""
        return {"child": self.child, "early": self.early}

    def num_test(self, checkpoint: str) -> int:
        """Number of documents of a split on which a checkpoint's gates are evaluated."""
        return self.sizes.early_test if checkpoint == "early" else self.sizes.test


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
    # These leave out the documents of HaluEval that the first half probed.
    later = [step for step in probes if set(step.needs) - {"material"}]
    return [
        [material],
        [step for step in probes if step not in later],
        later,
        [step for checkpoint in study.checkpoints for step in _sweeps(study, checkpoint)],
        [step for checkpoint in study.checkpoints for step in _evaluations(study, checkpoint)],
        [*_correlated(), *(_compared(study, checkpoint) for checkpoint in study.checkpoints)],
    ]


def artifacts(site: str) -> list[str]:
    """Names of all artifacts of the inheritance matrix at a site, without `.npz`."""
    return [
        *(f"{name}-{half}-{site}" for name in PROBED for half in "ab"),
        *(f"{name}-a-{site}" for name in FLOORS),
    ]


def gate_artifact(checkpoint: str, gate: str, site: str) -> str:
    """The artifact of a gate, for the child or its earlier state."""
    source = GATES[gate][0]
    if checkpoint == "early" and source.startswith("child"):
        source = source.replace("child", "early")
    return f"{source}-a-{site}"


def runs(study: Study, checkpoint: str) -> list[str]:
    """Names of the runs on the test split; of the earlier state, only the best reading of each score set."""
    if checkpoint == "early":
        return ["vanilla", *(f"{gate}-best" for gate in GATES)]
    readings = [f"{gate}-{reading}" for gate in GATES for reading in READINGS]
    return ["vanilla", *readings, *(f"shuffled-{number}" for number in range(1, study.sizes.shuffles + 1))]


def random_runs(study: Study, checkpoint: str) -> list[str]:
    """Names of the random gates. The selection split is large enough for them: their effect is strong."""
    seeds = range(1, study.sizes.seeds + 1) if checkpoint == "child" else ()
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
    takes_images = model in ("child", "permuted", "early")
    words = [
        "probe", "--model", "vlm" if takes_images else "hf", "--model_args", f"pretrained={names[model]},dtype=bfloat16",
    ]  # fmt: skip
    if task == "halueval":
        words += ["--tasks", "probe_halueval_qa", *(["--image", "none"] if takes_images else [])]
        if half == "b":
            rows = {"exclude_rows_of": f"base-halueval-a-{site}.npz"}
            words += ["--metadata", json.dumps(rows)]
    elif task == "text":
        words += ["--tasks", "probe_scenes_text", *(["--image", "none"] if takes_images else [])]
    else:
        words += ["--tasks", "probe_scenes", "--format", "authors"]
        words += ["--image", task] if task != "document" else []
    if half == "a":
        # Shuffled labels cost no pass through the model; the other controls do, and run once for each kind of data.
        full = site == "post" and name.split("-a-")[0] in {source for source, _ in GATES.values()}
        for control in CONTROLS if full else ("shuffled-labels",):
            words += ["--control", control]
    words += ["--site", site, "--seed", "42" if half == "a" else "43"]
    words += ["--limit", str(study.sizes.documents), "--device", "cpu", "--output", f"{name}.npz"]
    data = None if task == "halueval" else f"material/data_{half}"
    needs = ["material"] if data or model in ("random", "permuted") else []
    needs += [f"base-halueval-a-{site}"] if task == "halueval" and half == "b" else []
    return Step(name, "truthgate", tuple(words), (f"{name}.npz",), tuple(needs), data=data)


def _sweeps(study: Study, checkpoint: str) -> Iterator[Step]:
    """A sweep for each score set and site; it gets a copy of the scores, since it saves its choice in them."""
    for gate in GATES:
        for site in SITES:
            name = f"sweep-{checkpoint}-{gate}-{site}"
            gated = ",".join(reading.split("-")[1] for reading in READINGS if reading.startswith(site))
            source = gate_artifact(checkpoint, gate, site)
            words = (
                "sweep", f"{name}.npz", "--model", "gated_vlm",
                "--model_args", f"pretrained={study.checkpoints[checkpoint]},dtype=bfloat16", "--tasks", "scenes",
                "--lam", study.sizes.early_axis if checkpoint == "early" else study.sizes.axis, "--norm", "minmax" if checkpoint == "early" else "minmax,centered", "--site", gated,
                "--limit", str(study.sizes.selection), "--rest_limit", "0", "--device", "cpu",
                "--batch_size", str(study.sizes.batch),
            )  # fmt: skip
            makes, copies = (f"{name}.npz", f"{name}.sweep"), (f"{source}.npz", f"{name}.npz")
            yield Step(name, "truthgate", words, makes, (source,), copies)


def _evaluations(study: Study, checkpoint: str) -> Iterator[Step]:
    """The evaluations of all gates of a checkpoint, in a few processes that each load the model once."""
    sizes = tuple(str(n) for n in (study.sizes.selection, study.num_test(checkpoint), study.sizes.batch))
    names = [*runs(study, checkpoint), *random_runs(study, checkpoint)]
    for process in range(EVALUATION_PROCESSES):
        own = names[process::EVALUATION_PROCESSES]
        words = (checkpoint, study.checkpoints[checkpoint], *sizes, *own)
        makes = tuple(str(folder_of(checkpoint, name)) for name in own)
        needs = tuple(step.name for step in _sweeps(study, checkpoint))
        yield Step(f"judge-{checkpoint}-{process + 1}", "results_evaluate.py", words, makes, needs)


def _correlated() -> Iterator[Step]:
    for site in SITES:
        name = f"matrix-{site}"
        members = [f"{one.removesuffix(f'-{site}')}={one}.npz" for one in artifacts(site)]
        words = ("correlate", *members, "--json", f"{name}.json", "--plot", f"{name}.png")
        yield Step(name, "truthgate", words, (f"{name}.json", f"{name}.png"), tuple(artifacts(site)))


def _compared(study: Study, checkpoint: str) -> Step:
    folders = {name: str(folder_of(checkpoint, name)) for name in runs(study, checkpoint)}
    given = [folder if name == "vanilla" else f"{name}={folder}" for name, folder in folders.items()]
    name = f"compare-{checkpoint}"
    words = ("compare", *given, "--published", "none", "--json", f"{name}.json", "--markdown", f"{name}.md")
    needs = tuple(f"judge-{checkpoint}-{process + 1}" for process in range(EVALUATION_PROCESSES))
    return Step(name, "truthgate", words, (f"{name}.json", f"{name}.md"), needs)


def folder_of(checkpoint: str, run: str) -> Path:
    """The folder of an evaluated run, relative to the study's."""
    return Path(f"judged-{checkpoint}", "rest", run)
