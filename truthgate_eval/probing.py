"""One probing run: a model and sequences in, a score artifact out."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgate_eval import __version__
from truthgate_eval.anatomy import Anatomy, find_anatomy
from truthgate_eval.capture import capture
from truthgate_eval.probe import probe_heads
from truthgate_eval.scores import TruthScores
from truthgate_eval.sequences import Answers, ProbingSequences
from truthgate_eval.vlm import VisionLanguageModel
from truthgate_eval.vlm_capture import capture_pictured

Progress = Callable[[int], None]


def probe_model(
    model: Any,
    sequences: ProbingSequences,
    *,
    name: str,
    site: str = "post",
    solver: str = "adamw",
    folds: int = 5,
    split: str = "question",
    seed: int = 42,
    batch_size: int = 8,
    capture_progress: Progress | None = None,
    probe_progress: Progress | None = None,
) -> TruthScores:
    """Truth scores of every head of `model` (METHOD.md, "Truth scores").

    Args:
        model: A transformers model without a gate.
        sequences: What to probe it on.
        name: The model's id, for the record.
        site: Where activations are read, `post` or `pre`.
        solver: `adamw` (the paper's) or `newton` (to convergence).
        folds: 5 for the mean over five folds, 1 for one 4:1 split.
        split: `question` keeps a document's sequences on one side, `sequence` does not.
        seed: Chooses the folds.
        batch_size: Sequences to a forward pass.
        capture_progress: Called with the number of sequences that were run.
        probe_progress: Called with the number of heads that were fitted.
    """
    anatomy = find_anatomy(model)
    activations = capture(
        model,
        sequences.tokens,
        site=site,
        batch_size=batch_size,
        anatomy=anatomy,
        progress=capture_progress,
    )
    fit = {"solver": solver, "folds": folds, "split": split, "seed": seed, "progress": probe_progress}
    return _score(activations, sequences, fit, _describe(model, name, anatomy, site))


def probe_vlm(
    vlm: VisionLanguageModel,
    answers: Answers,
    *,
    site: str = "post",
    solver: str = "adamw",
    folds: int = 5,
    split: str = "question",
    seed: int = 42,
    batch_size: int = 8,
    capture_progress: Progress | None = None,
    probe_progress: Progress | None = None,
) -> TruthScores:
    """Truth scores of every head of a vision-language model's text decoder.

    Args:
        vlm: The model, without a gate; its chat format writes the sequences.
        answers: Each with its pictures (see `under_condition`).
        site: As in `probe_model`, and so are the others.
        solver: As there.
        folds: As there.
        split: As there.
        seed: As there.
        batch_size: As there.
        capture_progress: As there.
        probe_progress: As there.
    """
    anatomy = find_anatomy(vlm.model)
    activations = capture_pictured(
        vlm, answers, site=site, batch_size=batch_size, anatomy=anatomy, progress=capture_progress
    )
    fit = {"solver": solver, "folds": folds, "split": split, "seed": seed, "progress": probe_progress}
    return _score(activations, answers, fit, _describe(vlm.model, vlm.name, anatomy, site))


def _describe(model: Any, name: str, anatomy: Anatomy, site: str) -> dict[str, Any]:
    """What the artifact says of the model."""
    return {
        "model": name,
        "architecture": type(model).__name__,
        "revision": getattr(model.config, "_commit_hash", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": anatomy.num_layers,
        "heads": anatomy.num_heads,
        "head_width": anatomy.head_width(site),
        "site": site,
    }


def _score(
    activations: NDArray[np.float32],
    sequences: ProbingSequences | Answers,
    fit: dict[str, Any],
    described: dict[str, Any],
) -> TruthScores:
    """Fit the probes, and put them together with all that a reader must know of them."""
    labels, groups = sequences.labels, sequences.groups
    result = probe_heads(activations, labels, groups, **fit)
    metadata = {
        **described,
        **sequences.settings,
        "documents": len(set(groups.tolist())),
        "sequences": len(sequences),
        "truthful": int(labels.sum()),
        "rows": sequences.rows,
        "data_sha256": sequences.fingerprint,
        "probe": result.settings,
        "versions": _versions(),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    return TruthScores(
        scores=result.scores,
        stderr=result.stderr,
        auroc=result.auroc,
        train_accuracy=result.train_accuracy,
        probe_weight=result.probe_weight,
        probe_bias=result.probe_bias,
        metadata=metadata,
    )


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "lm_eval", "lmms_eval", "numpy")
    return {
        "truthgate_eval": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
