"""Names and texts that would act in an output if it took them for its own, and a run and an artifact of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers import result_files
from truthgate_eval.gating.scores import TruthScores

# What some output would obey: a terminal, Markdown, HTML, LaTeX, a spreadsheet, a figure, a reader's eye.
HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07", "\x9b31m", "\u202egnp.exe", "a\u2028b", "[/red]", "<script>alert(1)</script>", "a|b",
    r"\input{/etc/passwd}", "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "$\\frac{", "\ud800", "*[x](javascript:y)",
]  # fmt: skip
# What a terminal obeys and no table of ours has: blinking, a title, movement, a link, the clipboard.
TERMINAL = [
    "\x1b[5;41mblink", "\x1b]0;owned\x07", "\x1b[2J\x1b[H", "\x1b]8;;http://evil/\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;b3duZWQ=\x07", "\x9b31mC1", "\r\x1b[1Aover", "\x08\x7f\x00bell\x07", "\x1bPdcs\x1b\\",
]  # fmt: skip
MARKUP = [
    *(text for text in HOSTILE if text.isprintable()), "[bold]x[/bold]", "\"' onmouseover=alert(1)", "&lt;b&gt;", "`x`",
]  # fmt: skip


def hostile_run(folder: Path, name: str, wrong: list[int], *, task: str = "sums", gate: bool = False) -> Path:
    """A run of lm-eval in which model, prompt, answers and arguments are a text; 8 documents."""
    answers = result_files.answers(result_files.golds(8), wrong)
    run = result_files.lm_eval_run(
        folder, {task: answers}, gate=result_files.LLM if gate else result_files.VANILLA, prompt=name,
        model_name=name, model_args={"pretrained": name, "token": "hf_" + "a" * 34, "password": "opensesame"},
    )  # fmt: skip
    file = result_files.only_file(run, "samples_*")
    samples = result_files.read_lines(file)
    for sample in samples:
        sample["resps"] = [[f"{sample['resps'][0][0]} {name}"]]
        sample["doc"] |= {"question": f"{sample['doc']['question']} {name}", name: name}
    result_files.write_lines(file, samples)
    return run


def hostile_artifact(path: Path, name: str, seed: int = 0) -> Path:
    """An artifact of 3 x 4 heads whose metadata are a text."""
    scores = np.random.default_rng(seed).uniform(0.5, 1, (3, 4))
    point = {"lam": 1.0, "norm": "centered", "site": "post", "value": 0.5, "stderr": 0.1, "documents": 9}
    metadata = {
        **dict.fromkeys(("model", "task", "kind", "note", "imported_from", "revision", "format"), name),
        "recommended": {
            "lam": 1.0, "norm": "centered", "site": "post", "task": name, "metric": name,
            "conditions": {name: name}, "points": [point, {**point, "lam": 0.0}],
        },
        "own_answers": {
            "documents": 3, "accuracy": 0.5, "log_probability": -1.0, "words": -7.0, "says": name,
            "spellings": [
                {"answers": [name, name], "log_probability": -2.0},
                {"answers": ["yes", "no"], "log_probability": -7.0, "probed": True},
            ],
        },
        "hub": {"repo": name, "commit": name}, name: {name: name},
    }  # fmt: skip
    controls = {
        "controls": {"surface": np.array([[0.99]])},
        "control_stderr": {"surface": np.array([[0.01]])},
    }
    return TruthScores(scores, stderr=scores / 50, metadata=metadata, **controls).save(path)
