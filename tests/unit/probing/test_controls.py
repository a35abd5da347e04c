"""Controls: what each one changes, and what it finds on tasks where one property alone decides."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers import tiny_vision_models as factories_vlm
from helpers.command_line import truthgate
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks import TaskManager

from truthgate_eval.analysis.heads.control_report import control_verdicts
from truthgate_eval.errors import ProbeError, TaskError
from truthgate_eval.gating.gate import make_gate
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval.probing import load_dataset
from truthgate_eval.probing.config import ProbeConfig
from truthgate_eval.probing.controls import (
    CONTROLS,
    Control,
    context_change,
    derangement,
    make_controls,
    shuffled_labels,
    swap_images,
    swap_within,
)
from truthgate_eval.probing.cross_validation import cross_validate_heads
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.repeated_cv import repeat_cross_validation
from truthgate_eval.probing.run import score_activations
from truthgate_eval.probing.statistics import clustered_stderr, difference_stderr

ROOT = Path(__file__).resolve().parents[3]
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{knowledge}}}} {{{{question}}}}"
doc_to_choice: choices
doc_to_target: target
metadata: {metadata}
"""


def write_task(
    folder: Path, name: str, docs: list[dict], metadata: str = "{context_field: knowledge}"
) -> None:
    file = folder / f"{name}.json"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=file, metadata=metadata))


@pytest.fixture(scope="module", autouse=True)
def own_tasks_only() -> Iterator[None]:
    """lm-eval's task manager without its own thousands of files, which take it seconds to look through."""
    folder = str(ROOT / "tasks" / "lm_eval")

    def manager(*, metadata: dict | None = None, include_path: str | None = None) -> TaskManager:
        paths = [folder, include_path] if include_path else [folder]
        return TaskManager(metadata=metadata, include_path=paths, include_defaults=False)

    with mock.patch("truthgate_eval.harness.lm_eval.task_index.TaskManager", manager):
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of 80 documents: in one the answers' length decides, in the other the knowledge alone."""
    folder, rng = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)

    def letters(n: int) -> str:
        return "".join(rng.choice(list("abcdefgh"), size=n))

    length = [
        {"knowledge": letters(12), "question": letters(6), "choices": ["zz", 9 * "z"], "target": 0}
        for _ in range(80)
    ]
    context = [
        {"knowledge": ("++++++" if n % 2 else "------") + letters(2), "question": letters(3),
         "choices": ["it is", "it is"], "target": [0, 1] if n % 2 else []}
        for n in range(80)
    ]  # fmt: skip
    write_task(folder, "silent", length, "{version: 1}")
    write_task(folder, "uneven", [{**length[0], "choices": ["a", "b b b"]}])
    write_task(folder, "length_decides", length)
    write_task(folder, "context_decides", context)
    return folder


