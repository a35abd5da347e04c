"""What commands share: the console, lines that can be copied, and progress bars on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()


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
