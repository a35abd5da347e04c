"""The model, the documents and the scores of `truthgate study`: one load of the model for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from truthgate_eval.attribution import run
from truthgate_eval.attribution.config import ATTRIBUTION_KINDS
from truthgate_eval.attribution.image_answers import features_digest, tokenize_with_images
from truthgate_eval.attribution.study import split_documents
from truthgate_eval.cli.attribution_jobs import answer_set
from truthgate_eval.cli.probe_data import DataOptions, load_text, load_vlm_dataset
from truthgate_eval.errors import TaskError
from truthgate_eval.gating.attention_layout import AttentionLayout, Site, find_attention_layout
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.cache_keys import digest, model_fingerprint
from truthgate_eval.inference import self_check
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.probing.artifact import describe_data, describe_model
from truthgate_eval.probing.config import CaptureConfig, ImageCondition, ProbeConfig
from truthgate_eval.probing.dataset import ProbeDataset
from truthgate_eval.probing.run import run_image_probing, run_probing

# The share of a task's documents that scores are made on; the others evaluate the gates.
_SCORING_SHARE = 0.4


@dataclass(frozen=True, eq=False)
class Study:
    """A loaded model with the documents of a study.

    Attributes:
        model: The model, with the images of all documents.
        layout: Its attention heads.
        scoring: The documents that scores are made on.
        test: The documents of the test.
        metadata: Provenance of scores that are made here.
        fingerprint: SHA-256 of the model and of the images' features: what a finished row depends on.
        make_scores: Makes the scores of a kind, on the scoring documents.
    """

    model: SharedPrefixModel
    layout: AttentionLayout
    scoring: run.AnswerSet
    test: run.AnswerSet
    metadata: dict[str, Any]
    fingerprint: str
    make_scores: Callable[[str, Callable[[int], object]], TruthScores]


def load_lm_study(
    model: str,
    arguments: dict[str, Any],
    options: DataOptions,
    *,
    site: Site,
    seeds: int,
    device: str | None,
    batch_size: int,
) -> Study:
    """A text model on lm-eval's tasks; the arguments are those of `make_lm_attribution`."""
    from truthgate_eval.harness.lm_eval.probing import load_lm, tokenize

    lm = load_lm(model, arguments, batch_size=batch_size, device=device)
    dataset = load_text(options, lm=lm)
    layout = find_attention_layout(lm.model)
    name = getattr(lm, "model_name", str(lm.pretrained))

    def probe(config: ProbeConfig, chosen: ProbeDataset) -> TruthScores:
        return run_probing(
            lm.model, tokenize(lm, chosen), config, name=name,
            capture_config=CaptureConfig(site=site, batch_size=batch_size),
        )  # fmt: skip

    fingerprint = model_fingerprint(lm.model, lm.tokenizer, {"chat": options.apply_chat_template})
    return _study(
        fingerprint, self_check.load(lm.model, layout.decoder), layout, tokenize(lm, dataset).tokens, dataset,
        describe_model(lm.model, name, layout, site), probe, site, seeds, batch_size, options.seed,
    )  # fmt: skip


def load_vlm_study(
    model: str,
    arguments: dict[str, Any],
    options: DataOptions,
    *,
    image: ImageCondition,
    site: Site,
    seeds: int,
    device: str | None,
    batch_size: int,
) -> Study:
    """A vision-language model on tasks of either harness; arguments as in `make_vlm_attribution`."""
    from truthgate_eval.harness.lmms_eval.probing import load_for_probing
    from truthgate_eval.vision import self_check as vision_self_check

    dataset = load_vlm_dataset(options, image=image, file=None)
    vlm = load_for_probing(model, arguments, device=device, chat=options.apply_chat_template)
    layout = find_attention_layout(vlm.model)

    def probe(config: ProbeConfig, chosen: ProbeDataset) -> TruthScores:
        return run_image_probing(
            vlm, chosen, config, capture_config=CaptureConfig(site=site, batch_size=batch_size)
        )

    fingerprint = model_fingerprint(vlm.model, vlm.processor, {"chat": vlm.chat.template})
    shared, tokens = tokenize_with_images(vision_self_check.load(vlm, layout.decoder), dataset)
    fingerprint = digest([fingerprint, features_digest(shared)])
    return _study(
        fingerprint, shared, layout, tokens, dataset, describe_model(vlm.model, vlm.name, layout, site),
        probe, site, seeds, batch_size, options.seed,
    )  # fmt: skip


def _study(
    fingerprint: str,
    model: SharedPrefixModel,
    layout: AttentionLayout,
    tokens: Sequence[Sequence[int]],
    dataset: ProbeDataset,
    metadata: dict[str, Any],
    probe: Callable[[ProbeConfig, ProbeDataset], TruthScores],
    site: Site,
    seeds: int,
    batch_size: int,
    seed: int,
) -> Study:
    scoring, test = split_documents(answer_set(tokens, dataset), _SCORING_SHARE, seed)
    groups = {document.group for document in scoring.documents}
    chosen = _with_groups(dataset, groups)
    described = {**metadata, **describe_data(chosen)}

    def make(kind: str, progress: Callable[[int], object]) -> TruthScores:
        own: dict[str, Any] = {"site": site, "batch_size": batch_size, "progress": progress}
        if kind == "gradient":
            return run.run_gradient(model, layout, scoring, described, **own)
        if kind == "direct-effect":
            return run.run_direct_effect(model, layout, scoring, described, **own)
        if kind == "copy":
            return run.run_copying(model, layout, scoring, described, progress=progress)
        if kind == "learned":
            return run.run_learned(
                model, layout, scoring, described, site=site, seeds=seeds, progress=progress
            )
        if kind in ATTRIBUTION_KINDS:
            raise TaskError(
                f"--score {kind} needs its documents twice: make it with `truthgate probe` and "
                "give the file as NAME=FILE"
            )
        return probe(ProbeConfig(score="auroc" if kind == "auroc" else "accuracy", solver="newton"), chosen)

    return Study(model, layout, scoring, test, described, fingerprint, make)


def _with_groups(dataset: ProbeDataset, groups: set[int]) -> ProbeDataset:
    """The answers to some questions.

    Its rows stay those of all documents: what a study has seen, `exclude_rows_of` leaves out of evaluations.
    """
    examples = [example for example in dataset.examples if example.group in groups]
    return dataclasses.replace(dataset, examples=examples)
