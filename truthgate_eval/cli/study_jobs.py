"""The models of `truthgate study` with the answers of its tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from truthgate_eval.attribution.image_answers import features_digest, tokenize_with_images
from truthgate_eval.attribution.run import AnswerSet
from truthgate_eval.attribution.study_scores import ScoreMaker, Sequences
from truthgate_eval.cli.attribution_jobs import answer_set
from truthgate_eval.cli.probe_data import DataOptions, load_text, load_vlm_dataset
from truthgate_eval.gating.attention_layout import AttentionLayout, Site, find_attention_layout
from truthgate_eval.harness.cache_keys import digest, model_fingerprint
from truthgate_eval.harness.lmms_eval.registry import MODELS
from truthgate_eval.inference import self_check
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.probing.artifact import describe_model
from truthgate_eval.probing.config import DOCUMENT, NO_CONTEXT, NONE
from truthgate_eval.probing.controls import context_change
from truthgate_eval.probing.image_conditions import apply_image_condition


@dataclass(frozen=True, eq=False)
class StudyModel:
    """A loaded model with the answers of a study's tasks.

    Attributes:
        name: What it was loaded from.
        model: The model, with the images of all answers.
        layout: Its attention heads.
        sequences: The answers.
        without_context: Returns the same answers without their knowledge or image.
        metadata: Provenance of scores that are made with it.
        fingerprint: SHA-256 of the model and of the images' features.
    """

    name: str
    model: SharedPrefixModel
    layout: AttentionLayout
    sequences: Sequences
    without_context: Callable[[], Sequences]
    metadata: dict[str, Any]
    fingerprint: str

    @property
    def answers(self) -> AnswerSet:
        """The documents of the answers."""
        return answer_set(self.sequences.tokens, self.sequences.dataset)

    def score_maker(self, answers: AnswerSet, *, site: Site, seeds: int, batch_size: int) -> ScoreMaker:
        """What makes scores on some of the documents."""
        groups = {document.group for document in answers.documents}
        return ScoreMaker(
            self.model, self.layout, answers, self.sequences.of_groups(groups), self.without_context,
            self.metadata, site, seeds, batch_size,
        )  # fmt: skip


def load_study_model(
    model: str,
    arguments: dict[str, Any],
    options: DataOptions,
    *,
    site: Site,
    device: str | None,
    batch_size: int,
) -> StudyModel:
    """A model of either harness on the tasks of a study.

    Args:
        model: `hf` and its like, or `vlm` and its like for images.
        arguments: Its model_args.
        options: The tasks.
        site: Where scores will be measured.
        device: As in the harness.
        batch_size: As in the harness.
    """
    if model == "vlm" or model in MODELS:
        return _load_vlm(model, arguments, options, site=site, device=device)
    return _load_lm(model, arguments, options, site=site, device=device, batch_size=batch_size)


def _load_lm(
    model: str,
    arguments: dict[str, Any],
    options: DataOptions,
    *,
    site: Site,
    device: str | None,
    batch_size: int,
) -> StudyModel:
    from truthgate_eval.harness.lm_eval.probing import load_lm, tokenize

    lm = load_lm(model, arguments, batch_size=batch_size, device=device)
    dataset = load_text(options, lm=lm)
    layout = find_attention_layout(lm.model)
    name = getattr(lm, "model_name", str(lm.pretrained))

    def without() -> Sequences:
        changed = load_text(options, lm=lm, change=context_change(NO_CONTEXT, options.seed))
        return Sequences(changed, tokenize(lm, changed).tokens)

    return StudyModel(
        name,
        self_check.load(lm.model, layout.decoder),
        layout,
        Sequences(dataset, tokenize(lm, dataset).tokens),
        without,
        describe_model(lm.model, name, layout, site),
        model_fingerprint(lm.model, lm.tokenizer, {"chat": options.apply_chat_template}),
    )


def _load_vlm(
    model: str, arguments: dict[str, Any], options: DataOptions, *, site: Site, device: str | None
) -> StudyModel:
    from truthgate_eval.harness.lmms_eval.probing import load_for_probing
    from truthgate_eval.vision import self_check as vision_self_check

    dataset = load_vlm_dataset(options, image=DOCUMENT, file=None)
    vlm = load_for_probing(model, arguments, device=device, chat=options.apply_chat_template)
    layout = find_attention_layout(vlm.model)
    bare = vision_self_check.load(vlm, layout.decoder)
    shared, tokens = tokenize_with_images(bare, dataset)

    def without() -> Sequences:
        changed = apply_image_condition(dataset, NONE)
        return Sequences(changed, tokenize_with_images(bare, changed)[1])

    fingerprint = model_fingerprint(vlm.model, vlm.processor, {"chat": vlm.chat.template})
    return StudyModel(
        vlm.name,
        shared,
        layout,
        Sequences(dataset, tokens),
        without,
        describe_model(vlm.model, vlm.name, layout, site),
        digest([fingerprint, features_digest(shared)]),
    )
