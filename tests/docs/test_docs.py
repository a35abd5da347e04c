"""Every command in the README and the docs has options, models and tasks that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from truthgate_eval.cli import main as cli
from truthgate_eval.gating.gate_arguments import GATE_ARGUMENTS
from truthgate_eval.harness.lm_eval.patches import MODELS as LM_EVAL_MODELS
from truthgate_eval.harness.lmms_eval.registry import MODELS as LMMS_EVAL_MODELS
from truthgate_eval.harness.lmms_eval.registry import VLLM_MODEL
from truthgate_eval.paths import shipped
from truthgate_eval.vision.loading import LOAD_ARGUMENTS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every line after a $ in a console block; a backslash continues a line."""
    for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("$ "):
                for part in line.strip()[2:].split(" && "):
                    yield shlex.split(part, comments=True)


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_truthgate_commands_have_options_that_exist(page: Path) -> None:
    program: Any = typer.main.get_command(cli.app)
    for words in commands(page):
        while words and "=" in words[0]:  # environment variables
            words = words[1:]
        if words[:1] != ["truthgate"]:
            continue
        command, arguments = program, words[1:]
        while hasattr(command, "commands"):
            assert arguments and arguments[0] in command.commands, f"no command {' '.join(words)}"
            command, arguments = command.commands[arguments[0]], arguments[1:]
        command.make_context(words[1], list(arguments))  # raises on what it does not know


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_harness_commands_name_models_tasks_and_arguments_that_exist(page: Path) -> None:
    tasks = {path.stem for path in (shipped("tasks")).glob("*/*.yaml")} | {"pope", "truthfulqa_mc1"}
    for words in commands(page):
        while words and "=" in words[0]:
            words = words[1:]
        if words[:1] not in (["lm_eval"], ["lmms_eval"]):
            continue
        model, lmms = option(words, "--model"), words[0] == "lmms_eval"
        if model is not None:
            of_lmms, of_lm = {*LMMS_EVAL_MODELS, VLLM_MODEL}, {*LM_EVAL_MODELS, "hf", "vllm"}
            assert model in (of_lmms if lmms else of_lm), words
        for task in (option(words, "--tasks") or "").split(","):
            assert task in tasks or task == "", words
        arguments = [pair.split("=")[0] for pair in (option(words, "--model_args") or "").split(",") if pair]
        if lmms and model in LMMS_EVAL_MODELS:
            assert set(arguments) <= {*LOAD_ARGUMENTS, *GATE_ARGUMENTS, "batch_size"}, words


def test_flags_in_the_reference_of_a_command_exist() -> None:
    program: Any = typer.main.get_command(cli.app)
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## truthgate (\w+)\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    assert {name for name, _ in sections} == {
        "probe", "study", "sweep", "correlate", "compare", "report", "export", "push",
    }  # fmt: skip
    for name, section in sections:
        known = {flag for parameter in program.commands[name].params for flag in parameter.opts}
        for cell in re.findall(r"^\| ((?:`--[\w-]+`(?:, )?)+) \|", section, flags=re.MULTILINE):
            assert set(re.findall(r"--[\w-]+", cell)) <= known, (name, cell)


def test_the_docs_have_commands_at_all() -> None:
    assert sum(1 for page in PAGES for _ in commands(page)) > 60
