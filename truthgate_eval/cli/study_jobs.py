"""The models of `truthgate study` with the answers of its tasks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from truthgate_eval.attribution.image_answers import features_digest, tokenize_with_images
from truthgate_eval.attribution.run import AnswerSet
from truthgate_eval.attribution.study_documents import Prompt, Role
from truthgate_eval.attribution.study_scores import ScoreMaker, Sequences
from truthgate_eval.cli.attribution_jobs import answer_set
from truthgate_eval.cli.probe_data import (
    DataOptions,
    load_text,
    load_vlm_dataset,
    writes_chat_template,
)
from truthgate_eval.cli.study_arguments import supports_images
from truthgate_eval.gating.attention_layout import AttentionLayout, Site, find_attention_layout
from truthgate_eval.harness.cache_keys import digest, model_fingerprint
from truthgate_eval.inference import self_check
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.probing.artifact import describe_model
from truthgate_eval.probing.config import DOCUMENT, NO_CONTEXT, NONE
from truthgate_eval.probing.controls import context_change
from truthgate_eval.probing.dataset import ProbeDataset, next_group
from truthgate_eval.probing.image_capture import load_images
from truthgate_eval.probing.image_conditions import apply_image_condition
from truthgate_eval.vision.image_features import image_key


@dataclass(frozen=True, eq=False)
class StudyModel:
    """A loaded model with the answers of a study's tasks.

    Attributes:
        name: What it was loaded from.
        model: The model, with the images of all answers.
        layout: Its attention heads.
        sequences: The answers.
        groups: Which questions the tasks of each role have; `scoring` are those of the study's tasks.
        without_context: Returns the answers of `scoring` without their knowledge or image.
        metadata: Provenance of scores that are made with it.
        fingerprint: SHA-256 of the model and of the images' features.
    """

    name: str
    model: SharedPrefixModel
    layout: AttentionLayout
    sequences: Sequences
    groups: Mapping[Role, set[int]]
    without_context: Callable[[], Sequences]
    metadata: dict[str, Any]
    fingerprint: str

    def answers(self, role: Role = "scoring") -> AnswerSet:
        """The documents of a role's tasks."""
        own = self.sequences.of_groups(self.groups[role])
        return answer_set(own.tokens, own.dataset)

    def score_maker(self, answers: AnswerSet, *, site: Site, seeds: int, batch_size: int) -> ScoreMaker:
        """What makes scores on some of the documents."""
        groups = {document.group for document in answers.documents}
        return ScoreMaker(
            self.model, self.layout, answers, self.sequences.of_groups(groups), self.without_context,
            self.metadata, site, seeds, batch_size,
        )  # fmt: skip


def document_prompts(dataset: ProbeDataset) -> dict[int, Prompt]:
    """What each document asks, by its group; images are told apart by their pixels.

    Args:
        dataset: Its images are decoded, each once.
    """
    images: dict[Hashable, tuple[Hashable, ...]] = {}
    found: dict[int, Prompt] = {}
    for number, example in enumerate(dataset.examples):
        if example.group not in found:
            key = ("example", number) if example.image_key is None else example.image_key
            if key not in images:
                images[key] = tuple(map(image_key, load_images(example)))
            found[example.group] = Prompt(example.context, images[key])
    return found


def load_study_model(
    model: str,
    arguments: dict[str, Any],
    options: DataOptions,
    *,
    own_tasks: Mapping[Role, tuple[str, ...]],
    site: Site,
    device: str | None,
    batch_size: int,
) -> StudyModel:
    """A model of either harness on the tasks of a study.

    Args:
        model: `hf` and its like, or `vlm` and its like for images.
        arguments: Its model_args.
        options: The tasks.
        own_tasks: Tasks of the roles that do not take their documents from those of `options`.
        site: Where scores will be measured.
        device: As in the harness.
        batch_size: As in the harness.
    """
    if supports_images(model):
        return _load_vlm(model, arguments, options, own_tasks, site=site, device=device)
    return _load_lm(model, arguments, options, own_tasks, site=site, device=device, batch_size=batch_size)


def _load_lm(
    model: str,
    arguments: dict[str, Any],
    options: DataOptions,
    own_tasks: Mapping[Role, tuple[str, ...]],
    *,
    site: Site,
    device: str | None,
    batch_size: int,
) -> StudyModel:
    from truthgate_eval.harness.lm_eval.probing import load_lm, tokenize

    lm = load_lm(model, arguments, batch_size=batch_size, device=device)
    dataset, groups = _load_roles(lambda own: load_text(own, lm=lm), options, own_tasks)
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
        groups,
        without,
        describe_model(lm.model, name, layout, site),
        model_fingerprint(lm.model, lm.tokenizer, {"chat": options.apply_chat_template}),
    )


def _load_vlm(
    model: str,
    arguments: dict[str, Any],
    options: DataOptions,
    own_tasks: Mapping[Role, tuple[str, ...]],
    *,
    site: Site,
    device: str | None,
) -> StudyModel:
    from truthgate_eval.harness.lmms_eval.probing import load_for_probing
    from truthgate_eval.vision import self_check as vision_self_check

    dataset, groups = _load_roles(
        lambda own: load_vlm_dataset(own, image=DOCUMENT, file=None), options, own_tasks
    )
    chat = writes_chat_template(options, image=DOCUMENT, file=None)
    vlm = load_for_probing(model, arguments, device=device, chat=chat)
    layout = find_attention_layout(vlm.model)
    bare = vision_self_check.load(vlm, layout.decoder)
    shared, tokens = tokenize_with_images(bare, dataset)
    sequences = Sequences(dataset, tokens)

    def without() -> Sequences:
        changed = apply_image_condition(sequences.of_groups(groups["scoring"]).dataset, NONE)
        return Sequences(changed, tokenize_with_images(bare, changed)[1])

    fingerprint = model_fingerprint(vlm.model, vlm.processor, {"chat": vlm.chat.template})
    return StudyModel(
        vlm.name,
        shared,
        layout,
        sequences,
        groups,
        without,
        describe_model(vlm.model, vlm.name, layout, site),
        digest([fingerprint, features_digest(shared)]),
    )


def _load_roles(
    load: Callable[[DataOptions], ProbeDataset],
    options: DataOptions,
    own_tasks: Mapping[Role, tuple[str, ...]],
) -> tuple[ProbeDataset, dict[Role, set[int]]]:
    """The answers of all tasks as one data set, and which questions each role has.

    Its settings are those of the tasks that make scores.
    """
    first = load(options)
    examples = list(first.examples)
    groups: dict[Role, set[int]] = {"scoring": {example.group for example in examples}}
    rows = {name: list(numbers) for name, numbers in first.rows.items()}
    for role, tasks in own_tasks.items():
        own = load(replace(options, tasks=tasks))
        start = next_group(examples)
        moved = [replace(example, group=start + example.group) for example in own.examples]
        groups[role] = {example.group for example in moved}
        examples += moved
        for name, numbers in own.rows.items():
            rows[name] = [*dict.fromkeys([*rows.get(name, []), *numbers])]
    return replace(first, examples=examples, rows=rows), groups
