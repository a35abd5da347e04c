"""Make docs/sample-size.md's figures: truth scores and their reliability against the number of documents.

    python studies/make_learning_curves.py

captures the activations of each model once, and fits the probes of the first n documents of a random order,
in about 20 minutes on one core. Rows that docs/sample-size.json has already are not fitted again. The page's
tables stand between two comments, and are replaced. To try it with few documents:

    python studies/make_learning_curves.py --documents 60 --sizes 20 40 --docs FOLDER
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from learning_curves import FEATURES, SOLVERS, Captured, Row, fit, projected, random_places
from learning_curves_page import draw, tables
from make_controls import machine

from truthgate_eval.files import write_atomic
from truthgate_eval.gating.attention_layout import AttentionLayout, find_attention_layout
from truthgate_eval.probing.activations import allocate_activations
from truthgate_eval.probing.capture import capture
from truthgate_eval.probing.dataset import ProbeDataset
from truthgate_eval.probing.image_capture import capture_with_images

log = logging.getLogger("learning_curves")

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- studies/make_learning_curves.py writes from here -->\n", "<!-- to here -->\n"
PACKAGES = ("truthgate_eval", "torch", "transformers", "lm_eval", "lmms_eval")
SEED = 0
# What identifies a row; `part` is `first` for a point of the curve, `last` for the disjoint documents.
KEY = ("source", "site", "features", "solver", "part", "documents")


@dataclass(frozen=True)
class Source:
    """A model and its task.

    Attributes:
        title: Of its table.
        load: From a number of documents to their activations at site `pre`, and the model's layout.
        documents: How many are captured.
        sizes: The curve's numbers of documents.
        last: How many of the last ones are fitted by themselves, to compare the first ones' scores with.
    """

    title: str
    load: Callable[[int], tuple[Captured, AttentionLayout]]
    documents: int
    sizes: tuple[int, ...]
    last: int

    def tasks(self, name: str) -> Iterator[Row]:
        """The `KEY` of each row.

        At site `post` one size is fitted, the largest that shares no document with the last ones.
        """
        disjoint = [size for size in self.sizes if size <= self.documents - self.last]
        for site, sizes in (("pre", self.sizes), ("post", disjoint[-1:])):
            parts = [("first", size) for size in sizes] + [("last", self.last)]
            for part, documents in parts:
                for features in FEATURES:
                    for solver in SOLVERS:
                        values = (name, site, features, solver, part, documents)
                        yield dict(zip(KEY, values, strict=True))


def load_halueval(documents: int) -> tuple[Captured, AttentionLayout]:
    """SmolLM2-135M-Instruct on `probe_halueval_qa`."""
    from truthgate_eval.harness.lm_eval.probing import load_dataset, load_lm, tokenize

    lm = load_lm("hf", {}, batch_size=8, device="cpu")
    dataset = load_dataset(["probe_halueval_qa"], limit=documents, lm=lm)
    layout = find_attention_layout(lm.model)
    found = capture(
        lm.model, tokenize(lm, dataset).tokens, site="pre", layout=layout, progress=_progress(len(dataset)),
        allocate=allocate_activations,
    )  # fmt: skip
    return _captured(found, dataset), layout


def load_scenes(documents: int) -> tuple[Captured, AttentionLayout]:
    """The packaged child on `probe_scenes`, with the images and in its own format."""
    from truthgate_eval.harness.lmms_eval.probing import load_dataset, load_for_probing
    from truthgate_eval.harness.quiet import log_to_stderr

    log_to_stderr()
    dataset = load_dataset(["probe_scenes"], limit=documents)
    vlm = load_for_probing("vlm", {"pretrained": "smollm2-135m-scenes"}, device="cpu", chat=True)
    layout = find_attention_layout(vlm.model)
    found = capture_with_images(
        vlm, dataset, site="pre", layout=layout, progress=_progress(len(dataset)),
        allocate=allocate_activations,
    )  # fmt: skip
    return _captured(found, dataset), layout


# On one core, capturing takes 0.4 s a document of HaluEval-QA and 0.23 s one of the scenes, and fitting 1,000
# documents about 7 s: to save time, there are fewer documents of HaluEval-QA.
SOURCES = {
    "halueval": Source(
        "SmolLM2-135M-Instruct, `probe_halueval_qa`", load_halueval, 1000, (100, 200, 500, 1000), last=500
    ),
    "scenes": Source(
        "smollm2-135m-scenes, `probe_scenes` with its images",
        load_scenes, 2000, (100, 200, 500, 1000, 2000), last=1000,
    ),
}  # fmt: skip
TITLES = {name: source.title for name, source in SOURCES.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit what is missing, then write the tables and the figure."""
    options = _parser().parse_args(arguments)
    sources = {name: _resized(source, options) for name, source in SOURCES.items()}
    results = open_results(options.docs / "sample-size.json", settings(sources))
    for name, source in sources.items():
        measure(name, source, results, options.docs / "sample-size.json")
    write_page(results, options.docs)


