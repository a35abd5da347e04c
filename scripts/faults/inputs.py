"""Inputs that vanish while a command runs, memory that ends, and models that give NaN."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.faults.commands import Disturbed, Probe, load
from scripts.faults.processes import Command, FaultError, run
from scripts.faults.signals import Tally

_IMAGE_DOCUMENTS = 12


class ImageProbe(Probe):
    """`truthgate probe --sequences` of a tiny LLaVA on images."""

    name = "probe --sequences"

    def __init__(self, work: Path, model: str, inputs: Path) -> None:
        """See `Probe`.

        Args:
            work: As there.
            model: The model's folder.
            inputs: A folder of `sequences.jsonl` and its images.
        """
        self.arguments = [
            "probe", "--model", "vlm", "--model_args", f"pretrained={model}", "--sequences",
            str(inputs / "sequences.jsonl"), "--images", str(inputs), "--batch_size", "1", "--folds", "1",
            "--solver", "newton", "--device", "cpu", "--output", "a.npz",
        ]  # fmt: skip
        Disturbed.__init__(self, work)


def write_sequences(folder: Path) -> None:
    """Write the authors' form of sequences: a right and a wrong answer about each image of noise."""
    from PIL import Image

    folder.mkdir()
    lines = []
    for number in range(_IMAGE_DOCUMENTS):
        noise = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        for answer, label in (("yes", "gold"), ("no", "hallucinated")):
            record = {"question_id": number, "question": "Is there noise?", "answer": answer, "label": label}
            lines.append(json.dumps({**record, "image_path": f"{number}.png"}))
    (folder / "sequences.jsonl").write_text("\n".join(lines))


def remove_while_it_runs(
    command: Disturbed, what: str, files: Sequence[Path], times: int, seed: int, work: Path
) -> Tally:
    """Remove an input at random moments; then put it back, and start again.

    Args:
        command: The command.
        what: What is removed, for the table.
        files: The files, one of which is removed each time.
        times: How many times.
        seed: Of the moments, which are uniform over the undisturbed run's time.
        work: A folder for the cases.
    """
    tally = Tally(f"{what} removed at a random moment of `{command.name}`", command.model)
    rng = random.Random(f"{what}:{seed}")
    for _ in range(times):
        folder, file = work / "vanished", rng.choice(list(files))
        shutil.rmtree(folder, ignore_errors=True)
        command.prepare(folder)
        moment, content = rng.uniform(0, command.undisturbed.seconds), file.read_bytes()
        try:
            running = Command(command.arguments, folder)
            running.wait_until(moment)
            file.unlink()
            ended = running.wait()
            file.write_bytes(content)
            if ended.status == 0:
                tally.see("read before")
                command.check(folder)
            else:
                tally.lines.append(ended.require_one_line())
                tally.see("one line")
                if command.check_after_fault(folder):
                    raise FaultError("an error, and a result")
                command.run(folder).require_success()
                command.check(folder)
            failure = None
        except FaultError as error:
            failure = str(error)
        finally:
            file.write_bytes(content)
        tally.add(f"{moment:.3f} s", failure)
    return tally


def end_memory(command: Probe, work: Path) -> Tally:
    """Let the first batch of a probe ask torch for more memory than there is."""
    tally = Tally("out of memory in the first batch of `probe`", command.model)
    folder = work / "memory"
    command.prepare(folder)
    arguments = list(command.arguments)
    arguments[arguments.index("--batch_size") + 1] = "8"
    try:
        ended = run(arguments, folder, before=_allocate_too_much_once).require_success()
        if "out of memory: continuing with batches of" not in ended.err:
            raise FaultError(f"no batch was made smaller: {ended.err[-400:]}")
        tally.see("smaller batches")
        tally.lines.append(next(line for line in ended.err.splitlines() if "out of memory" in line))
        ours, expected = load(folder / "a.npz"), load(command.expected / "a.npz")
        difference = float(np.abs(ours.probe_weight - expected.probe_weight).max())
        scale = float(np.abs(expected.probe_weight).max())
        if not np.array_equal(ours.scores, expected.scores) or difference > 1e-3 * scale:
            raise FaultError(f"scores differ, or weights by {difference / scale:.1e} of the largest")
        failure = None
    except FaultError as error:
        failure = str(error)
    tally.add("first batch", failure)
    return tally


def _allocate_too_much_once() -> None:
    import torch

    from truthgate_eval.inference.batching import TokenBudget

    original: Any = TokenBudget.run_batches
    calls: list[int] = []

    def run_batches(self: TokenBudget, prompts: Any, run: Callable[[Any], None], **options: Any) -> None:
        def run_one(batch: Any) -> None:
            calls.append(1)
            if len(calls) == 1:
                torch.empty(1 << 50)  # the allocator's own error
            run(batch)

        original(self, prompts, run_one, **options)

    TokenBudget.run_batches = run_batches


def break_layers(
    model: Path, commands: Callable[[str], Sequence[Sequence[str]]], artifact: Path, work: Path
) -> Tally:
    """Put one NaN into the output projection of each layer in turn, in the checkpoint's file.

    Args:
        model: The folder of a tiny Llama.
        commands: The commands for a model's folder.
        artifact: Its truth scores, which every command finds as `a.npz`.
        work: A folder for the cases.
    """
    from safetensors.torch import load_file, save_file

    tally = Tally("NaN from one layer: `probe`, `sweep`", "tiny")
    weights = load_file(model / "model.safetensors")
    for name in sorted(weights):
        if (found := re.search(r"layers\.(\d+)\.self_attn\.o_proj\.weight", name)) is None:
            continue
        broken = work / f"broken-{found[1]}"
        shutil.copytree(model, broken)
        changed = {**weights, name: weights[name].clone()}
        changed[name][0, 0] = float("nan")
        save_file(changed, broken / "model.safetensors", metadata={"format": "pt"})
        for arguments in commands(str(broken)):
            folder = work / f"nan-{found[1]}-{arguments[0]}-{tally.tried}"
            folder.mkdir()
            (folder / "a.npz").write_bytes(artifact.read_bytes())
            try:
                line = run(arguments, folder).require_one_line()
                tally.lines.append(line)
                if not re.search(rf"layers?[ .]{found[1]}\b", line):
                    raise FaultError(f"layer {found[1]} is not named: {line}")
                if (folder / "b.npz").exists() or (folder / "a.npz").read_bytes() != artifact.read_bytes():
                    raise FaultError("an error, and a result")
                tally.see("named in one line")
                failure = None
            except FaultError as error:
                failure = str(error)
            tally.add(f"layer {found[1]}, {arguments[0]}", failure)
    return tally
