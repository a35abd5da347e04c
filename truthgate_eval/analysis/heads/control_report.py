"""What the controls of an artifact say about its scores.

A control explains a head's score where the head's accuracy is not above the control's by two standard
errors of their difference, which is measured on the same answers. It explains the artifact's scores
where it explains most heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from truthgate_eval.gating.scores import TruthScores

_STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class ControlVerdict:
    """One control, compared with the accuracies that it is a control of.

    Attributes:
        name: The control's name.
        accuracy: Mean accuracy of the heads under the control.
        best: Accuracy of the best head under the control.
        own: Mean accuracy of the heads without the control.
        above: Number of heads that are above the control by two standard errors.
        heads: Number of heads.
    """

    name: str
    accuracy: float
    best: float
    own: float
    above: int
    heads: int

    @property
    def explains(self) -> bool:
        """Whether most heads are no better than the control."""
        return self.above * 2 < self.heads

    @property
    def sentence(self) -> str:
        """The verdict for a reader, one sentence."""
        return (
            f"{self.name} explains the scores: {self.heads - self.above} of {self.heads} heads are not above "
            f"it by two standard errors (mean accuracy {self.own:.3f}, of the control {self.accuracy:.3f})"
        )


def control_verdicts(scores: TruthScores) -> list[ControlVerdict]:
    """One verdict for each control that the artifact holds."""
    own = scores.scores if scores.accuracy is None else scores.accuracy
    found = []
    for name, control in scores.controls.items():
        margin = _STANDARD_ERRORS * scores.control_stderr[name]
        above = int((own - control > margin).sum())
        found.append(
            ControlVerdict(
                name, float(control.mean()), float(control.max()), float(own.mean()), above, own.size
            )
        )
    return found


def print_controls(scores: TruthScores, console: Console) -> None:
    """Print a table of the controls, if any, and a warning for each that explains the scores."""
    found = control_verdicts(scores)
    if not found:
        return
    table = Table(title="Controls", title_justify="left")
    for column in ("control", "mean accuracy", "best", "heads above it"):
        table.add_column(column, justify="left" if column == "control" else "right")
    own = scores.scores if scores.accuracy is None else scores.accuracy
    table.add_row("none", f"{own.mean():.3f}", f"{own.max():.3f}", "")
    for verdict in found:
        share = f"{verdict.above} of {verdict.heads}"
        table.add_row(verdict.name, f"{verdict.accuracy:.3f}", f"{verdict.best:.3f}", share)
    console.print(table)
    for verdict in found:
        if verdict.explains:
            console.print(f"warning: {verdict.sentence}", soft_wrap=True, highlight=False, markup=False)
