"""Which documents of a study make scores, which choose a strength, and which evaluate the gates."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from truthgate_eval.attribution.run import AnswerSet, split_documents
from truthgate_eval.errors import ProbeError

Role = Literal["scoring", "choosing", "test"]
# Parts of the tasks' documents, where no other tasks are given for a role.
_SCORING, _CHOOSING = 0.4, 0.2


@dataclass(frozen=True)
class StudyDocuments:
    """The documents of a study by their role.

    Attributes:
        scoring: Scores are made on them, and strengths found.
        test: Gates are evaluated on them.
        choosing: Where several strengths are tried, the one with the lowest log-loss on these is taken.
    """

    scoring: AnswerSet
    test: AnswerSet
    choosing: AnswerSet | None = None

    def part(self, name: str) -> AnswerSet:
        """The part of that name."""
        found: AnswerSet = getattr(self, name)
        return found


def study_documents(
    answers: AnswerSet,
    targets: Sequence[float],
    seed: int,
    *,
    choosing: AnswerSet | None = None,
    test: AnswerSet | None = None,
) -> StudyDocuments:
    """The documents of a study; parts of the same tasks share no image and no question.

    Two fifths are for scoring, a fifth for choosing if there are several targets, the rest for the test. A
    role with tasks of its own leaves its part to the scoring (the test) or to the test (choosing).

    Args:
        answers: The documents that are divided.
        targets: The study's divergences.
        seed: Of the split.
        choosing: Documents of other tasks for choosing.
        test: Documents of other tasks for the test.

    Raises:
        ProbeError: There are too few documents to divide, or all for choosing or for the test have the same
            right answer, yes or no: a gate that says it more often would look better.
    """
    chooses = len(targets) > 1
    if chooses and choosing is None:
        if test is None:
            scoring, choosing, test = split_documents(answers, [_SCORING, _CHOOSING], seed)
        else:
            scoring, choosing = split_documents(answers, [1 - _CHOOSING], seed)
    elif test is None:
        scoring, test = split_documents(answers, [_SCORING], seed)
    else:
        scoring = answers
    _check_both_answers(choosing, "choosing")
    _check_both_answers(test, "test")
    return StudyDocuments(scoring, test, choosing)


def _check_both_answers(own: AnswerSet | None, role: Role) -> None:
    strata = set() if own is None else set(own.strata)
    if own is not None and strata in ({"yes"}, {"no"}):
        (answer,) = strata
        raise ProbeError(
            f"all {len(own.documents)} documents for the {role} have the right answer {answer}, so a gate "
            f"that says {answer} more often would look better: take more documents, or tasks that share none"
        )


@dataclass(frozen=True)
class Prompt:
    """What a document asks, whatever the task that has it.

    Attributes:
        text: The text before the answer.
        images: Identifies the content of each of its images.
    """

    text: str
    images: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """How documents of a role overlap with those of the roles before it.

    Attributes:
        repeated: How many were left out, since a role before has the same prompt.
        related: How many of the others share an image or a question with a role before.
        documents: How many there were.
    """

    repeated: int
    related: int
    documents: int


def leave_out_repeated(
    own: AnswerSet, before: Sequence[AnswerSet], prompts: Mapping[int, Prompt], role: Role
) -> tuple[AnswerSet, LeftOut]:
    """The documents whose prompt no role before has.

    Args:
        own: The documents of a role.
        before: Those of other roles.
        prompts: The prompt of each document, by its group.
        role: The role's name, for the message.

    Raises:
        ProbeError: None is left.
    """
    taken = {prompts[document.group] for answers in before for document in answers.documents}
    known = {image for prompt in taken for image in prompt.images}
    clusters = {cluster for answers in before for cluster in answers.clusters}
    asked = [prompts[document.group] for document in own.documents]
    is_new = np.array([prompt not in taken for prompt in asked])
    if not is_new.any():
        raise ProbeError(
            f"all {len(asked)} documents for the {role} are among those of other roles: name tasks that have "
            "others"
        )
    related = sum(
        cluster in clusters or not known.isdisjoint(prompt.images)
        for prompt, cluster, new in zip(asked, own.clusters, is_new, strict=True)
        if new
    )
    return own.subset(is_new), LeftOut(int((~is_new).sum()), related, len(asked))
