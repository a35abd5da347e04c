"""List public names, modules and headings that still use a word which docs/glossary.md replaces.

    python scripts/old_vocabulary.py [--all]

Every name is split into its words (`SharedPrefixModel` is shared, prefix, model). A word of `REPLACED` is
reported with its name and place, and the exit status is 1, unless `KEPT` says why the word stays. `--all`
prints the kept ones too, each with its reason.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ("truthgate_eval", "training", "benchmarks", "studies", "scripts", "tests")

# The old word and the term that took its place.
REPLACED = {
    "trunk": "shared prefix", "trunks": "shared prefixes", "branch": "suffix", "branches": "suffixes",
    "lane": "batch row", "lanes": "batch rows", "keystore": "SharedPrefixCache", "behind": "fork, after",
    "spread": "unpack", "plainly": "reference", "drawn": "test prompt", "asked": "prompts, requests",
    "shown": "image count, input key", "seen": "image features", "anatomy": "attention layout",
    "host": "harness", "hosts": "harnesses", "picture": "image", "pictures": "images", "peer": "baseline",
    "lesson": "training example", "lessons": "training examples", "course": "training config",
    "exam": "eval set", "exams": "eval sets", "deals": "shuffles",
    "roles": "methods", "boards": "task groups", "facts": "environment",
    "doubts": "warnings", "bench": "evaluator", "outcome": "eval result",
    "below": "lower layers", "judging": "evaluating", "judged": "evaluated", "refuse": "exit with error",
    "halves": "bisect", "annotated": "annotated image", "answered": "probe example", "assets": "smollm2",
    "child": "scenes_llava", "several": "multi image", "takes": "supports", "repeats": "repeated CV",
}  # fmt: skip

# (pattern of the qualified name, word, why it stays). A pattern is matched with `re.search`.
_SENTENCE = r"\.test_\w+$"
KEPT: list[tuple[str, str, str]] = [
    *(
        (_SENTENCE, word, "a test name is an English sentence, and the word has its everyday meaning there")
        for word in ("takes", "asked", "drawn", "several", "spread", "halves", "answered", "shown", "below")
    ),
    (r"^(tests|studies)\.", "child", "the method's own word: the multimodal model fine-tuned from a base"),
    (r"^studies\.results_material\.HALVES$", "halves", "two halves of one data set, nothing is bisected"),
    (r"AnnotatedImage$|data\.annotations", "annotated", "part of the new term"),
    (r"takes_content_parts$", "takes", "a template takes a list of content parts, or a string"),
]


def words(name: str) -> list[str]:
    """The words of an identifier or a heading, in lower case."""
    parts = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return re.findall(r"[a-z]+", parts.lower())


def names_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, qualified name) of every public class, function, parameter, attribute and constant of a file."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    yield 1, module

    def visit(body: list[ast.stmt], scope: str) -> Iterator[tuple[int, str]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if node.name.startswith("_"):
                    continue
                own = f"{scope}.{node.name}"
                yield node.lineno, own
                if isinstance(node, ast.ClassDef):
                    yield from visit(node.body, own)
                else:
                    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    yield from ((one.lineno, f"{own}({one.arg})") for one in arguments)
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name) and not target.id.startswith("_"):
                        yield node.lineno, f"{scope}.{target.id}"

    yield from visit(ast.parse(path.read_text(encoding="utf-8")).body, module)


def headings_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, heading) of a Markdown page; lines inside code blocks are none."""
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        inside ^= line.startswith("```")
        if not inside and line.startswith("#"):
            yield number, line.lstrip("#").strip()


def leftovers() -> Iterator[tuple[str, str, str | None]]:
    """(place and name, old word, why it is kept or None) of everything that uses a replaced word."""
    python = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]
    pages = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
    found = [(path, *entry) for path in python for entry in names_of(path)]
    found += [(path, *entry) for path in pages for entry in headings_of(path)]
    for path, line, name in found:
        # Of a parameter or attribute, its own last part counts: its owner is reported by itself.
        own = re.split(r"[.(]", name.rstrip(")"))[-1] if path.suffix == ".py" else name
        for word in sorted(set(words(own)) & set(REPLACED)):
            why = next(
                (why for pattern, kept, why in KEPT if kept == word and re.search(pattern, name)), None
            )
            yield f"{path.relative_to(ROOT)}:{line}: {name}", word, why


def main() -> int:
    """Print what is left; 1 if something is left without a reason."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--all", action="store_true", help="print the kept names too, with their reasons")
    show_all = parser.parse_args().all
    unexplained = 0
    for place, word, why in leftovers():
        if why is None:
            unexplained += 1
            print(f"{place}: {word} -> {REPLACED[word]}")
        elif show_all:
            print(f"{place}: {word} stays: {why}")
    print(f"{unexplained} names without a reason")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
