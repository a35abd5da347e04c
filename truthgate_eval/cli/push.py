"""`truthgate push`: an artifact or an exported adapter, on a model hub for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from truthgate_eval.cli.console import print_line
from truthgate_eval.escaping import terminal_text


def push(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="An .npz artifact, or an exported adapter's folder.")
    ],
    repo: Annotated[str, typer.Argument(help="OWNER/REPO; it is made if it does not exist.")],
    revision: Annotated[
        str | None, typer.Option(help="The branch to push to; it is made if it does not exist.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    path_in_repo: Annotated[
        str | None,
        typer.Option("--path-in-repo", help="Default: an artifact's own name; an adapter is the repository."),
    ] = None,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    overwrite_card: Annotated[
        bool, typer.Option("--overwrite-card", help="Replace a README.md that this command did not write.")
    ] = False,
) -> None:
    """Upload an artifact or an adapter with a card, and print the address that others use it by.

    The token is the one of `hf auth login`, or HF_TOKEN.
    """
    from truthgate_eval.export import hub_upload

    upload = hub_upload.prepare_upload(source, path_in_repo)
    pushed = hub_upload.push(
        upload,
        repo,
        revision=revision,
        private=private,
        message=message,
        overwrite_card=overwrite_card,
    )
    what = "scores" if upload.modality is None else "a gate"
    print_line(f"{what} of {terminal_text(upload.scores.model)}, sha256 {upload.sha256} -> {pushed.address}")
    if upload.is_shortened:
        print_line(
            "note: paths of this machine in its metadata were cut to their last names, credentials masked"
        )
    if not pushed.has_card:
        print_line(f"note: README.md of {repo} is somebody else's and stays: --overwrite-card replaces it")
