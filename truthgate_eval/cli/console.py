"""What commands share: the console, logging, lines that can be copied, and progress bars on stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from truthgate_eval.harness.quiet import log_to_stderr, quiet

console = Console()


def set_up_logging(context: typer.Context, *, verbose: bool) -> None:
    """Send logs and Python's warnings to stderr, one line each, for as long as a command runs.

    Args:
        context: The command's; when it closes, logging is as it was.
        verbose: Print everything from level INFO, other libraries' messages and progress bars included.
            Otherwise warnings and errors, without those that `truthgate_eval.harness.quiet` names.
    """
    context.with_resource(_logging_to_stderr(logging.INFO if verbose else logging.WARNING))
    if verbose:
        log_to_stderr()
    else:
        context.with_resource(quiet())


@contextmanager
def _logging_to_stderr(level: int) -> Iterator[None]:
    root, handler = logging.getLogger(), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(before)
        root.removeHandler(handler)


def print_line(line: str) -> None:
    """Print one line as it is: never wrapped, so that a path in it can be copied."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def progress_bar() -> Progress:
    """A progress bar on stderr, so that stdout stays clean for pipes."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
