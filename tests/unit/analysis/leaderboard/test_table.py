"""Leaderboards of runs: roles, rows, refusals, warnings, statistics and formats; and one planted head."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers import result_files as kit
from rich.console import Console

from truthgate_eval.analysis.leaderboard.formats import as_csv, latex, markdown, terminal_tables
from truthgate_eval.analysis.leaderboard.published import data_set_of, paper_name, published_rows
from truthgate_eval.analysis.leaderboard.table import make_leaderboard
from truthgate_eval.analysis.runs.methods import make_entries, method_of
from truthgate_eval.analysis.runs.run import RunError, read_run
from truthgate_eval.cli import compare as cli_compare
from truthgate_eval.cli import main as cli
from truthgate_eval.errors import TruthGateError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.metrics import yes_no as judgement

NUMBER = 40
GOLDS = kit.golds(NUMBER)
BAD, GOOD = kit.answers(GOLDS, range(5, 35)), kit.answers(GOLDS, range(15, 20))
HALUEVAL = {"halueval": ["halueval_qa", "halueval_dialogue"]}


def board(*runs: Path | tuple[str, Path], **options: Any) -> Any:
    given = [run if isinstance(run, tuple) else (None, run) for run in runs]
    entries = make_entries([(name, read_run(path)) for name, path in given])
    return make_leaderboard(entries, **{"resamples": 500, **options})


def truthgate(*arguments: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of the command line, run in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        consoles = mock.patch.multiple(cli_compare, console=Console(width=160), say=out_line)
        with mock.patch.object(sys, "argv", ["truthgate", *arguments]), consoles:
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0
    return code, out.getvalue(), err.getvalue()


def out_line(line: str) -> None:
    sys.stdout.write(line + "\n")


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """A bad vanilla run, a good gated one, and three random gates, on two tasks of HaluEval."""
    worse = [kit.answers(GOLDS, range(35 - seed)) for seed in range(3)]
    made = {"vanilla": (BAD, kit.VANILLA), "gated": (GOOD, kit.LLM)}
    made |= {f"random-{seed}": (worse[seed], kit.random(seed)) for seed in range(3)}
    return {
        name: kit.lm_eval_run(
            tmp_path / name, {"halueval_qa": parsed, "halueval_dialogue": BAD}, gate=gate, groups=HALUEVAL
        )
        for name, (parsed, gate) in made.items()
    }


def test_a_leaderboard_has_the_papers_rows_and_the_metrics_of_judgement(runs: dict[str, Path]) -> None:
    made = board(*reversed(runs.values()), published="none")
    [halueval] = made.boards
    assert [row.label for row in halueval.rows] == ["vanilla", "TruthProbe_LLM", "random"]
    assert [part.name for part in halueval.parts] == ["qa", "dialogue", "mean"]
    assert (made.baseline.name, halueval.parts[0].documents, halueval.parts[0].clusters) == (
        "vanilla",
        40,
        40,
    )
    pairs = list(zip(GOLDS, GOOD, strict=True))
    cells = halueval.rows[1].cells["qa"]
    for name in ("f1", "precision", "recall"):
        assert cells[name].mean == pytest.approx(getattr(judgement, name)(pairs))
    assert cells["acc"].mean == 35 / 40
    assert halueval.rows[1].cells["mean"]["acc"].mean == pytest.approx((35 + 10) / 80)
    random = halueval.rows[2].cells["qa"]["acc"]
    shares = [5 / 40, 6 / 40, 7 / 40]
    assert (random.mean, random.sd, random.runs) == (pytest.approx(np.mean(shares)), pytest.approx(1 / 40), 3)


def test_a_planted_difference_is_found_and_an_equal_run_is_no_different(runs: dict[str, Path]) -> None:
    made = board(runs["vanilla"], runs["gated"])
    verdicts = {one.part: one.verdict for one in made.boards[0].comparisons}
    assert verdicts == {"qa": "better", "dialogue": "no difference", "mean": "better"}
    qa = made.boards[0].comparisons[0]
    assert (qa.questions, qa.only_run, qa.only_baseline) == (40, 25, 0)
    accuracy = qa.differences["acc"]
    assert accuracy.value == pytest.approx(25 / 40) and 0.4 < accuracy.low < 25 / 40 < accuracy.high < 0.8
    assert qa.p == pytest.approx(2 * 0.5**25) and qa.p_corrected == pytest.approx(3 * qa.p)
    back = board(runs["vanilla"], runs["gated"], baseline="TruthProbe_LLM").boards[0].comparisons[0]
    assert back.verdict == "worse" and back.differences["acc"].value == -accuracy.value


def test_documents_that_share_a_picture_can_undo_a_small_p_value(tmp_path: Path) -> None:
    # All the gain is on two of ten pictures: as 20 documents it is much, as 2 pictures it is little.
    bad = kit.answers(kit.golds(100), range(0, 18))
    base = kit.lmms_eval_run(tmp_path / "a", {"poll_random": bad}, per_picture=10)
    best = kit.lmms_eval_run(tmp_path / "b", {"poll_random": kit.golds(100)}, gate=kit.LLM, per_picture=10)
    made = board(base, best, correction="none")
    [one] = made.boards[0].comparisons
    assert made.boards[0].parts[0].clusters == 10 and one.p < 0.001
    assert one.differences["acc"].low == 0 and one.verdict == "no difference"
    assert "poll_random: intervals from so few images (10) are too narrow" in made.warnings


def test_questions_of_several_splits_count_once_in_the_test(tmp_path: Path) -> None:
    tasks = {f"pope_coco_{split}": BAD for split in ("random", "popular", "adversarial")}
    better = dict.fromkeys(tasks, GOOD)
    groups = {"pope_coco": list(tasks)}
    base = kit.lmms_eval_run(tmp_path / "a", tasks, groups=groups)
    gated = kit.lmms_eval_run(tmp_path / "b", better, groups=groups, gate=kit.LLM)
    made = board(base, gated)
    mean = made.boards[0].comparisons[-1]
    # 20 yes questions that the splits share, and 20 no questions of each split's own.
    assert (mean.part, mean.questions) == ("mean", 20 + 3 * 20)
    [paper, *_] = [row for row in made.boards[0].rows if row.origin == "published"]
    assert list(paper.cells) == ["mean"] and paper.cells["mean"]["acc"].mean == 0.869


def test_the_three_sources_of_pope_are_one_leaderboard_as_in_the_paper(tmp_path: Path) -> None:
    splits = ("random", "popular", "adversarial")
    groups = {f"pope_{s}": [f"pope_{s}_{split}" for split in splits] for s in ("coco", "gqa")}
    tasks = {task: BAD for members in groups.values() for task in members}
    made = board(*(kit.lmms_eval_run(tmp_path / name, tasks, groups=groups) for name in "ab"))
    [pope] = made.boards
    assert (pope.name, [part.name for part in pope.parts]) == ("pope_all", ["coco", "gqa", "mean"])
    published = [row for row in pope.rows if row.origin == "published"]
    assert [row.kind for row in published] == ["vanilla", "llm", "mllm", "random"]
    assert published[3].cells["gqa"]["acc"].sd == 0.0028


def test_two_runs_of_the_same_thing_do_not_differ(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["gated"], tmp_path / "again")
    code, out, _ = truthgate("compare", str(runs["gated"]), str(tmp_path / "again"), "--baseline", "gated")
    assert code == 0 and out.count("no difference") == 3
    assert "better" not in out and "worse" not in out


def test_a_missing_document_is_named_and_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    gated = kit.lm_eval_run(tmp_path / "short", {"halueval_qa": GOOD[:-1]}, gate=kit.LLM)
    code, out, err = truthgate("compare", str(runs["vanilla"]), str(gated))
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert 'vanilla has document 39 ("halueval_qa: how much is 39?")' in err
    assert "Run both on the same data with the same --limit" in err
    other = kit.lm_eval_run(tmp_path / "other", {"halueval_qa": GOOD}, gate=kit.LLM, first=100)
    with pytest.raises(
        RunError, match=r"only .*vanilla has document 0 \(.*\), 1 .*, 2 .* and 37 more; only .*other"
    ):
        board(runs["vanilla"], other)


def test_a_truncated_sample_file_ends_in_one_line_and_writes_nothing(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    file = kit.only(runs["gated"], "samples_halueval_qa_*")
    file.write_bytes(file.read_bytes()[:-20])
    target = tmp_path / "board.md"
    code, _, err = truthgate("compare", str(runs["vanilla"]), str(runs["gated"]), "--markdown", str(target))
    assert code == 1 and f"{file}, line 40 is cut off or not JSON" in err and len(err.splitlines()) == 1
    assert not target.exists()


def test_documents_are_matched_by_what_they_are(tmp_path: Path) -> None:
    """A run that counts its documents otherwise has the same ones."""
    one = kit.lm_eval_run(tmp_path / "one", {"halueval_qa": GOOD})
    two = kit.lm_eval_run(tmp_path / "two", {"halueval_qa": GOOD}, gate=kit.LLM)
    file = kit.only(two, "samples_*")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**s, "doc_id": 7 + s["doc_id"]}) + "\n" for s in reversed(lines)))
    [comparison] = board(one, two).boards[0].comparisons
    assert (comparison.only_run, comparison.only_baseline) == (0, 0)


def test_what_else_differs_is_said(tmp_path: Path) -> None:
    one = kit.lm_eval_run(tmp_path / "one", {"halueval_qa": GOOD, "extra": GOOD})
    two = kit.lm_eval_run(
        tmp_path / "two", {"halueval_qa": GOOD}, gate=kit.LLM, prompt="Really?", model_dtype="torch.bfloat16",
        batch_size=8,
    )  # fmt: skip
    file = kit.only(two, "results_*")
    results = json.loads(file.read_text())
    results |= {"chat_template_sha": "abc", "transformers_version": "4.9", "n-shot": {"halueval_qa": 2}}
    results |= {"system_instruction": "Be brief.", "lm_eval_version": "0.4.9", "pretty_env_info": ""}
    file.write_text(json.dumps(results))
    warnings = board(one, two).warnings
    for expected in (
        "TruthProbe_LLM has no extra: not compared with vanilla there",
        "different dtype: torch.float32 (vanilla), torch.bfloat16 (TruthProbe_LLM)",
        "different batch size: 1 (vanilla), 8 (TruthProbe_LLM)",
        "different chat template: not recorded (vanilla), abc (TruthProbe_LLM)",
        "different system instruction: not recorded (vanilla), Be brief. (TruthProbe_LLM)",
        "different lm-eval version: 0.4.13 (vanilla), 0.4.9 (TruthProbe_LLM)",
        "different transformers version: 5.23.0 (vanilla), 4.9 (TruthProbe_LLM)",
        "different torch version: 2.15.0+cu132 (vanilla), not recorded (TruthProbe_LLM)",
        "halueval_qa: different few-shot examples: 0 (vanilla), 2 (TruthProbe_LLM)",
        "halueval_qa: the prompt differs in 40 of 40 documents between vanilla and TruthProbe_LLM",
    ):
        assert expected in warnings
    assert board(
        one, ("same", kit.lm_eval_run(tmp_path / "c", {"halueval_qa": BAD, "extra": BAD}))
    ).warnings == ["several vanilla runs: vanilla, the first given, is the baseline"]


def test_unparsed_answers_are_said(tmp_path: Path) -> None:
    mute = kit.lmms_eval_run(
        tmp_path / "mute", {"poll_random": [None] * 40}, gate=kit.random(1), per_picture=1
    )
    made = board(kit.lmms_eval_run(tmp_path / "v", {"poll_random": GOOD}, per_picture=1), mute)
    assert made.warnings == ["random:1: answers that say neither yes nor no, or both: 100% of poll_random"]


@pytest.mark.parametrize(
    ("host", "gate", "model", "kind"),
    [
        ("lm", kit.VANILLA, "", "vanilla"),
        ("lm", None, "", "vanilla"),
        ("lm", kit.random(3), "", "random"),
        ("lm", {**kit.random(3), "kind": "random"}, "", "random"),
        ("lm", {**kit.VANILLA, "kind": "vanilla"}, "", "vanilla"),
        ("lm", {**kit.LLM, "kind": "scores", "scores": "random-halueval.npz"}, "", "llm"),
        ("lm", {**kit.LLM, "kind": "scores", "scores": "none"}, "", "llm"),
        ("lm", kit.LLM, "", "llm"),
        ("lm", {**kit.LLM, "probed": {"model": None}}, "", "other"),
        ("lmms", kit.LLM, "llava-hf/llava-1.5-7b-hf", "llm"),
        ("lmms", {**kit.LLM, "probed": {"model": "/models/llava-1.5-7b-hf/"}}, "llava-hf/llava-1.5-7b-hf", "mllm"),
        ("lmms", {**kit.LLM, "probed": {"model": "liuhaotian/llava-v1.5-7b"}}, "llava-hf/llava-1.5-7b-hf", "mllm"),
        ("lmms", {**kit.LLM, "probed": {"model": "llava-hf/llava-1.5-7b-hf"}}, "llava-hf/llava-v1.6-vicuna-7b-hf", "other"),
    ],
)  # fmt: skip
def test_a_runs_role_is_read_from_its_gate(
    tmp_path: Path, host: str, gate: Any, model: str, kind: str
) -> None:
    if host == "lm":
        folder = kit.lm_eval_run(tmp_path, {"halueval_qa": GOOD}, gate=gate)
    else:
        folder = kit.lmms_eval_run(tmp_path, {"poll_random": GOOD}, gate=gate, model=model)
    assert method_of(read_run(folder)) == kind


def test_an_adapter_under_the_hosts_own_model_is_not_vanilla(tmp_path: Path) -> None:
    args = {"pretrained": "a", "peft": "gate_dir"}
    folder = kit.lm_eval_run(tmp_path / "peft", {"halueval_qa": GOOD}, gate=None, model_args=args)
    assert method_of(read_run(folder)) == "other"


def test_names_are_unique_or_given(runs: dict[str, Path], tmp_path: Path) -> None:
    again = kit.lm_eval_run(tmp_path / "lam2", {"halueval_qa": GOOD}, gate={**kit.LLM, "lam": 2.0})
    gated = read_run(runs["gated"])
    names = [entry.name for entry in make_entries([(None, gated), (None, read_run(again))])]
    assert names == ["TruthProbe_LLM (gated)", "TruthProbe_LLM (lam2)"]
    assert make_entries([("mine", gated), ("random", gated)])[0].method == "other"
    with pytest.raises(RunError, match="would both be called"):
        make_entries([(None, gated), (None, gated)])
    with pytest.raises(RunError, match="no vanilla run among TruthProbe_LLM"):
        board(runs["gated"], again)
    with pytest.raises(RunError, match="--baseline nobody: no run by that name; expected one of vanilla"):
        board(runs["vanilla"], runs["gated"], baseline="nobody")
    with pytest.raises(RunError, match="one run alone"):
        board(runs["vanilla"])
    with pytest.raises(RunError, match="have no task in common"):
        board(runs["vanilla"], kit.lm_eval_run(tmp_path / "x", {"sums": GOOD}))
    with pytest.raises(TruthGateError, match="unknown correction"):
        board(runs["vanilla"], runs["gated"], correction="tukey")


def test_published_figures_are_the_papers_and_always_marked(runs: dict[str, Path]) -> None:
    assert (
        paper_name("/models/llava-v1.5-7b/") == "llava-1.5-7b" and paper_name("smollm2-135m-instruct") is None
    )
    assert data_set_of(["pope_gqa_random", "pope_gqa_adversarial", "pope_gqa_popular"]) == "gqa"
    assert data_set_of(["pope_gqa_random"]) is None
    assert published_rows("smollm2") == [] and len(published_rows("x", "all")) == 4 + 12 + 2
    with pytest.raises(TruthGateError, match="the paper has no model 'gpt'"):
        published_rows("x", "gpt")
    made = board(runs["vanilla"], runs["gated"])
    rows = [row for row in made.boards[0].rows if row.origin == "published"]
    assert [row.label for row in rows] == ["vanilla, vicuna-7b", "TruthProbe_LLM, vicuna-7b"]
    assert rows[1].cells["qa"]["f1"].mean == 0.4465 and rows[1].gate == "lam=4.5"
    for text in (markdown(made), latex(made)):
        assert all("published" in line for line in text.splitlines() if "vicuna-7b" in line)
    marked = [line for line in csv.DictReader(io.StringIO(as_csv(made))) if "vicuna-7b" in line["run"]]
    assert marked and {line["origin"] for line in marked} == {"published"}


def test_every_format_has_every_figure_in_place(runs: dict[str, Path], tmp_path: Path) -> None:
    files = {
        kind: tmp_path / f"board.{end}"
        for kind, end in (("markdown", "md"), ("csv", "csv"), ("latex", "tex"), ("json", "json"))
    }
    options = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    code, out, err = truthgate("compare", *map(str, runs.values()), *options, "--resamples", "500")
    assert code == 0, err
    assert "TruthProbe_LLM" in out and "87.5" in out and "better" in out
    saved = json.loads(files["json"].read_text())
    assert saved["baseline"] == "vanilla" and len(saved["runs"]) == 5
    assert saved["boards"][0]["rows"][1]["cells"]["qa"]["acc"]["mean"] == 35 / 40
    table = [
        line.strip("| ").split(" | ")
        for line in files["markdown"].read_text().splitlines()
        if line[:1] == "|"
    ]
    assert table[0][:3] == ["gate", "qa acc", "qa F1"]  # the name of the first column is empty
    [gated] = [row for row in table if row[0] == r"TruthProbe\_LLM"]
    assert gated[2] == "87.5"
    lines = list(csv.DictReader(files["csv"].open()))
    [figure] = [
        row
        for row in lines
        if (row["part"], row["run"], row["quantity"]) == ("qa", "TruthProbe_LLM", "acc difference")
    ]
    assert float(figure["value"]) == 25 / 40 and figure["verdict"] == "better"


def test_in_80_columns_no_figure_is_cut(runs: dict[str, Path]) -> None:
    made = board(*runs.values())
    console = Console(width=80, file=io.StringIO())
    for table in terminal_tables(made):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "15.0 ± 2.5" in text and "TruthProbe_LLM" in text and "+62.5" in text
    assert text.count("difference") == text.count(" no ") > 0


def test_latex_is_whole_and_escaped(runs: dict[str, Path], tmp_path: Path) -> None:
    odd = kit.lm_eval_run(tmp_path / "odd", {"halueval_qa": BAD, "halueval_dialogue": BAD}, gate=kit.LLM)
    text = latex(board(runs["vanilla"], (r"50% & [a]_{b}^2 #1 ~ \x $", odd)))
    assert r"50\% \& {[}a]\_\{b\}\textasciicircum{}2 \#1 \textasciitilde{} \textbackslash{}x \$" in text
    blocks = text.split(r"\begin{tabular}{")[1:]
    assert len(blocks) == 2 and text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    for block in blocks:
        width = len(block[: block.index("}")])
        for line in block.splitlines():
            if line.endswith(r"\\"):
                spans = [int(part[0]) - 1 for part in line.split(r"\multicolumn{")[1:]]
                cells = line.replace(r"\&", "").count("&") + 1 + sum(spans)
                assert cells == width, line
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("checked for its form only: no pdflatex here to compile it")
    document = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "t.tex").write_text(document + text + "\n\\end{document}\n")
    done = subprocess.run(
        [program, "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    code, _, err = truthgate("compare", "nowhere", "--csv", str(tmp_path / "none" / "a.csv"))
    assert code == 1 and err.startswith("error: the folder of ")


def planted_checkpoint(folder: Path) -> str:
    """A Llama that says Yes or No by how much head 3 of its only layer writes, and nothing else."""
    import torch
    import transformers as hf
    from helpers import tiny_models as factories

    words = factories.tiny_tokenizer()
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8}
    config = hf.LlamaConfig(
        **shape,
        vocab_size=len(words),
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = hf.LlamaForCausalLM(config)
    token = {text: words(text, add_special_tokens=False).input_ids[0] for text in ":YesNo\n"}
    mark = {text: place for place, text in enumerate(":YesNo", start=1)}
    constant, slice_of_head_3 = 0, 24
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:, constant] = 1
        for text, place in mark.items():
            embedding[token[text], place] = 1
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight[slice_of_head_3, constant] = 1
        attention.o_proj.weight[slice_of_head_3, slice_of_head_3] = 0.1  # writes about 0.56
        for before, after in (":Y", ":N", "Ye", "es", "No", "s\n", "o\n"):
            head[token[after], mark[before]] = 10
        head[token["Y"], slice_of_head_3] = 1
        head[token["N"], constant] = 1
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def evaluate(out: Path, checkpoint: str, data: Path, **gate: Any) -> Path:
    """What lm-eval's command line does with --log_samples, in this process."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(out))
    results = simple_evaluate(
        model="gated_hf", model_args={"pretrained": checkpoint, "device": "cpu", **gate}, tasks=["halueval_qa"],
        metadata={"halueval_path": str(data)}, evaluation_tracker=tracker, bootstrap_iters=0, batch_size=8,
    )  # fmt: skip
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name="halueval_qa", samples=samples["halueval_qa"])
    return out


