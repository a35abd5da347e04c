"""What commands share: the console, logging, lines that can be copied, progress bars, the end on a signal."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from truthgate_eval.escaping import terminal_text
from truthgate_eval.harness.quiet import log_to_stderr, quiet
from truthgate_eval.processes import launched


class PlainConsole(Console):
    """A console that takes no text for its own: not for rich's markup, and not for control characters."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed, with control characters written out."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else terminal_text(text), style, control)


console = PlainConsole(markup=False)


def set_up_logging(context: typer.Context, *, verbose: bool) -> None:
    """Send logs and Python's warnings to stderr, one line each, for as long as a command runs.

    Args:
        context: The command's; when it closes, logging is as it was.
        verbose: Print everything from level INFO, other libraries' messages and progress bars included.
            Otherwise warnings and errors, without those that `truthgate_eval.harness.quiet` names.
    """
    # Of several processes the first one speaks.
    console.quiet = not launched().is_main
    level = logging.ERROR if console.quiet else logging.INFO if verbose else logging.WARNING
    context.with_resource(_logging_to_stderr(level))
    if verbose:
        log_to_stderr()
    else:
        context.with_resource(quiet())


class _VisibleFormatter(logging.Formatter):
    """Messages quote names out of files: control characters in them are written out."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return terminal_text(super().format(record))


@contextmanager
def _logging_to_stderr(level: int) -> Iterator[None]:
    root, handler = logging.getLogger(), logging.StreamHandler()
    handler.setFormatter(_VisibleFormatter("%(levelname)s: %(message)s"))
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


@contextmanager
def exit_on_termination() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does: what is half written is removed. The exit status is 143."""
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def print_line(line: str) -> None:
    """Print one line as it is: never wrapped, so that a path in it can be copied."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def progress_bar() -> Progress:
    """A progress bar on stderr, so that stdout stays clean for pipes."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=PlainConsole(stderr=True, markup=False),
        disable=not launched().is_main,
    )
