"""lm-eval's two caches: of answers, `--use_cache`, and of prompts, `--cache_requests`.

A run with a cache must equal the same run without it, whatever ran before it on that cache.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import lm_eval.caching.cache
import numpy as np
import pytest
import torch
import transformers as hf
from helpers import tiny_models as factories
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from truthgate_eval.data.halueval import documents
from truthgate_eval.errors import ModelError, TaskError
from truthgate_eval.gating.gate import random_gate
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval.model import GatedHF
from truthgate_eval.inference import greedy
from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.paths import shipped

OURS = shipped("tasks") / "lm_eval"
LIMIT = 4


def save_scores(path: Path, seed: int, **metadata: Any) -> str:
    values = np.random.default_rng(seed).uniform(size=(3, 4))
    return str(TruthScores(values, metadata={"model": "tiny", "site": "post", **metadata}).save(path))


@pytest.fixture
def scores(tmp_path: Path) -> str:
    return save_scores(tmp_path / "scores.npz", 0)


@pytest.fixture
def prompt_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `--cache_requests`, which is inside of lm-eval's installation else."""
    monkeypatch.setattr(lm_eval.caching.cache, "PATH", str(tmp_path / "prompts"))
    return tmp_path / "prompts"


def evaluate(model: Any, model_args: Any, task: str, metadata: dict[str, Any], **options: Any) -> list[Any]:
    """Every sample's document, requests and answers."""
    manager = TaskManager(
        include_path=options.pop("folder", str(OURS)), include_defaults=False, metadata=metadata
    )
    options = {"limit": LIMIT, **options}
    run = lm_eval.simple_evaluate(
        model=model, model_args=model_args, tasks=[task], task_manager=manager, metadata=metadata, device="cpu",
        bootstrap_iters=0, verbosity="ERROR", **options,
    )  # fmt: skip
    assert run is not None
    return [(s["doc_id"], s["doc"], s["arguments"], s["resps"]) for s in run["samples"][task]]


