"""Every page, heading and name that the code and the pages refer to exists."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import markdown
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "truthgate_eval"
FOLDERS = (
    "benchmarks", "docs", "packaged_weights", "score_artifacts", "scripts", "startup", "studies", "tasks",
    "tests", "training", "truthgate_eval",
)  # fmt: skip
SUFFIXES = {".py", ".yaml", ".yml", ".md", ".toml"}
CITATION = re.compile(r"docs/([\w-]+\.md)(?:#([\w-]+))?")
# Pages that were never in the repository, and issues of a tracker that a reader cannot see. An upstream issue
# is cited with its project and "#".
UNREACHABLE = re.compile(r"\b(?:METHOD|HOSTS|SPEED|ARCHITECTURE|STYLE)\.md|\b[Ii]ssue \d+")
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]+))?\)")
DOTTED = re.compile(r"`(?:truthgate_eval\.)?([a-z_]+(?:\.\w+)+)(?:\(\))?`")
SLASHED = re.compile(r"`((?:[a-z_]+/)+[a-z_]*(?:\.py)?)`")
SUBPACKAGES = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def files() -> list[Path]:
    """The repository's text files that a person writes."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += (ROOT / folder).rglob("*")
    own = Path(__file__).resolve()  # whose last test cites what does not exist
    return sorted(path for path in found if path.suffix in SUFFIXES and path != own)


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of a file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        yield f"{where}:{number}", line


@functools.cache
def headings(page: Path) -> frozenset[str]:
    """The anchors that mkdocs gives a page's headings."""
    parser = markdown.Markdown(extensions=["toc", "tables", "pymdownx.superfences"])
    parser.convert(page.read_text(encoding="utf-8"))

    def ids(tokens: list[dict[str, object]]) -> Iterator[str]:
        for token in tokens:
            yield str(token["id"])
            yield from ids(token["children"])  # type: ignore[arg-type]

    return frozenset(ids(parser.toc_tokens))  # type: ignore[attr-defined]


def broken_citations(place: str, line: str) -> Iterator[str]:
    """What a line cites as `docs/page.md#heading` and is not there."""
    for page, heading in CITATION.findall(line):
        path = ROOT / "docs" / page
        if not path.is_file():
            yield f"{place}: there is no docs/{page}"
        elif heading and heading not in headings(path):
            yield f"{place}: docs/{page} has no heading {heading}"


def broken_links(page: Path) -> Iterator[str]:
    """A page's relative links that lead to no file or no heading; code is left out."""
    fence = False
    for place, line in lines(page):
        fence ^= line.lstrip().startswith("```")
        if fence:
            continue
        for target, heading in LINK.findall(re.sub(r"`[^`]*`", "", line)):
            path = (page.parent / target).resolve() if target else page
            if not path.exists():
                yield f"{place}: there is no {target}"
            elif heading and path.suffix == ".md" and heading not in headings(path):
                yield f"{place}: {path.name} has no heading {heading}"


@functools.cache
def names_in(module: Path) -> dict[str, ast.AST]:
    """A module's top-level names."""
    found: dict[str, ast.AST] = {}
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                found[target.id] = node
    return found


def is_member(node: ast.AST, name: str) -> bool:
    """Whether a class defines a method or an attribute of this name."""
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef) and part.name == name:
            return True
        target = getattr(part, "target", None) or next(iter(getattr(part, "targets", [])), None)
        if isinstance(target, ast.Name) and target.id == name:
            return True
        if isinstance(target, ast.Attribute) and target.attr == name:
            return True
    return False


def exists(dotted: str) -> bool:
    """Whether `folder.module.name` or `folder.module.Class.member` stands in the package."""
    path, rest = PACKAGE, dotted.split(".")
    while rest and (path / rest[0]).is_dir():
        path = path / rest.pop(0)
    if not rest:
        return True
    module = path / f"{rest[0]}.py"
    if not module.is_file():
        return False
    names = names_in(module)
    if len(rest) == 1:
        return True
    return rest[1] in names and (len(rest) == 2 or (len(rest) == 3 and is_member(names[rest[1]], rest[2])))


def unknown_names(page: Path) -> Iterator[str]:
    """Modules and names of the package that a page names in backticks and that do not exist."""
    for place, line in lines(page):
        for dotted in DOTTED.findall(line):
            file_name = dotted.endswith((".json", ".jsonl", ".md", ".npz", ".yaml"))
            if dotted.split(".")[0] in SUBPACKAGES and not file_name and not exists(dotted):
                yield f"{place}: there is no truthgate_eval.{dotted}"
        for slashed in SLASHED.findall(line):
            first = slashed.split("/")[0]
            path = (PACKAGE if first in SUBPACKAGES else ROOT) / slashed
            known = path.exists() or path.with_suffix(".py").exists()
            if (first in SUBPACKAGES or first in FOLDERS) and not known:
                yield f"{place}: there is no {slashed}"


PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted([*ROOT.glob("packaged_weights/*/*.md"), *ROOT.glob("score_artifacts/*.md")])


def test_every_cited_page_and_heading_exists() -> None:
    broken = [text for path in files() for place in lines(path) for text in broken_citations(*place)]
    assert not broken, "\n".join(broken)


def test_nothing_is_cited_that_a_reader_of_the_repository_cannot_open() -> None:
    cited = [
        f"{place}: {line.strip()}"
        for path in files()
        for place, line in lines(path)
        if UNREACHABLE.search(line)
    ]
    assert not cited, "\n".join(cited)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    broken = list(broken_links(page))
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_functions_that_a_page_names_exist(page: Path) -> None:
    unknown = list(unknown_names(page))
    assert not unknown, "\n".join(unknown)


def test_the_design_page_lists_every_module_in_its_folder() -> None:
    listed: dict[str, set[str]] = {}
    folder = ""
    table = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("## Decisions")[0]
    for cells in re.findall(r"^\| (.*?) ?\| (`.*?) \|", table, flags=re.MULTILINE):
        folder = cells[0].strip("`/") or folder
        listed.setdefault(folder, set()).update(re.findall(r"`(\w+)`", cells[1]))
    there: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if not path.stem.startswith("__"):
            name = path.parent.relative_to(PACKAGE).as_posix()
            there.setdefault("beside them" if name == "." else name, set()).add(path.stem)
    assert listed == there


def test_broken_references_are_found(tmp_path: Path) -> None:
    """The checks above on lines of which each is known to be right or wrong."""
    assert not list(broken_citations("x", "see docs/method.md#truth-scores and docs/cli.md"))
    assert list(broken_citations("x", "see docs/method.md#no-such-heading and docs/nowhere.md")) == [
        "x: docs/method.md has no heading no-such-heading", "x: there is no docs/nowhere.md",
    ]  # fmt: skip
    for text in ("SPEED.md, part 2", "issue 14", "Issue 3"):
        assert UNREACHABLE.search(text)
    assert not UNREACHABLE.search("lm-eval issue #4063")
    assert exists("gating.gate.make_gate") and exists("gating.gate.GateHandle.remove") and exists("gating")
    assert not exists("gating.gate.normalise") and not exists("gating.gate.GateHandle.nothing")
    page = tmp_path / "page.md"
    page.write_text(
        "# One\n\n[a](#one) [b](#two) [c](missing.md) [d](https://x.y/z.md)\n`[e](missing.md)` `gating.nothing`\n"
    )
    assert [text.split(": ")[1] for text in broken_links(page)] == [
        "page.md has no heading two", "there is no missing.md",
    ]  # fmt: skip
    assert [text.split(": ")[1] for text in unknown_names(page)] == [
        "there is no truthgate_eval.gating.nothing"
    ]
