"""The steps of the study, in stages; the steps of one stage do not depend on each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA, SCENES_LLAVA_EARLY
from truthgate_eval.packaged.smollm2 import SMOLLM2

SITES = ("post", "pre")
TEXT_CONTROLS = ("surface", "no-context", "swapped-context", "shuffled-labels")
# What a black image does to scores is probed as a task of its own.
IMAGE_CONTROLS = ("surface", "shuffled-labels")
# Each model by the name that this study has for it.
MODELS = {
    "base": SMOLLM2, "child": SCENES_LLAVA, "early": SCENES_LLAVA_EARLY, "easy": "smollm2-135m-easy-vqa",
    "easy-early": "smollm2-135m-easy-vqa-early", "text": "smollm2-135m-halueval",
    "random": "material/random_base", "permuted": "material/permuted_child",
}  # fmt: skip
# What is probed: a model, and the task.
PROBED = {
    "base-halueval": ("base", "halueval"),
    "base-scenes-text": ("base", "scenes-text"),
    "child-halueval": ("child", "halueval"),
    "child-scenes-text": ("child", "scenes-text"),
    "child-scenes": ("child", "scenes"),
    "child-black": ("child", "scenes-black"),
    "early-scenes": ("early", "scenes"),
    "easy-halueval": ("easy", "halueval"),
    "easy-easy-vqa": ("easy", "easy-vqa"),
    "easy-black": ("easy", "easy-vqa-black"),
    "easy-early-easy-vqa": ("easy-early", "easy-vqa"),
    "text-halueval": ("text", "halueval"),
}
TASKS = {
    "halueval": "probe_halueval_qa", "scenes-text": "probe_scenes_text", "scenes": "probe_scenes",
    "scenes-black": "probe_scenes", "easy-vqa": "probe_easy_vqa", "easy-vqa-black": "probe_easy_vqa",
}  # fmt: skip
TEXT_TASKS = ("halueval", "scenes-text")
TEXT_MODELS = ("base", "text", "random")
# Whose scores are compared with every control.
CONTROLLED = ("base-halueval", "base-scenes-text", "child-scenes", "easy-easy-vqa", "text-halueval")
FLOORS = {
    "random-halueval": ("random", "halueval"),
    "random-scenes-text": ("random", "scenes-text"),
    "permuted-halueval": ("permuted", "halueval"),
    "permuted-scenes": ("permuted", "scenes"),
}


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    Attributes:
        halueval: Probed documents of HaluEval-QA, two sequences each.
        polls: The same of the polls about images, or about their captions.
    """

    halueval: int = 150
    polls: int = 200

    def of(self, task: str) -> int:
        """Number of probed documents of a task."""
        return self.halueval if task == "halueval" else self.polls


FULL, QUICK = Sizes(), Sizes(halueval=20, polls=20)


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Unique.
        program: `truthgate`, or a script beside this file.
        words: Its arguments; paths are relative to the study's folder.
        makes: What it writes.
        needs: Names of the steps whose products it reads.
        data: The data folder, where it is one of the study's own.
    """

    name: str
    program: str
    words: tuple[str, ...]
    makes: tuple[str, ...]
    needs: tuple[str, ...] = ()
    data: str | None = None


def stages(sizes: Sizes) -> list[list[Step]]:
    """All steps, in the order in which they are run."""
    material = Step(
        "material", "results_material.py", ("material", MODELS["base"], MODELS["child"]), ("material",)
    )
    probes = list(_probes(sizes))
    # These leave out the documents of HaluEval that the first half probed.
    later = [step for step in probes if set(step.needs) - {"material"}]
    return [
        [material],
        [step for step in probes if step not in later],
        later,
        list(_correlated()),
    ]


def artifacts(site: str) -> list[str]:
    """Names of all artifacts of the inheritance matrix at a site, without `.npz`."""
    return [
        *(f"{name}-{half}-{site}" for name in PROBED for half in "ab"),
        *(f"{name}-a-{site}" for name in FLOORS),
    ]


def _probes(sizes: Sizes) -> Iterator[Step]:
    for site in SITES:
        for name, (model, task) in PROBED.items():
            for half in "ab":
                yield _probe(sizes, f"{name}-{half}-{site}", model, task, half, site)
        for name, (model, task) in FLOORS.items():
            yield _probe(sizes, f"{name}-a-{site}", model, task, "a", site)


def _probe(sizes: Sizes, name: str, model: str, task: str, half: str, site: str) -> Step:
    takes_images = model not in TEXT_MODELS
    words = ["probe", "--model", "vlm" if takes_images else "hf"]
    words += ["--model_args", f"pretrained={MODELS[model]},dtype=bfloat16", "--tasks", TASKS[task]]
    if task in TEXT_TASKS and takes_images:
        words += ["--image", "none"]
    elif task.endswith("-black"):
        words += ["--image", "black"]
    first = f"base-halueval-a-{site}"
    needs = ["material"] if task != "halueval" or model in ("random", "permuted") else []
    if task == "halueval" and half == "b":  # documents that the first half did not probe
        words += ["--metadata", json.dumps({"exclude_rows_of": f"{first}.npz"})]
        needs.append(first)
    if half == "a":
        # Shuffled labels cost no pass through the model; the other controls do, and run once for each model and task.
        full = site == "pre" and name.split("-a-")[0] in CONTROLLED
        known = TEXT_CONTROLS if task in TEXT_TASKS else IMAGE_CONTROLS
        for control in known if full else ("shuffled-labels",):
            words += ["--control", control]
    words += ["--site", site, "--seed", "42" if half == "a" else "43"]
    words += ["--limit", str(sizes.of(task)), "--device", "cpu", "--output", f"{name}.npz"]
    data = None if task == "halueval" else f"material/data_{half}"
    return Step(name, "truthgate", tuple(words), (f"{name}.npz",), tuple(needs), data=data)


def _correlated() -> Iterator[Step]:
    for site in SITES:
        name = f"matrix-{site}"
        members = [f"{one.removesuffix(f'-{site}')}={one}.npz" for one in artifacts(site)]
        words = ("correlate", *members, "--json", f"{name}.json", "--plot", f"{name}.png")
        yield Step(name, "truthgate", words, (f"{name}.json", f"{name}.png"), tuple(artifacts(site)))