@pytest.mark.slow
def test_a_head_that_decides_the_answer_is_found_and_another_head_is_not(tmp_path: Path) -> None:
    from truthgate_eval.data.halueval import make_judgement

    rows = [
        {"knowledge": f"{i}.", "question": f"{i}?", "right_answer": f"{i}", "hallucinated_answer": f"not {i}"}
        for i in range(200)
    ]
    wanted = [row for row in rows if make_judgement("qa", 0, row)["hallucinated"] == "yes"][:30]
    wanted += [row for row in rows if make_judgement("qa", 0, row)["hallucinated"] == "no"][:10]
    data = tmp_path / "qa_data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in wanted))
    checkpoint = planted_checkpoint(tmp_path / "planted")
    gates = {}
    for head in (1, 3):
        scores = np.zeros((1, 4))
        scores[0, head] = 1
        gates[head] = TruthScores(scores, metadata={"model": checkpoint}).save(tmp_path / f"head{head}.npz")
    vanilla = evaluate(tmp_path / "vanilla", checkpoint, data, scores="none")
    same = evaluate(tmp_path / "again", checkpoint, data, scores="none")
    runs = [
        (
            f"head {head}",
            evaluate(tmp_path / f"run{head}", checkpoint, data, scores=str(path), lam=2, norm="none"),
        )
        for head, path in gates.items()
    ]
    made = board(vanilla, ("again", same), *runs)
    found = {one.name: one for one in made.boards[0].comparisons}
    assert {name: one.verdict for name, one in found.items()} == {
        "again": "no difference",
        "head 1": "no difference",
        "head 3": "better",
    }
    assert (found["head 3"].only_run, found["head 3"].only_baseline) == (30, 10)
    assert (found["head 1"].only_run, found["head 1"].only_baseline) == (0, 0)
    assert found["head 3"].differences["f1"].value == pytest.approx(2 * 0.75 / 1.75)
