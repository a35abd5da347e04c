"""One probing run: a model and sequences in, a score artifact out."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from truthgate_eval import __version__
from truthgate_eval.errors import ProbeError
from truthgate_eval.gating.attention_layout import AttentionLayout, find_attention_layout
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.probing.activations import allocate_activations
from truthgate_eval.probing.capture import capture
from truthgate_eval.probing.controls import NO_CONTEXT, SHUFFLED, Control, shuffled_labels
from truthgate_eval.probing.dataset import ProbeDataset, TokenizedDataset
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.probing.repeats import RepeatedCV, difference_stderr, repeat_cross_validation
from truthgate_eval.vision.model import VisionLanguageModel

Progress = Callable[[int], None]
Capture = Callable[[Any], NDArray[Any]]

ACCURACY, AUROC, CONTEXT_GAIN = "accuracy", "auroc", "context-gain"
SCORES = (ACCURACY, AUROC, CONTEXT_GAIN)


def check_score(score: str) -> None:
    """Raise `ProbeError` unless `score` is one of `SCORES`."""
    if score not in SCORES:
        raise ProbeError(f"unknown score {score!r}: expected one of {', '.join(SCORES)}")


def run_probing(
    model: Any,
    sequences: TokenizedDataset,
    *,
    name: str,
    site: str = "post",
    batch_size: int = 8,
    memory: float | None = None,
    scratch: Path | None = None,
    capture_progress: Progress | None = None,
    **options: Any,
) -> TruthScores:
    """Truth scores of every head of `model` (METHOD.md, "Truth scores").

    Args:
        model: A transformers model without a gate.
        sequences: What to probe it on.
        name: The model's id, for the record.
        site: Where activations are read, `post` or `pre`.
        batch_size: Sequences to a forward pass.
        memory: GiB above which activations go to a file, see `activations.make_room`.
        scratch: The folder of that file.
        capture_progress: Called with the number of sequences that were run.
        **options: Those of `score_activations`.
    """
    anatomy = find_attention_layout(model)
    forward = SharedPrefixModel(model, anatomy.decoder)  # tried once, however many controls are captured

    def run(chosen: TokenizedDataset) -> NDArray[Any]:
        return capture(
            model,
            chosen.tokens,
            site=site,
            batch_size=batch_size,
            anatomy=anatomy,
            forward=forward,
            progress=capture_progress,
            out=allocate_activations(
                (len(chosen), *anatomy.shape, anatomy.head_width(site)), memory=memory, folder=scratch
            ),
        )

    return score_activations(run, sequences, described=_describe(model, name, anatomy, site), **options)


def run_image_probing(
    vlm: VisionLanguageModel,
    answers: ProbeDataset,
    *,
    site: str = "post",
    batch_size: int = 8,
    memory: float | None = None,
    scratch: Path | None = None,
    capture_progress: Progress | None = None,
    **options: Any,
) -> TruthScores:
    """Truth scores of every head of a vision-language model's text decoder.

    Args:
        vlm: The model, without a gate; its chat format writes the sequences.
        answers: Each with its pictures (see `apply_image_condition`).
        site: As in `run_probing`, and so are the others.
        batch_size: As there.
        memory: As there.
        scratch: As there.
        capture_progress: As there.
        **options: As there.
    """
    anatomy = find_attention_layout(vlm.model)

    def run(chosen: ProbeDataset) -> NDArray[Any]:
        return capture_with_images(
            vlm,
            chosen,
            site=site,
            batch_size=batch_size,
            anatomy=anatomy,
            progress=capture_progress,
            out=allocate_activations(
                (len(chosen), *anatomy.shape, anatomy.head_width(site)), memory=memory, folder=scratch
            ),
        )

    return score_activations(run, answers, described=_describe(vlm.model, vlm.name, anatomy, site), **options)


def score_activations(
    run: Capture,
    sequences: TokenizedDataset | ProbeDataset,
    *,
    described: dict[str, Any],
    solver: str = "adamw",
    folds: int = 5,
    split: str = "question",
    seed: int = 42,
    seeds: int = 1,
    score: str = ACCURACY,
    controls: Sequence[Control] = (),
    probe_progress: Progress | None = None,
) -> TruthScores:
    """Run the sequences, and those of the controls, and judge all heads' probes.

    Args:
        run: Gives activations [n, layers, heads, width] of sequences.
        sequences: What to probe on.
        described: What the artifact says of the model.
        solver: `adamw` (the paper's) or `newton` (to convergence).
        folds: 5 for the mean over five folds, 1 for one 4:1 split.
        split: `question` keeps a document's sequences on one side, `sequence` does not.
        seed: Chooses the folds.
        seeds: How many assignments of folds the scores are the mean of.
        score: `accuracy`, `auroc`, or `context-gain`: accuracy minus the no-context control's.
        controls: What else to probe, with the same solver and folds.
        probe_progress: Called with the number of heads that were fitted.

    Raises:
        ProbeError: A setting does not exist, or `context-gain` comes without its control.
    """
    check_score(score)
    if score == CONTEXT_GAIN and NO_CONTEXT not in {control.name for control in controls}:
        raise ProbeError(f"score={CONTEXT_GAIN} is measured against the control {NO_CONTEXT}: add it")
    if seeds < 1:
        raise ProbeError(f"seeds={seeds}: expected 1 or more")
    fit = partial(
        repeat_cross_validation,
        groups=sequences.groups,
        seed=seed,
        solver=solver,
        folds=folds,
        split=split,
        progress=probe_progress,
    )
    own, measured = _measure(run, sequences, controls, fit, range(seed, seed + seeds))
    metadata = {
        **described,
        **_data(sequences),
        "probe": {**own.mean.settings, "seeds": seeds},
        "score": score,
        "controls": {
            control.name: _summary(measured[control.name], control.settings) for control in controls
        },
        "versions": _versions(),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    return TruthScores(**_arrays(score, own, measured, sequences.groups), metadata=metadata)


def _measure(
    run: Capture,
    sequences: TokenizedDataset | ProbeDataset,
    controls: Sequence[Control],
    fit: Callable[..., list[RepeatedCV]],
    seeds: range,
) -> tuple[RepeatedCV, dict[str, RepeatedCV]]:
    """The probes of the sequences themselves, and of each control by its name."""
    labels = [sequences.labels] * len(seeds)
    # Shuffled labels need the same activations: fitted with them, they read these once.
    shuffled = [control.name for control in controls if control.name == SHUFFLED]
    dealt = [shuffled_labels(sequences.labels, sequences.groups, seed) for seed in seeds]
    own, *others = fit(run(sequences), labels, *(dealt for _ in shuffled))
    measured = dict(zip(shuffled, others, strict=True))
    for control in controls:
        if control.features is not None:  # one layer with one head
            (measured[control.name],) = fit(control.features[:, None, None, :], labels)
        elif control.sequences is not None:
            (measured[control.name],) = fit(run(control.sequences), labels)
    return own, {control.name: measured[control.name] for control in controls}


def _data(sequences: TokenizedDataset | ProbeDataset) -> dict[str, Any]:
    """What the artifact says of the data."""
    return {
        **sequences.settings,
        "documents": len(set(sequences.groups.tolist())),
        "sequences": len(sequences),
        "truthful": int(sequences.labels.sum()),
        "rows": sequences.rows,
        "data_sha256": sequences.fingerprint,
    }


def _arrays(score: str, own: RepeatedCV, measured: dict[str, RepeatedCV], groups: Any) -> dict[str, Any]:
    """The artifact's arrays, with the chosen score in the first place."""
    mean = own.mean
    controls = {name: repeats.mean.scores for name, repeats in measured.items()}
    errors = {
        name: difference_stderr(mean.influence - repeats.mean.influence, groups)
        for name, repeats in measured.items()
    }
    each = own.accuracy
    scores, stderr = mean.scores, mean.stderr
    if score == AUROC:
        scores, stderr, each = mean.auroc, mean.auroc_stderr, own.auroc
    elif score == CONTEXT_GAIN:
        scores, stderr = mean.scores - controls[NO_CONTEXT], errors[NO_CONTEXT]
        each = own.accuracy - measured[NO_CONTEXT].accuracy
    return {
        "scores": scores,
        "stderr": stderr,
        "auroc": mean.auroc,
        "train_accuracy": mean.train_accuracy,
        "probe_weight": mean.probe_weight,
        "probe_bias": mean.probe_bias,
        "accuracy": None if score == ACCURACY else mean.scores,
        "seed_scores": each if len(each) > 1 else None,
        "controls": controls,
        "control_stderr": errors,
    }


def _summary(repeats: RepeatedCV, settings: dict[str, Any]) -> dict[str, Any]:
    """What the metadata says of a control."""
    mean = repeats.mean
    return {
        **settings,
        "accuracy": round(float(mean.scores.mean()), 6),
        "best_accuracy": round(float(mean.scores.max()), 6),
        "auroc": round(float(mean.auroc.mean()), 6),
        "stderr": round(float(mean.stderr.mean()), 6),
    }


def _describe(model: Any, name: str, anatomy: AttentionLayout, site: str) -> dict[str, Any]:
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


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "lm_eval", "lmms_eval", "numpy")
    return {
        "truthgate_eval": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