def write_page(results: dict[str, Any], docs: Path) -> None:
    """The tables of the page in this folder, which gets one if it has none, and the figure."""
    if not (docs / "sample-size.md").is_file():
        shutil.copy(DOCS / "sample-size.md", docs)
    before, rest = (docs / "sample-size.md").read_text(encoding="utf-8").split(BEGIN)
    page = before + BEGIN + tables(results, TITLES) + END + rest.split(END)[1]
    write_atomic(docs / "sample-size.md", page.encode())
    draw(results, TITLES, docs / "images" / "sample-size.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, help="captured, in place of each model's own number")
    parser.add_argument("--sizes", type=int, nargs="+", help="the curve's numbers of documents")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where page, JSON and figure are written")
    return parser


def _resized(source: Source, options: argparse.Namespace) -> Source:
    """The source with the numbers of the command line, if there are any."""
    documents = options.documents or source.documents
    sizes = tuple(options.sizes or (size for size in source.sizes if size <= documents))
    if not all(5 <= size <= documents for size in sizes):
        sys.exit(f"--sizes {' '.join(map(str, sizes))}: expected 5 to {documents}, the number of documents")
    return replace(source, documents=documents, sizes=sizes, last=min(source.last, documents // 2))


def settings(sources: dict[str, Source]) -> dict[str, Any]:
    """What must be the same for a row to be kept."""
    return {
        "documents": {name: source.documents for name, source in sources.items()},
        "seed": SEED,
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def open_results(file: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """The rows of an earlier run with the same settings, or none."""
    if not file.is_file():
        return {"settings": expected, "rows": []}
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    different = [name for name, value in expected.items() if results["settings"].get(name) != value]
    if different:
        sys.exit(
            f"{file} was made with other {', '.join(different)}: delete it, or choose another folder with --docs"
        )
    return results


def measure(name: str, source: Source, results: dict[str, Any], file: Path) -> None:
    """Fit the rows of one source that are missing, and write the file after each."""
    done = {tuple(row[key] for key in KEY) for row in results["rows"]}
    missing = [task for task in source.tasks(name) if tuple(task.values()) not in done]
    if not missing:
        return
    captured, layout = source.load(source.documents)
    if captured.documents < source.documents:
        sys.exit(f"{name} has {captured.documents} documents, not {source.documents}")
    sites = {"pre": captured}
    for task in missing:
        if task["site"] not in sites:  # the sites of a source come one after the other
            sites = {"post": replace(captured, activations=projected(captured.activations, layout))}
        first = 0 if task["part"] == "first" else source.documents - task["documents"]
        part = sites[task["site"]].part(first, first + task["documents"])
        results["rows"].append({**task, **fit(part, features=task["features"], solver=task["solver"])})
        write_atomic(file, dump(results).encode())
        log.info("%s: %.1f s", " ".join(map(str, task.values())), results["rows"][-1]["seconds"])


def dump(results: dict[str, Any]) -> str:
    """JSON with one row a line."""
    rows = ",\n".join(json.dumps(row) for row in results["rows"])
    return f'{{"settings": {json.dumps(results["settings"])},\n"rows": [\n{rows}\n]}}\n'


def _captured(activations: Any, dataset: ProbeDataset) -> Captured:
    clusters = [
        next(known for known in (example.cluster, example.image_key, example.group) if known is not None)
        for example in dataset.examples
    ]
    places = random_places(dataset.groups.tolist(), clusters, seed=SEED)
    return Captured(activations, dataset.labels, places)


def _progress(total: int) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if 10 * done // total > 10 * before // total:
            log.info("%d of %d sequences captured", done, total)

    return advance


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