class TestAnswers:
    """`--use_cache`"""

    @pytest.fixture
    def run(
        self, checkpoint: str, halueval_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., tuple[list[Any], int]]:
        """Samples of a run, and how many requests the model answered itself."""
        asked: list[int] = []
        for name in ("loglikelihood", "generate_until"):
            original = getattr(GatedHF, name)

            def count(lm: Any, requests: Any, original: Any = original, **options: Any) -> Any:
                asked.append(len(requests))
                return original(lm, requests, **options)

            monkeypatch.setattr(GatedHF, name, count)

        def run(
            task: str = "halueval_qa", *, cached: bool = True, **model_args: Any
        ) -> tuple[list[Any], int]:
            asked.clear()
            lm = model_args.pop("lm", None)
            given = {"pretrained": checkpoint, "engine": "off", **model_args}
            cache = {"use_cache": str(tmp_path / "answers")} if cached else {}
            metadata = {"halueval_path": halueval_folder}
            samples = evaluate(lm or "gated_hf", None if lm else given, task, metadata, **cache)
            return samples, sum(asked)

        return run

    @pytest.mark.parametrize("task", ["halueval_qa", "halueval_qa_select"])
    def test_two_gates_in_one_file_give_their_own_answers(self, run: Any, scores: str, task: str) -> None:
        settings = [{"scores": "none"}, {"scores": scores, "lam": 3}, {"scores": scores, "lam": -3}]
        expected = [run(task, cached=False, **gate)[0] for gate in settings]
        assert len({str(samples) for samples in expected}) == 3
        for _ in range(2):
            assert [run(task, **gate)[0] for gate in settings] == expected
        assert [run(task, **gate)[1] for gate in settings] == [0, 0, 0]

    def test_scores_that_changed_under_one_path(self, run: Any, scores: str) -> None:
        gate = {"scores": scores, "lam": 3}
        first, _ = run(**gate)
        save_scores(Path(scores), 7)
        expected, _ = run(cached=False, **gate)
        assert run(**gate) == (expected, LIMIT) and first != expected
        save_scores(Path(scores), 0)
        assert run(**gate) == (first, 0)

    def test_weights_that_changed_under_one_path(self, run: Any, checkpoint: str, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(checkpoint, folder)
        first, _ = run(pretrained=str(folder), scores="none")
        model = hf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.add_(0.5)
        model.save_pretrained(folder)
        expected, _ = run(cached=False, pretrained=str(folder), scores="none")
        assert run(pretrained=str(folder), scores="none") == (expected, LIMIT) and first != expected

    def test_the_gate_of_a_loaded_model_that_is_replaced_and_removed(
        self, run: Any, checkpoint: str, scores: str
    ) -> None:
        lm = GatedHF(checkpoint, scores=scores, lam=3, device="cpu", engine="off")
        gated, _ = run(lm=lm)
        lm.gate_handle.set(random_gate((3, 4), seed=1))
        other, asked = run(lm=lm)
        lm.gate_handle.remove()
        # lm-eval leaves its hook in the model: a run without a cache writes into it, too.
        expected, _ = run(lm=lm, cached=False)
        assert run(lm=lm) == (expected, 0)
        assert asked == LIMIT and expected == run(cached=False, scores="none")[0]
        assert len({str(samples) for samples in (gated, other, expected)}) == 3
        assert run(scores=scores, lam=3) == (gated, 0)

    def test_every_setting_that_decides_an_answer_is_in_the_key(self, checkpoint: str, scores: str) -> None:
        def key(**arguments: Any) -> str:
            lm = GatedHF(checkpoint, device="cpu", **{"scores": scores, "lam": 1, **arguments})
            cache = SimpleNamespace(encode_key=str)
            lm.set_cache_hook(SimpleNamespace(dbdict=cache))
            return cache.encode_key("request")

        settings: list[dict[str, Any]] = [
            {}, {"lam": 2}, {"norm": "minmax"}, {"site": "pre"}, {"layers": "0-1"}, {"mode": "folded"},
            {"scores": "random:1"}, {"scores": "random:2"}, {"scores": "none"}, {"engine": "off"},
            {"dtype": "bfloat16"}, {"max_length": 64}, {"add_bos_token": True}, {"enable_thinking": False},
        ]  # fmt: skip
        keys = [key(**own) for own in settings]
        assert len(set(keys)) == len(settings)
        assert key(batch_size=4) == keys[0]

    @pytest.mark.parametrize("task", ["halueval_qa", "halueval_qa_select"])
    def test_a_run_that_is_interrupted_goes_on_after_its_last_batch(
        self, run: Any, task: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Answers of the shared-prefix engine enter the cache batch by batch, as `hf`'s own do."""
        # Four prompts that share nothing are four batches.
        monkeypatch.setattr(TokenBudget, "next_batch_size", lambda *_: 1)
        monkeypatch.setattr(greedy, "plan_prefixes", functools.partial(greedy.plan_prefixes, share=False))
        settings = {"scores": "none", "engine": "auto"}
        expected, total = run(task, cached=False, **settings)
        original, batches = TokenBudget.run_batches, list[int]()

        def interrupted(self: Any, prompts: Any, run_batch: Any, **options: Any) -> None:
            def second_fails(batch: Any) -> None:
                batches.append(len(batch))
                if len(batches) == 2:
                    raise KeyboardInterrupt
                run_batch(batch)

            original(self, prompts, second_fails, **options)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(TokenBudget, "run_batches", interrupted)
            run(task, **settings)
        found, asked = run(task, **settings)
        assert found == expected and 0 < asked < total

    def test_a_cache_without_keys_of_its_own_is_refused(self, checkpoint: str) -> None:
        lm = GatedHF(checkpoint, scores="none", device="cpu")
        with pytest.raises(ModelError, match="cannot tell gates apart: leave --use_cache out"):
            lm.set_cache_hook(SimpleNamespace(dbdict={}))
        assert lm.cache_hook.dbdict is None


class TestPrompts:
    """`--cache_requests`"""

    @pytest.fixture
    def changes(
        self, tmp_path: Path, halueval_folder: str
    ) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
        """By option: a task, and two settings of its metadata."""
        other = tmp_path / "other"
        other.mkdir()
        rows = [json.loads(line) for line in (Path(halueval_folder) / "qa_data.jsonl").open()]
        changed = [{**row, "question": f"Tell me: {row['question']}"} for row in rows]
        (other / "qa_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
        for name in ("one", "two"):
            (tmp_path / f"{name}.txt").write_text(f"Template {name}: {{question}} {{answer}} Judgement:")
        probed = [
            save_scores(tmp_path / f"{n}.npz", n, rows={"halueval/qa": list(range(n, 30))}) for n in (0, 9)
        ]
        path = {"halueval_path": halueval_folder}
        official = "halueval_qa_official"
        return {
            "halueval_path": ("halueval_qa", path, {"halueval_path": str(other)}),
            "subset": ("halueval_qa", {**path, "subset": "selection"}, {**path, "subset": "evaluation"}),
            "exclude_rows_of": (
                "halueval_qa_select", {**path, "exclude_rows_of": probed[0]}, {**path, "exclude_rows_of": probed[1]}
            ),
            "instruction_file": (
                official, {**path, "instruction_file": str(tmp_path / "one.txt")},
                {**path, "instruction_file": str(tmp_path / "two.txt")},
            ),
        }  # fmt: skip

    @pytest.mark.parametrize("rewrite", [False, True])
    @pytest.mark.parametrize("option", ["halueval_path", "subset", "exclude_rows_of", "instruction_file"])
    def test_two_settings_of_the_metadata_give_their_own_documents(
        self, option: str, rewrite: bool, changes: Any, prompt_cache: Path
    ) -> None:
        task, one, two = changes[option]
        expected = [samples_without_answers(evaluate("dummy", None, task, own)) for own in (one, two)]
        assert expected[0] != expected[1]
        for _ in range(2):
            cached = [
                evaluate("dummy", None, task, own, cache_requests=True, rewrite_requests_cache=rewrite)
                for own in (one, two)
            ]
            assert [samples_without_answers(run) for run in cached] == expected
        assert len(list(prompt_cache.iterdir())) == 2
        evaluate("dummy", None, task, one, delete_requests_cache=True)
        assert not list(prompt_cache.iterdir())

    @pytest.mark.parametrize(
        "change",
        [
            {"limit": None, "samples": {"halueval_qa": [20, 30, 40]}},
            {"num_fewshot": 2, "fewshot_random_seed": 5},
            {"gen_kwargs": {"max_gen_toks": 3}},
        ],
        ids=["samples", "seed", "gen_kwargs"],
    )
    def test_every_option_that_decides_a_request_is_in_the_key(
        self, change: dict[str, Any], halueval_folder: str, checkpoint: str, prompt_cache: Path
    ) -> None:
        base = {name: {"num_fewshot": 2}.get(name) for name in change if name == "num_fewshot"}
        model = {"pretrained": checkpoint, "scores": "none"}
        metadata = {"halueval_path": halueval_folder}
        first = evaluate("gated_hf", model, "halueval_qa", metadata, cache_requests=True, **base)
        found = evaluate("gated_hf", model, "halueval_qa", metadata, cache_requests=True, **change)
        assert found == evaluate("gated_hf", model, "halueval_qa", metadata, **change)
        assert [sample[2] for sample in found] != [sample[2] for sample in first]

    def test_our_tasks_under_hf_with_a_chat_template_that_changed(
        self, halueval_folder: str, checkpoint: str, prompt_cache: Path
    ) -> None:
        metadata = {"halueval_path": halueval_folder}
        for template in ("{{ messages[0].content }}", "[{{ messages[0].content }}]"):
            tokenizer = factories.tiny_tokenizer()
            tokenizer.chat_template = template
            lm = HFLM(checkpoint, tokenizer=tokenizer, device="cpu")
            found = evaluate(lm, None, "halueval_qa", metadata, cache_requests=True, apply_chat_template=True)
            assert found[0][2][0][0].startswith("[") is template.startswith("[")

    def test_prompts_are_cached_for_all_gates_together(
        self, halueval_folder: str, checkpoint: str, scores: str, prompt_cache: Path, monkeypatch: Any
    ) -> None:
        metadata = {"halueval_path": halueval_folder}
        plain, gated = {"scores": "none"}, {"scores": scores, "lam": 3}
        expected = [
            evaluate("gated_hf", {"pretrained": checkpoint, **gate}, "halueval_qa", metadata)
            for gate in (plain, gated)
        ]
        evaluate(
            "gated_hf", {"pretrained": checkpoint, **plain}, "halueval_qa", metadata, cache_requests=True
        )
        (file,) = prompt_cache.iterdir()
        monkeypatch.setattr(
            lm_eval.api.task.ConfigurableTask, "construct_requests", None
        )  # a hit builds nothing
        found = [
            evaluate(
                "gated_hf", {"pretrained": checkpoint, **gate}, "halueval_qa", metadata, cache_requests=True
            )
            for gate in (plain, gated)
        ]
        assert found == expected and found[0] != found[1] and list(prompt_cache.iterdir()) == [file]

    def test_cached_requests_about_other_documents_are_refused(
        self, halueval_folder: str, prompt_cache: Path
    ) -> None:
        import dill

        metadata = {"halueval_path": halueval_folder}
        evaluate("dummy", None, "halueval_qa", metadata, cache_requests=True)
        (file,) = prompt_cache.iterdir()
        groups = dill.loads(file.read_bytes())
        groups[1][0].doc["question"] = "Another one?"
        file.write_bytes(dill.dumps(groups))
        with pytest.raises(
            TaskError, match=r"'halueval_qa', document 1: .* another document; --cache_requests"
        ):
            evaluate("dummy", None, "halueval_qa", metadata, cache_requests=True)
        evaluate("dummy", None, "halueval_qa", metadata, cache_requests=True, rewrite_requests_cache=True)
        evaluate("dummy", None, "halueval_qa", metadata, cache_requests=True)

    @pytest.fixture
    def their_task(self, tmp_path: Path) -> Callable[[str], str]:
        """Writes a task of a user's own, with a word in its questions; its folder."""
        folder = tmp_path / "theirs"
        folder.mkdir()

        def write(word: str) -> str:
            rows = [{"q": f"{word} {n}?", "a": "yes"} for n in range(LIMIT)]
            data = folder / "rows.json"
            data.write_text(json.dumps(rows))
            (folder / "theirs.yaml").write_text(
                "task: theirs\ndataset_path: json\ndataset_kwargs: {data_files: {test: " + str(data) + "}}\n"
                "test_split: test\noutput_type: generate_until\ndoc_to_text: q\ndoc_to_target: a\n"
                'generation_kwargs: {until: ["."], max_gen_toks: 2}\nmetric_list: [{metric: exact_match}]\n'
            )
            return str(folder)

        return write

    def test_a_gated_models_prompts_of_any_task_are_those_of_its_documents(
        self, their_task: Any, checkpoint: str, prompt_cache: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
        model = {"pretrained": checkpoint, "scores": "none"}
        for word in ("first", "second"):
            folder = their_task(word)
            found = evaluate("gated_hf", model, "theirs", {}, folder=folder, cache_requests=True)
            assert [sample[2][0][0] for sample in found] == [f"{word} {n}?" for n in range(LIMIT)]

    def test_lm_eval_itself_still_takes_stale_prompts(
        self, their_task: Any, prompt_cache: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        """Where this fails, lm-eval's key has the documents: `install_evaluate_patch` and the class can go."""
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
        for word in ("first", "second"):
            found = evaluate("dummy", None, "theirs", {}, folder=their_task(word), cache_requests=True)
            assert found[0][2][0][0] == "first 0?" and found[0][1]["q"] == f"{word} 0?"

    def test_the_key_has_the_chat_template_and_not_its_path_alone(self, checkpoint: str) -> None:
        names = []
        for template in ("{{ messages[0].content }}", "[{{ messages[0].content }}]"):
            tokenizer = factories.tiny_tokenizer()
            tokenizer.chat_template = template
            lm = GatedHF(checkpoint, scores="none", tokenizer=tokenizer, device="cpu")
            names.append(lm.tokenizer_name)
        assert names[0] != names[1]


def samples_without_answers(run: list[Any]) -> list[Any]:
    """The dummy model's log-likelihoods are random."""
    return [sample[:3] for sample in run]


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", "gated_hf", "--device", "cpu", "--limit", str(LIMIT),
         "--log_samples", *arguments],
        capture_output=True, text=True, check=False, cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "LM_HARNESS_CACHE_PATH": str(cwd / "prompts")},
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_line_with_both_caches_gives_the_answers_without_them(
    checkpoint: str, halueval_folder: str, scores: str, tmp_path: Path
) -> None:
    def run(name: str, seed: int, subset: str, *caches: str) -> list[Any]:
        save_scores(Path(scores), seed)
        done = command(
            "--model_args", f"pretrained={checkpoint},scores={scores},lam=3", "--tasks", "halueval_qa",
            "--metadata", json.dumps({"halueval_path": halueval_folder, "subset": subset}), "--output_path", name,
            *caches, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        (file,) = (tmp_path / name).rglob("samples_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return [(row["doc"], row["arguments"], row["resps"]) for row in rows]

    caches = ("--use_cache", "answers", "--cache_requests", "true")
    run("first", 0, "selection", *caches)
    found = run("cached", 7, "evaluation", *caches)
    assert found == run("plain", 7, "evaluation")
    wanted = documents("qa", halueval_path=halueval_folder, subset="evaluation")[:LIMIT]
    assert [doc["row"] for doc, _, _ in found] == [doc["row"] for doc in wanted]


KILLED = """
import functools, os, runpy, signal
from truthgate_eval.inference import greedy
from truthgate_eval.inference.batching import TokenBudget

greedy.plan_prefixes = functools.partial(greedy.plan_prefixes, share=False)
TokenBudget.next_batch_size = lambda *_: 1
original, batches = TokenBudget.run_batches, []

def run_batches(self, prompts, run, **options):
    def third_kills(batch):
        batches.append(1)
        if len(batches) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        run(batch)
    original(self, prompts, third_kills, **options)

TokenBudget.run_batches = run_batches
runpy.run_module("lm_eval", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_the_same_command_line_goes_on_after_a_kill(
    checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    status, logs = [], ""
    for start in (["-c", KILLED], ["-m", "lm_eval"]):
        done = subprocess.run(
            [sys.executable, *start, "--model", "gated_hf", "--model_args", f"pretrained={checkpoint},scores=none",
             "--tasks", "halueval_qa", "--metadata", json.dumps({"halueval_path": halueval_folder}),
             "--device", "cpu", "--limit", str(LIMIT), "--output_path", "out", "--use_cache", "answers"],
            cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        status.append(done.returncode)
        logs = done.stdout + done.stderr
    assert status == [-9, 0], logs[-2000:]
    assert re.search(r"Cached requests: [1-9], Requests remaining: [1-9]", logs), logs[-2000:]
    assert list((tmp_path / "out").rglob("results_*.json"))
