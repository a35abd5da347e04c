"""Which documents a study scores, chooses and tests on, from one task or from several."""

from __future__ import annotations

import dataclasses

import pytest

from truthgate_eval.attribution.log_odds import AnswerDocument
from truthgate_eval.attribution.run import AnswerSet
from truthgate_eval.attribution.study_documents import Prompt, leave_out_repeated, study_documents
from truthgate_eval.errors import ProbeError

ONE, SEVERAL = [0.01], [0.01, 0.02]


def answers(groups: range, clusters: list[str] | None = None) -> AnswerSet:
    """A document for each group."""
    documents = [AnswerDocument(((1, 2), (1, 3)), (True, False), group) for group in groups]
    return AnswerSet(documents, [None] * len(groups), clusters or [f"c{group}" for group in groups])


def groups(own: AnswerSet | None) -> set[int]:
    return set() if own is None else {document.group for document in own.documents}


@pytest.mark.parametrize(
    ("targets", "given", "counts"),
    [
        (ONE, (), (16, 0, 24)),
        (SEVERAL, (), (16, 8, 16)),
        (ONE, ("test",), (40, 0, 5)),
        (SEVERAL, ("test",), (32, 8, 5)),
        (SEVERAL, ("choosing",), (16, 5, 24)),
        (SEVERAL, ("choosing", "test"), (40, 5, 5)),
    ],
)
def test_a_role_with_tasks_of_its_own_takes_no_part_of_the_others(
    targets: list[float], given: tuple[str, ...], counts: tuple[int, int, int]
) -> None:
    own = {name: answers(range(100 * n, 100 * n + 5)) for n, name in enumerate(given, start=1)}
    documents = study_documents(answers(range(40)), targets, 1, **own)  # type: ignore[arg-type]
    parts = [groups(part) for part in (documents.scoring, documents.choosing, documents.test)]
    assert tuple(map(len, parts)) == counts
    assert len(set().union(*parts)) == sum(counts)
    for name in given:
        assert documents.part(name) is own[name]


def test_scores_are_made_on_the_same_documents_for_one_strength_and_for_several() -> None:
    found = [study_documents(answers(range(40)), targets, 1).scoring for targets in (ONE, SEVERAL)]
    assert groups(found[0]) == groups(found[1])


@pytest.mark.parametrize("role", ["choosing", "test"])
@pytest.mark.parametrize("answer", ["yes", "no"])
def test_documents_with_one_right_answer_do_not_evaluate_a_gate(role: str, answer: str) -> None:
    own = dataclasses.replace(answers(range(50, 54)), strata=[answer] * 4)
    with pytest.raises(ProbeError, match=f"all 4 documents for the {role} have the right answer {answer}"):
        study_documents(answers(range(40)), SEVERAL, 1, **{role: own})  # type: ignore[arg-type]
    both = dataclasses.replace(own, strata=["yes", "no"] * 2)
    assert study_documents(answers(range(40)), SEVERAL, 1, **{role: both}).part(role) is both  # type: ignore[arg-type]


def test_documents_with_a_prompt_of_an_earlier_role_are_left_out() -> None:
    before, own = answers(range(3)), answers(range(10, 14), ["c1", "x", "y", "z"])
    prompts = {
        0: Prompt("Is it red?", ("image 1",)), 1: Prompt("Is it blue?", ("image 1",)), 2: Prompt("Who?"),
        10: Prompt("Is it green?", ("image 9",)),  # of the cluster of 1
        11: Prompt("Is it red?", ("image 1",)),  # repeated
        12: Prompt("Is it red?", ("image 2",)),  # another image
        13: Prompt("Is it new?", ("image 1",)),  # the same image
    }  # fmt: skip
    left, found = leave_out_repeated(own, [before], prompts, "test")
    assert groups(left) == {10, 12, 13}
    assert (found.repeated, found.related, found.documents) == (1, 2, 4)
    with pytest.raises(ProbeError, match="all 1 documents for the test are among those of other roles"):
        leave_out_repeated(answers(range(11, 12)), [before], prompts, "test")
