"""The folder that an export writes, and the model card in it."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from truthgate_eval import __version__
from truthgate_eval.errors import DataError, TruthGateError
from truthgate_eval.export.local_paths import without_folders
from truthgate_eval.files import read_json, replace_folder
from truthgate_eval.gating.ia3_adapter import is_adapter

CARD = "README.md"
_PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy")


@contextmanager
def new_folder(folder: Path, *, overwrite: bool, source: Path | None = None) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends without an error.

    Args:
        folder: Must not exist, or be empty.
        overwrite: It may also be an earlier export or another model, which is replaced.
        source: The model's own folder, which is never replaced.

    Raises:
        TruthGateError: The folder is in use, or cannot be written.
    """
    check_output_folder(folder, overwrite=overwrite, source=source)
    try:
        with replace_folder(folder.resolve()) as partial:  # a link stays, and what it leads to is replaced
            yield partial
    except OSError as error:
        raise TruthGateError(f"{folder} cannot be written: {error.strerror or error}") from error


def check_output_folder(folder: Path, *, overwrite: bool, source: Path | None = None) -> None:
    """Raise `TruthGateError` unless an export may be written to `folder`; see `new_folder`."""
    if folder.exists() and not folder.is_dir():
        raise TruthGateError(f"{folder} is a file, expected a folder to write")
    inside = folder.resolve()
    if source is not None and inside in (source.resolve(), *source.resolve().parents):
        raise TruthGateError(f"{folder} is the folder of the model itself: choose another --output")
    if inside in (Path.cwd(), *Path.cwd().parents) or os.path.ismount(inside):
        raise TruthGateError(
            f"{folder} cannot be replaced as a whole, since the command runs in it or it is a mount point: "
            "choose a folder in it as --output"
        )
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise TruthGateError(
            f"{folder} is not empty: choose another --output, or replace it with --overwrite"
        )
    if not is_adapter(folder) and not _is_model(folder):
        raise TruthGateError(f"{folder} holds neither a model nor an adapter, so --overwrite leaves it alone")


def _is_model(folder: Path) -> bool:
    """Whether a folder has a model's `config.json`; other programs have files of that name, too."""
    path = folder / "config.json"
    try:
        config = read_json(path) if path.is_file() else None
    except DataError:
        return False
    return isinstance(config, dict) and "model_type" in config


def provenance(model: str, revision: str | None, gate: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """What an export records of itself.

    Of what is in a folder of this machine it has the name without the folder, since exports are passed on.

    Args:
        model: The model's name as the user gave it.
        revision: Its commit on the hub, if it is from there.
        gate: `GateConfig.describe()`, which has the scores' SHA-256.
        task: What the scores were measured on.
    """
    gate = {**gate, "scores": without_folders(str(gate["scores"]))}
    if isinstance(probed := gate.get("probed"), dict) and isinstance(probed.get("model"), str):
        gate["probed"] = {**probed, "model": without_folders(probed["model"])}
    return {
        "model": without_folders(model),
        "revision": revision,
        "gate": gate,
        "task": task,
        "versions": {
            "truthgate_eval": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def front_matter(base_models: Sequence[str], library: str) -> str:
    """The YAML that a hub reads at the beginning of a model card.

    Args:
        base_models: Hub ids of the models that are gated.
        library: The hub's word for what loads it.
    """
    base = base_models[0] if len(base_models) == 1 else list(base_models)
    front = {
        **({"base_model": base} if base_models else {}),
        "library_name": library,
        "tags": ["truthgate", "attention-heads"],
    }
    return "---\n" + "".join(f"{name}: {json.dumps(value)}\n" for name, value in front.items()) + "---\n\n"


def write_card(
    folder: Path, title: str, use: str, record: Mapping[str, Any], *, library: str, base_model: str | None
) -> None:
    """Write the model card.

    Args:
        folder: The export's folder.
        title: What it holds.
        use: How it is used, in Markdown.
        record: `provenance`.
        library: The hub's word for what loads it: `peft` or `transformers`.
        base_model: The model's hub id, if it has one; the hub takes no other name.
    """
    model, gate = str(record["model"]), record["gate"]
    settings = ", ".join(
        f"{name}={gate[name]}"
        for name in (
            "scores",
            "action",
            "lam",
            "norm",
            "site",
            "layers",
            "top",
            "bottom",
            "in",
            "out",
            "alpha",
        )
        if gate.get(name) is not None
    )
    text = front_matter([] if base_model is None else [base_model], library)
    text += f"# {title}\n\nThe attention heads of `{model}` under a gate of `truthgate_eval`: {settings}.\n"
    text += f"\n## Use\n\n{use}\n\n## Provenance\n\n```json\n{json.dumps(record, indent=2)}\n```\n"
    (folder / CARD).write_text(text, encoding="utf-8")
