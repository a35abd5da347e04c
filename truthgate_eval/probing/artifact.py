"""The score artifact of a probing run: its arrays, and the metadata that says how they were made."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike, NDArray

from truthgate_eval import __version__
from truthgate_eval.files import sha256
from truthgate_eval.gating.attention_layout import AttentionLayout
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.probing.config import ACCURACY, AUROC, CONTEXT_GAIN, NO_CONTEXT, ProbeConfig, ScoreName
from truthgate_eval.probing.controls import Control
from truthgate_eval.probing.dataset import ProbeDataset, TokenizedDataset
from truthgate_eval.probing.reliability import score_reliability
from truthgate_eval.probing.repeated_cv import RepeatedCV
from truthgate_eval.probing.statistics import difference_stderr

_PACKAGES = ("torch", "transformers", "lm_eval", "lmms_eval", "numpy")


def make_artifact(
    own: RepeatedCV,
    of_controls: dict[str, RepeatedCV],
    dataset: TokenizedDataset | ProbeDataset,
    controls: Sequence[Control],
    config: ProbeConfig,
    *,
    model_metadata: dict[str, Any],
) -> TruthScores:
    """The artifact of a run.

    Args:
        own: Results of the probed sequences.
        of_controls: Results of each control, by its name.
        dataset: What was probed.
        controls: The controls.
        config: How it was probed.
        model_metadata: See `describe_model`.
    """
    metadata = {
        **model_metadata,
        **describe_data(dataset),
        "probe": {**own.mean.settings, "seeds": config.seeds},
        "kind": config.score,
        "score": config.score,
        **_reliability(config.score, own, of_controls, dataset.groups),
        "controls": {
            control.name: _summarize(of_controls[control.name], control.settings) for control in controls
        },
        "versions": _versions(),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    return TruthScores(**_arrays(config.score, own, of_controls, dataset.groups), metadata=metadata)


def describe_model(model: Any, name: str, layout: AttentionLayout, site: str) -> dict[str, Any]:
    """Metadata of the probed model; of a local folder its name and the digest of its config, not its path."""
    return {
        **_describe_name(name),
        "architecture": type(model).__name__,
        "revision": getattr(model.config, "_commit_hash", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": layout.num_layers,
        "heads": layout.num_heads,
        "head_width": layout.head_width(site),
        "site": site,
    }


def _describe_name(name: str) -> dict[str, str]:
    folder = Path(name)
    if not folder.is_dir():
        return {"model": name}
    config = folder / "config.json"
    digest = {"config_sha256": sha256(config)} if config.is_file() else {}
    return {"model": folder.resolve().name, **digest}


def describe_data(dataset: TokenizedDataset | ProbeDataset) -> dict[str, Any]:
    """Metadata of what was probed."""
    return {
        **dataset.settings,
        "documents": len(set(dataset.groups.tolist())),
        "sequences": len(dataset),
        "truthful": int(dataset.labels.sum()),
        "rows": dataset.rows,
        "data_sha256": dataset.fingerprint,
    }


def _arrays(
    score: ScoreName, own: RepeatedCV, of_controls: dict[str, RepeatedCV], groups: ArrayLike
) -> dict[str, Any]:
    """The artifact's arrays; `scores`, `stderr` and `seed_scores` are those of the chosen score."""
    mean = own.mean
    controls = {name: repeats.mean.scores for name, repeats in of_controls.items()}
    errors = {
        name: difference_stderr(mean.influence - repeats.mean.influence, groups)
        for name, repeats in of_controls.items()
    }
    of_seeds = own.accuracy
    scores, stderr = mean.scores, mean.stderr
    if score == AUROC:
        scores, stderr, of_seeds = mean.auroc, mean.auroc_stderr, own.auroc
    elif score == CONTEXT_GAIN:
        scores, stderr = mean.scores - controls[NO_CONTEXT], errors[NO_CONTEXT]
        of_seeds = own.accuracy - of_controls[NO_CONTEXT].accuracy
    return {
        "scores": scores,
        "stderr": stderr,
        "auroc": mean.auroc,
        "train_accuracy": mean.train_accuracy,
        "probe_weight": mean.probe_weight,
        "probe_bias": mean.probe_bias,
        "accuracy": None if score == ACCURACY else mean.scores,
        "seed_scores": of_seeds if len(of_seeds) > 1 else None,
        "controls": controls,
        "control_stderr": errors,
    }


def _reliability(
    score: ScoreName, own: RepeatedCV, of_controls: dict[str, RepeatedCV], groups: NDArray[Any]
) -> dict[str, Any]:
    """How reliable the scores are, as metadata; an AUROC is no mean over documents."""
    if score == AUROC:
        return {}
    scores, influence = own.mean.scores, own.mean.influence
    if score == CONTEXT_GAIN:
        without = of_controls[NO_CONTEXT].mean
        scores, influence = scores - without.scores, influence - without.influence
    return {"validation_reliability": score_reliability(scores, influence, groups)}


def _summarize(repeats: RepeatedCV, settings: dict[str, Any]) -> dict[str, Any]:
    """Metadata of a control: its settings, and means over all heads."""
    mean = repeats.mean
    return {
        **settings,
        "accuracy": round(float(mean.scores.mean()), 6),
        "best_accuracy": round(float(mean.scores.max()), 6),
        "auroc": round(float(mean.auroc.mean()), 6),
        "stderr": round(float(mean.stderr.mean()), 6),
    }


def _versions() -> dict[str, str]:
    return {
        "truthgate_eval": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }
