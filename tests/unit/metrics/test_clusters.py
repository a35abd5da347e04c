"""The cluster of a document: the same for a sweep's splits and for the statistics of samples, in both harnesses."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgate_eval.analysis.runs.samples import read_samples
from truthgate_eval.data.splits import SELECTION, split_documents
from truthgate_eval.harness.lmms_eval.tasks import score_answer
from truthgate_eval.metrics.clusters import find_cluster

HALUEVAL = [
    {"knowledge": "k", "question": f"Q {n // 2}?", "answer": f"a {n}", "hallucinated": "yes", "row": n}
    for n in range(30)
]
DIALOGUES = [{"knowledge": f"k {n}", "dialogue_history": f"D {n // 3}", "row": n} for n in range(30)]
SUMMARIES = [{"document": f"D {n // 2}", "answer": f"a {n}", "row": n} for n in range(30)]
POPE = [
    {"question_id": n, "image": f"{n // 3}.jpg", "question": f"Is there a {n % 3}?", "answer": "yes"}
    for n in range(30)
]
# lmms-eval's own POPE: the image is decoded, its file has another name.
POPE_OF_LMMS_EVAL = [
    {"question_id": n, "image_source": f"COCO_{n // 3}", "question": f"Is there a {n % 3}?", "answer": "yes"}
    for n in range(30)
]
POLL = [{**doc, "object": "dog", "image_path": f"/pictures/{doc['image']}", "answer": "no"} for doc in POPE]
PHD = [
    {"image_id": 7000 + n // 2, "context": "c", "question": f"Q {n}?", "choices": ["yes", "no"]}
    for n in range(30)
]
PROMPTS = [{"prompt": f"P {n // 2}", "row": n} for n in range(30)]


def partition(names: Sequence[Hashable]) -> list[int]:
    """For each document the first one that it is together with."""
    return [names.index(name) for name in names]


def lm_eval_lines(documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"doc_id": n, "doc": doc, "target": "yes", "resps": [["yes"]], "filter": "none", "acc": 1.0}
        for n, doc in enumerate(documents)
    ]


def lmms_eval_lines(documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As our tasks write them: lmms-eval leaves the documents out."""
    return [
        {"doc_id": n, "input": doc["question"], "target": doc["answer"], "filtered_resps": ["yes"], **score_answer(doc, ["yes"])}
        for n, doc in enumerate(documents)
    ]  # fmt: skip


def clusters_of_samples(lines: list[dict[str, Any]], folder: Path) -> list[int]:
    file = folder / "samples.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return partition([sample.cluster for sample in read_samples(file, {})])


def check_splits_divide_no_cluster(documents: Sequence[dict[str, Any]], clusters: list[int]) -> None:
    """The splits see exactly these clusters: none is divided, and their number is what a fifth is taken of."""
    splits = split_documents(documents)
    assert splits == [splits[first] for first in clusters]
    selected = {first for first, split in zip(clusters, splits, strict=True) if split == SELECTION}
    assert len(selected) == max(1, round(len(set(clusters)) / 5))


@pytest.mark.parametrize(
    ("documents", "size"),
    [
        (HALUEVAL, 2), (DIALOGUES, 3), (SUMMARIES, 2), (POPE, 3), (POPE_OF_LMMS_EVAL, 3), (POLL, 3), (PHD, 2), (PROMPTS, 2),
    ],
    ids=["halueval", "dialogues", "summaries", "pope", "pope of lmms-eval", "poll", "phd", "prompts"],
)  # fmt: skip
def test_splits_and_lm_evals_samples_have_the_same_clusters(
    documents: list[dict[str, Any]], size: int, tmp_path: Path
) -> None:
    clusters = clusters_of_samples(lm_eval_lines(documents), tmp_path)
    assert clusters == [n // size * size for n in range(len(documents))]
    check_splits_divide_no_cluster(documents, clusters)


@pytest.mark.parametrize("documents", [POPE, POLL], ids=["pope", "poll"])
def test_splits_and_lmms_evals_samples_have_the_same_clusters(
    documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    clusters = clusters_of_samples(lmms_eval_lines(documents), tmp_path)
    assert clusters == [n // 3 * 3 for n in range(len(documents))]
    check_splits_divide_no_cluster(documents, clusters)


@given(
    st.dictionaries(
        st.sampled_from(["image", "image_path", "question", "query", "answer"]), st.text(max_size=3)
    )
)
def test_the_first_field_that_a_document_has_names_its_cluster(document: dict[str, str]) -> None:
    fields = [name for name in ("image", "image_path", "question", "query") if document.get(name)]
    found = find_cluster(document)
    assert (found.field if found else None) == next(iter(fields), None)


def test_a_decoded_image_is_no_name_of_a_cluster() -> None:
    assert find_cluster({"image": object(), "question": "Is it?"}) == find_cluster({"question": "Is it?"})
