"""A study of one model, from its tasks to its rows; what is finished is kept in a folder."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from truthgate_eval import __version__
from truthgate_eval.attribution.study import StudyResult, correlations_within_layers, run_study
from truthgate_eval.attribution.study_documents import (
    Role,
    StudyDocuments,
    leave_out_repeated,
    study_documents,
)
from truthgate_eval.attribution.study_gates import StudyGates, make_directions
from truthgate_eval.attribution.study_rows import StudyRows
from truthgate_eval.attribution.study_scores import ScoreMaker
from truthgate_eval.cli.console import print_line, progress_bar
from truthgate_eval.cli.probe_data import DataOptions
from truthgate_eval.cli.study_arguments import supports_images
from truthgate_eval.cli.study_jobs import StudyModel, document_prompts, load_study_model
from truthgate_eval.credentials import drop_credentials
from truthgate_eval.errors import ScoresError, one_line
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.cache_keys import digest
from truthgate_eval.probing.config import TASK_FORMAT

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudySettings:
    """What every model of a study has in common.

    Attributes:
        options: The tasks that make scores, and how they are asked.
        own_tasks: Tasks of the roles that do not take a part of those.
        gates: Which gates are made.
        targets: Divergences from the vanilla model, in nats.
        seeds: Fits of a learned gate.
        batch_size: Documents in a batch.
        device: As in the harness.
        folder: Where everything is kept.
    """

    options: DataOptions
    own_tasks: Mapping[Role, tuple[str, ...]]
    gates: StudyGates
    targets: tuple[float, ...]
    seeds: int
    batch_size: int
    device: str | None
    folder: Path

    def load(
        self,
        model: str,
        arguments: dict[str, Any],
        tasks: tuple[str, ...],
        own_tasks: Mapping[Role, tuple[str, ...]],
    ) -> StudyModel:
        """A model with the answers of some tasks, which get its arguments as well, as in the harnesses."""
        options = dataclasses.replace(
            self.options, tasks=tasks, metadata={**arguments, **self.options.metadata}
        )
        return load_study_model(
            model, arguments, options, own_tasks=own_tasks, site=self.gates.site, device=self.device,
            batch_size=self.batch_size,
        )  # fmt: skip

    @property
    def key(self) -> dict[str, Any]:
        """What a finished row depends on, beside the model and its documents."""
        options = self.options
        names: dict[Role, str] = {"choosing": "choose tasks", "test": "test tasks"}
        return {
            "tasks": ",".join(options.tasks),
            **{names[role]: ",".join(tasks) for role, tasks in self.own_tasks.items()},
            "limit": options.limit, "seed": options.seed,
            "metadata": options.metadata, "chat template": options.apply_chat_template,
            "format": options.format,
            "site": self.gates.site, "seeds": self.seeds, "truthgate_eval": __version__,
        }  # fmt: skip


def study_model(
    settings: StudySettings,
    model: str,
    arguments: dict[str, Any],
    kinds: list[str],
    files: dict[str, TruthScores],
) -> tuple[str, StudyResult]:
    """The model's name and its rows.

    Args:
        settings: Of the study.
        model: `hf`, `vlm`, ...
        arguments: Its model_args.
        kinds: Scores that are made with it.
        files: Scores that were made elsewhere, by name.
    """
    loaded = settings.load(model, arguments, settings.options.tasks, settings.own_tasks)
    documents = _divide(settings, loaded)
    key = {**settings.key, "model and images": loaded.fingerprint}
    of_scores = key
    if settings.own_tasks:  # then the share of the tasks that makes scores depends on the strengths
        scoring = [document.sequences for document in documents.scoring.documents]
        of_scores = {**key, "scoring documents": digest(scoring)}
    folder = settings.folder / f"{_slug(loaded.name)}-{loaded.fingerprint[:8]}"
    folder.mkdir(exist_ok=True)
    maker = loaded.score_maker(
        documents.scoring, site=settings.gates.site, seeds=settings.seeds, batch_size=settings.batch_size
    )
    sources = {**_make_scores(maker, kinds, of_scores, folder), **files}
    rows = StudyRows(
        loaded.model, loaded.layout, documents, folder=folder, key=key, batch_size=settings.batch_size
    )
    directions = make_directions(sources, loaded.layout.shape, settings.gates)
    with progress_bar() as bars:
        bar = bars.add_task(f"gates of {loaded.name}", total=len(directions))
        result = run_study(rows, directions, settings.targets, progress=partial(bars.advance, bar))
    result.reliability = {name: scores.metadata.get("reliability") for name, scores in sources.items()}
    result.correlations = correlations_within_layers(sources)
    return loaded.name, result


def score_base(
    settings: StudySettings, model: str, arguments: dict[str, Any], tasks: str, kinds: list[str]
) -> dict[str, TruthScores]:
    """The base's scores on tasks of its own, by name.

    Args:
        settings: Of the study.
        model: The base's model type.
        arguments: Its model_args.
        tasks: What its scores are made on, comma-separated.
        kinds: Of its scores.
    """
    if not supports_images(model):  # the format is that of the gated models' images
        settings = dataclasses.replace(
            settings, options=dataclasses.replace(settings.options, format=TASK_FORMAT)
        )
    loaded = settings.load(model, arguments, tuple(tasks.split(",")), {})
    folder = settings.folder / f"{_slug(loaded.name)}-{loaded.fingerprint[:8]}-{_slug(tasks)}"
    folder.mkdir(exist_ok=True)
    alone = dataclasses.replace(settings, own_tasks={})
    key = {**alone.key, "tasks": tasks, "model and images": loaded.fingerprint}
    maker = loaded.score_maker(
        loaded.answers(), site=settings.gates.site, seeds=settings.seeds, batch_size=settings.batch_size
    )
    made = _make_scores(maker, kinds, key, folder)
    return {f"base {kind}, {tasks}": scores for kind, scores in made.items()}


def _divide(settings: StudySettings, loaded: StudyModel) -> StudyDocuments:
    """The documents of each role; what a role's own tasks repeat of the roles before is left out."""
    own = {role: loaded.answers(role) for role in settings.own_tasks}
    if own:
        prompts = document_prompts(loaded.sequences.dataset)
        before = [loaded.answers()]
        for role in own:
            own[role], left_out = leave_out_repeated(own[role], before, prompts, role)
            before.append(own[role])
            if left_out.repeated:
                print_line(
                    f"{role}: {left_out.repeated} of {left_out.documents} documents left out, whose prompts "
                    "occur in the tasks of an earlier role"
                )
            if left_out.related:
                print_line(
                    f"{role}: {left_out.related} of the other documents share an image or a question with "
                    "those of an earlier role, under another prompt"
                )
    documents = study_documents(
        loaded.answers(), settings.targets, settings.options.seed,
        choosing=own.get("choosing"), test=own.get("test"),
    )  # fmt: skip
    counts = {"scores from": documents.scoring, "strengths chosen on": documents.choosing}
    shown = [f"{name} {len(part.documents)}" for name, part in counts.items() if part is not None]
    print_line(
        f"{loaded.name}: {', '.join(shown)}, gates tested on {len(documents.test.documents)} documents"
    )
    return documents


def _make_scores(
    maker: ScoreMaker, kinds: list[str], key: dict[str, Any], folder: Path
) -> dict[str, TruthScores]:
    """Scores of each kind, kept in the folder."""
    key = drop_credentials(key)  # the artifacts have it in their metadata
    made: dict[str, TruthScores] = {}
    with progress_bar() as bars:
        for kind in kinds:
            file = folder / f"scores-{kind}.npz"
            if file.exists():
                found = _read_scores(file)
                if found is not None and found.metadata.get("study") == key:
                    made[kind] = found
                    continue
            bar = bars.add_task(kind, total=None)
            made[kind] = maker.make(kind, partial(bars.advance, bar))
            made[kind].metadata["study"] = key
            made[kind].save(file)
    return made


def _read_scores(file: Path) -> TruthScores | None:
    """Scores that the folder holds; None, with a warning, where the file is damaged."""
    try:
        return TruthScores.load(file)
    except ScoresError as error:
        log.warning("%s is damaged: the scores are made again (%s)", file, one_line(error))
        return None


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[-60:] or "model"