@pytest.fixture(scope="module")
def artifacts(tasks: Path, checkpoint: str) -> dict[str, TruthScores]:
    """Both tasks probed with all controls by the command, on a tiny model."""
    every = [word for name in CONTROLS for word in ("--control", name)]
    found = {}
    for name in ("length_decides", "context_decides"):
        file = tasks / f"{name}.npz"
        done = truthgate(
            "probe", "--model_args", f"pretrained={checkpoint}", "--tasks", name, "--include_path", str(tasks),
            "--device", "cpu", "--solver", "newton", *every, "--seeds", "2", "--output", str(file),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[name] = TruthScores.load(file)
    return found


def test_where_the_answers_length_decides_the_surface_explains_it(artifacts: dict[str, TruthScores]) -> None:
    scores = artifacts["length_decides"]
    verdict = {verdict.name: verdict for verdict in control_verdicts(scores)}
    assert scores.scores[0].min() > 0.8 and scores.controls["surface"][0, 0] > 0.99  # layer 0 counts best
    # No knowledge is needed to count letters, so the controls of the context explain it as well.
    assert all(verdict[name].explains for name in ("surface", "no-context", "swapped-context"))
    assert not verdict["shuffled-labels"].explains


def test_where_the_context_decides_scores_without_it_are_chance(artifacts: dict[str, TruthScores]) -> None:
    scores = artifacts["context_decides"]
    verdict = {verdict.name: verdict for verdict in control_verdicts(scores)}
    assert scores.scores.mean() > 0.9
    for name in CONTROLS:
        assert abs(scores.controls[name].mean() - 0.5) < 0.12, name
        assert not verdict[name].explains and verdict[name].above == 12
    assert scores.control_stderr["no-context"].shape == scores.shape


def test_show_prints_the_controls_and_warns(artifacts: dict[str, TruthScores], tmp_path: Path) -> None:
    for name, warned in (("length_decides", 3), ("context_decides", 0)):
        file = artifacts[name].save(tmp_path / f"{name}.npz")
        done = truthgate("show", str(file))
        assert done.returncode == 0 and "shuffled-labels" in done.stdout and "seeds" in done.stdout
        assert done.stdout.count("warning: ") == warned
        assert ("warning: surface explains the scores: 12 of 12 heads" in done.stdout) == bool(warned)
    bare = TruthScores(artifacts["length_decides"].scores).save(tmp_path / "bare.npz")
    assert "Controls" not in truthgate("show", str(bare)).stdout


def test_the_artifact_records_every_control(artifacts: dict[str, TruthScores], tmp_path: Path) -> None:
    scores = artifacts["context_decides"]
    recorded = scores.metadata["controls"]
    assert list(recorded) == list(CONTROLS) and recorded["swapped-context"]["seed"] == 42
    for name in CONTROLS:
        assert recorded[name]["accuracy"] == pytest.approx(scores.controls[name].mean(), abs=1e-5)
    with np.load(scores.save(tmp_path / "again.npz")) as archive:
        assert archive["control_surface"].shape == (1, 1)
        np.testing.assert_array_equal(archive["control_no-context"], scores.controls["no-context"])
        np.testing.assert_array_equal(
            archive["control_no-context_stderr"], scores.control_stderr["no-context"]
        )
        assert archive["seed_scores"].shape == (2, 3, 4)
        np.testing.assert_allclose(archive["seed_scores"].mean(axis=0), archive["scores"], atol=1e-6)


@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_a_derangement_leaves_nothing_in_its_place(n: int, seed: int) -> None:
    order = derangement(n, seed)
    assert sorted(order) == list(range(n)) and (order != np.arange(n)).all()
    np.testing.assert_array_equal(order, derangement(n, seed))


def test_derangements_are_uniform() -> None:
    counts = Counter(tuple(derangement(4, seed)) for seed in range(1800))
    assert len(counts) == 9 and min(counts.values()) > 140 and max(counts.values()) < 260
    with pytest.raises(ProbeError, match="documents with different knowledge"):
        derangement(1, 0)


@given(
    st.lists(st.sampled_from("abcdefg"), min_size=2).filter(lambda keys: len(set(keys)) > 1),
    st.integers(0, 99),
)
def test_documents_with_equal_knowledge_get_the_same_other_knowledge(keys: list[str], seed: int) -> None:
    other = swap_within(keys, seed=seed)
    assert set(other) == set(other.values()) == set(keys)
    assert all(key != value for key, value in other.items())


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=4), min_size=1, max_size=30), st.integers(0, 99)
)
def test_shuffled_labels_are_the_same_labels(documents: list[list[int]], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(sum(map(len, documents)))  # answers stand anywhere
    labels = np.concatenate([np.array(document) for document in documents])[order]
    groups = np.repeat(np.arange(len(documents)), [len(document) for document in documents])[order]
    shuffled = shuffled_labels(labels, groups, seed)
    np.testing.assert_array_equal(shuffled, shuffled_labels(labels, groups, seed))

    def label_counts(of: np.ndarray) -> Counter:
        return Counter((int((groups == g).sum()), int(of[groups == g].sum())) for g in np.unique(groups))

    assert label_counts(shuffled) == label_counts(labels)


@pytest.mark.parametrize("answers", [1, 2])
def test_shuffled_labels_are_independent_of_the_labels(answers: int) -> None:
    groups = np.repeat(np.arange(1000 // answers), answers)
    labels = np.tile([1, 0], 500)
    agreed = np.array([(shuffled_labels(labels, groups, seed) == labels).mean() for seed in range(20)])
    assert abs(agreed.mean() - 0.5) < 0.03 and agreed.std() > 0.005


def contexts(folder: str, **options: Any) -> tuple[ProbeDataset, list[str]]:
    found = load_dataset(["probe_halueval_qa"], limit=12, metadata={"halueval_path": folder}, **options)
    return found, [item.context for item in found.examples]


def test_the_knowledge_is_changed_and_nothing_else(halueval_folder: str) -> None:
    own, shown = contexts(halueval_folder)
    knowledge = [f"{n} and {n} are {2 * n}." for n in range(12)]
    without, bare = contexts(halueval_folder, change=context_change("no-context", 1))
    swapped, other = contexts(halueval_folder, change=context_change("swapped-context", 1))
    for changed in (without, swapped):
        assert [item.answer for item in changed.examples] == [item.answer for item in own.examples]
        np.testing.assert_array_equal(changed.labels, own.labels)
        assert changed.rows == own.rows and changed.fingerprint != own.fingerprint
    for number in range(24):
        mine = knowledge[number // 2]
        assert bare[number] == shown[number].replace(mine, "")
        [taken] = [text for text in knowledge if f"Context:\n{text}\n" in other[number]]
        assert taken != mine and other[number] == shown[number].replace(mine, taken)
    assert {c.split("\n")[1] for c in other} == set(knowledge)


def test_few_shot_examples_are_changed_too_and_never_contain_the_document_itself(
    halueval_folder: str,
) -> None:
    found, shown = contexts(halueval_folder, change=context_change("no-context", 1), num_fewshot=3)
    for item, text in zip(found.examples, shown, strict=True):
        assert text.count("Context:\n\n") == 4
        assert text.count(f"much are {item.group} and {item.group}?") == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{version: 1}", "'told' does not say which field of its documents is the knowledge"),
        ("{context_field: text}", "context_field=text: the documents of told have knowledge, question"),
        ("{context_field: extra}", "context_field=extra: told does not show it"),
    ],
)
def test_a_task_whose_knowledge_is_not_known_is_refused(metadata: str, message: str, tmp_path: Path) -> None:
    docs = [
        {"knowledge": f"k{n}", "question": "q", "choices": ["a", "b"], "target": 0, "extra": "e"}
        for n in range(3)
    ]
    write_task(tmp_path, "told", docs, metadata)
    with pytest.raises(TaskError, match=message):
        load_dataset(["told"], include_path=str(tmp_path), change=context_change("no-context", 0))


def test_the_field_can_be_named_for_any_task(tmp_path: Path) -> None:
    docs = [{"knowledge": f"k{n}", "question": "q", "choices": ["a", "b"], "target": 0} for n in range(3)]
    write_task(tmp_path, "named", docs, "{version: 1}")
    found = load_dataset(
        ["named"], include_path=str(tmp_path), metadata={"context_field": "knowledge"},
        change=context_change("no-context", 0),
    )  # fmt: skip
    assert [item.context.strip() for item in found.examples] == ["q"] * 6


def test_groups_of_two_tasks_differ(tasks: Path) -> None:
    both = load_dataset(["length_decides", "context_decides"], include_path=str(tasks))
    first, second = both.groups[:160].tolist(), both.groups[160:].tolist()
    assert len(set(first)) == len(set(second)) == 80 and not set(first) & set(second)


def test_equally_long_answers_are_selected_before_the_limit(tmp_path: Path) -> None:
    rows = [
        {"knowledge": f"k{n}", "question": "q", "right_answer": f"r {n}",
         "hallucinated_answer": f"h {n}." if n % 4 == 3 else f"a long answer {n}."}
        for n in range(40)
    ]  # fmt: skip
    (tmp_path / "qa_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {"metadata": {"halueval_path": str(tmp_path)}, "surface_matched": True}
    found = load_dataset(["probe_halueval_qa"], limit=6, **options)
    assert found.rows == {"halueval/qa": [3, 7, 11, 15, 19, 23]}
    assert [item.answer for item in found.examples[:4]] == [" r 3", " h 3", " r 7", " h 7"]
    assert len(load_dataset(["probe_halueval_qa"], limit=0.5, **options)) == 10
    swapped = load_dataset(
        ["probe_halueval_qa"], limit=6, change=context_change("swapped-context", 0), **options
    )
    used = {f"k{row}" for row in found.rows["halueval/qa"]}
    assert {item.context.split("\n")[1] for item in swapped.examples} == used and swapped.rows == found.rows


def test_documents_without_a_row_number_are_counted_in_their_file(tmp_path: Path) -> None:
    choices = [["a", "b b b"], ["a", "b."], ["a", "b b b"], ["a", "b"]]
    docs = [{"knowledge": f"k{n}", "question": "q", "choices": c, "target": 0} for n, c in enumerate(choices)]
    write_task(tmp_path, "unnumbered", docs)
    found = load_dataset(["unnumbered"], include_path=str(tmp_path), surface_matched=True)
    assert found.rows == {"unnumbered": [1, 3]} and found.examples[0].context == "k1 q"


def test_no_equally_long_answers_is_one_line(halueval_folder: str) -> None:
    with pytest.raises(TaskError, match="leaves nothing of probe_halueval_qa: in all 60 documents"):
        contexts(halueval_folder, surface_matched=True)


def planted(
    n: int = 200, context: float = 1.0, surface: float = 0.0
) -> tuple[ProbeDataset, Callable[[Any], Any]]:
    """Answers, and a model of 1 layer x 3 heads whose first head sees what the context makes true."""
    rng = np.random.default_rng(0)
    labels = np.tile([1, 0], n // 2)
    items = [ProbeExample("k", " a", bool(label), i // 2) for i, label in enumerate(labels)]
    answers, noise = ProbeDataset(items, {}, {}), rng.normal(size=(2, n, 1, 3, 4)).astype(np.float32)

    def run(chosen: ProbeDataset) -> np.ndarray:
        x = noise[int(chosen is not answers)].copy()
        x[:, 0, 0, 0] += (context if chosen is answers else 0.0) * (2 * labels - 1)
        x[:, 0, 1, 0] += surface * (2 * labels - 1)
        return x

    return answers, run


def scored(score: str, seeds: int = 1, **plant: float) -> TruthScores:
    answers, run = planted(**plant)
    controls = make_controls(
        ["no-context", "shuffled-labels"], answers, lambda _: ProbeDataset(answers.examples, {}, {}), seed=0
    )
    return score_activations(
        run,
        answers,
        ProbeConfig(solver="newton", score=score, seeds=seeds),
        model_metadata={},
        controls=controls,
    )


def test_the_context_gain_is_what_the_context_adds() -> None:
    plain, gain, area = (
        scored(score, seeds=3, context=1.5, surface=1.5) for score in ("accuracy", "context-gain", "auroc")
    )
    assert plain.scores[0, 0] > 0.85 and plain.scores[0, 1] > 0.85
    np.testing.assert_allclose(gain.scores, plain.scores - plain.controls["no-context"], atol=1e-6)
    assert gain.scores[0, 0] > 0.3 and abs(gain.scores[0, 1]) < 0.1
    np.testing.assert_array_equal(gain.stderr, plain.control_stderr["no-context"])
    np.testing.assert_array_equal(area.scores, plain.auroc)
    for scores in (gain, area):
        np.testing.assert_array_equal(scores.accuracy, plain.scores)
        assert scores.seed_scores is not None and scores.seed_scores.shape == (3, 1, 3)
        np.testing.assert_allclose(scores.seed_scores.mean(axis=0), scores.scores, atol=1e-6)
        for norm in ("centered", "minmax", "zscore", "none"):
            assert np.isfinite(np.asarray(make_gate(scores, lam=1.0, norm=norm).values)).all()
    assert {s.metadata["score"] for s in (plain, gain, area)} == {"accuracy", "context-gain", "auroc"}
    assert [v.above for v in control_verdicts(gain)] == [v.above for v in control_verdicts(plain)] == [1, 2]


def test_the_difference_to_an_unchanged_control_is_zero_with_zero_error() -> None:
    answers, run = planted(context=0.5)
    same = [Control("no-context", sequences=answers)]
    scores = score_activations(run, answers, ProbeConfig(solver="newton"), model_metadata={}, controls=same)
    np.testing.assert_array_equal(scores.controls["no-context"], scores.scores)
    assert not scores.control_stderr["no-context"].any() and scores.stderr is not None
    assert scores.stderr.min() > 0.01
    assert [verdict.explains for verdict in control_verdicts(scores)] == [True]


def test_a_context_gain_needs_its_control() -> None:
    answers, run = planted()
    with pytest.raises(ProbeError, match="context-gain is measured against the control no-context"):
        score_activations(run, answers, ProbeConfig(score="context-gain"), model_metadata={})
    with pytest.raises(ProbeError, match="unknown score 'f1': expected one of accuracy, auroc"):
        score_activations(run, answers, ProbeConfig(score="f1"), model_metadata={})


def test_seeds_are_runs_with_other_folds() -> None:
    answers, run = planted(context=0.5)
    x, labels, groups = run(answers), answers.labels, answers.groups
    (repeats,) = repeat_cross_validation(
        x, [labels] * 3, groups=groups, config=ProbeConfig(seed=7, solver="newton")
    )
    alone = [
        cross_validate_heads(x, labels, groups, ProbeConfig(seed=seed, solver="newton")) for seed in (7, 8, 9)
    ]
    np.testing.assert_array_equal(repeats.accuracy, np.stack([result.scores for result in alone]))
    assert len({result.scores.tobytes() for result in alone}) == 3
    single = np.mean([result.stderr for result in alone], axis=0)
    assert (repeats.mean.stderr < single).all() and (repeats.mean.stderr > 0.5 * single).all()
    np.testing.assert_array_equal(repeats.mean.probe_weight, alone[2].probe_weight)


@pytest.mark.parametrize("folds", [1, 5])
def test_the_error_of_a_difference_is_paired(folds: int) -> None:
    """The difference of heads with equal features is zero with zero error, however large the error of each."""
    answers, run = planted(context=0.5)
    x, labels, groups = run(answers), answers.labels, answers.groups
    result = cross_validate_heads(x, labels, groups, ProbeConfig(solver="newton", folds=folds))
    np.testing.assert_allclose(difference_stderr(result.influence, groups), result.stderr, rtol=1e-5)
    assert not difference_stderr(result.influence - result.influence, groups).any()
    first, second = (result.influence[:, [head]] for head in (0, 2))
    judged = np.flatnonzero(result.influence.any(axis=(0, 1)))
    difference = (first - second)[0, :, judged].T * len(judged)  # right minus right, about its mean
    expected = clustered_stderr(difference, groups[judged])
    np.testing.assert_allclose(difference_stderr(first - second, groups)[0], expected, rtol=1e-4)


def image_dataset(count: int) -> ProbeDataset:
    items = [
        ProbeExample("q", f" {answer}", answer == "yes", n, lambda n=n: [n % count], f"picture {n % count}")
        for n in range(6)
        for answer in ("yes", "no")
    ]
    return ProbeDataset(items, {}, {"task": "t"}, bare_questions=True)


def test_swapped_images_are_those_of_other_documents() -> None:
    answers = image_dataset(3)
    for item, before in zip(swap_images(answers, 0).examples, answers.examples, strict=True):
        assert item.load_images is not None and before.load_images is not None
        assert item.load_images() != before.load_images() and item.answer == before.answer
    with pytest.raises(ProbeError, match="different knowledge"):
        swap_images(image_dataset(1), 0)


def test_a_vision_language_model_is_probed_without_images_and_with_other_images(
    vlm_checkpoint: Callable[[str], str], tmp_path: Path
) -> None:
    lines = []
    for n in range(12):
        factories_vlm.random_image(n).save(tmp_path / f"{n}.png")
        for label in ("gold", "hallucinated"):
            record = {"question_id": n, "question": "Is it?", "answer": label[:4], "label": label}
            lines.append(json.dumps({**record, "image_path": f"{n}.png"}) + "\n")
    (tmp_path / "lines.jsonl").write_text("".join(lines))
    common = (
        "probe", "--model", "vlm", "--model_args", f"pretrained={vlm_checkpoint('llava')},dtype=float32",
        "--sequences", "lines.jsonl", "--images", ".", "--device", "cpu", "--control", "no-context",
    )  # fmt: skip
    done = truthgate(*common, "--control", "swapped-context", "-o", "a.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(TruthScores.load(tmp_path / "a.npz").controls) == {"no-context", "swapped-context"}
    done = truthgate(*common, "--image", "black", "-o", "b.npz", cwd=tmp_path)
    assert done.returncode == 1 and "--image black shows no image that --control no-context" in done.stderr
    done = truthgate(*common, "--surface-matched", "-o", "b.npz", cwd=tmp_path)
    assert done.returncode == 1 and "--surface-matched is for tasks" in done.stderr
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--control", "surfac"), "unknown control 'surfac': expected one of surface, no-context"),
        (("--score", "f1"), "unknown score 'f1'"),
        (("--tasks", "silent", "--control", "no-context"), "'silent' does not say which field"),
        (("--tasks", "silent", "--score", "context-gain"), "'silent' does not say which field"),
        (("--tasks", "uneven", "--surface-matched"), "leaves nothing of uneven"),
    ],
)
def test_a_mistake_is_one_line(
    more: tuple[str, ...], message: str, tasks: Path, checkpoint: str, tmp_path: Path
) -> None:
    done = truthgate(
        "probe", "--model_args", f"pretrained={checkpoint}", "--include_path", str(tasks), "--device", "cpu",
        "--output", "a.npz", "--tasks", "length_decides", *more, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert message in done.stderr and not list(tmp_path.iterdir())


def test_the_page_says_what_the_figures_say() -> None:
    """docs/controls.md's tables are those of docs/controls.json, and name the commands' documents."""
    spec = importlib.util.spec_from_file_location("make_controls", ROOT / "studies" / "make_controls.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    results = json.loads((ROOT / "docs" / "controls.json").read_text())
    page = (ROOT / "docs" / "controls.md").read_text()
    assert script.BEGIN + script.table(results) + script.END in page
    for run in results["answers"].values():
        assert run["documents"] == 292 and set(run["controls"]) == set(CONTROLS)
