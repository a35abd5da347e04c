"""Fuzz every reader of files that may come from strangers.

    python scripts/fuzz.py --runs 3000                 # for each reader, guided by coverage (needs atheris)
    python scripts/fuzz.py --runs 3000 --random        # the same changes, not guided
    python scripts/fuzz.py --reader artifact --runs 100000

Each input must end in a valid object or in our own error. Others are written to tests/corpus as
crash-SHA1, and the tests read them from then on. At the end there is a line for each reader with the
number of inputs, the slowest in seconds of CPU, and the memory that was added to that of the imports.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests" / "corpus"
sys.path[:0] = [str(ROOT / "tests")]
# Inputs of more coverage that are kept of one reader: so many, and so many bytes.
_MOST_KEPT, _MOST_BYTES = 8, 6000
_MAX_LENGTH = 65_536


def main() -> None:
    """Fuzz one reader or all of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reader", help="only this one")
    parser.add_argument("--runs", type=int, default=3000, help="inputs for each reader, on average")
    parser.add_argument("--seconds", type=int, default=10**6, help="the most for all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", action="store_true", help="without atheris")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not options.random:
        import atheris

        with atheris.instrument_imports(include=["truthgate_eval", "zipfile"]):
            import helpers.readers  # noqa: F401
    from helpers.readers import READERS

    targets = {name: Target(name) for name in ([options.reader] if options.reader else READERS)}
    end = time.monotonic() + options.seconds
    if options.random:
        fuzz_at_random(targets, options.runs, options.seed, end)
        finish(targets)
    fuzz(targets, options.runs * len(targets), options.seed, end)


class Target:
    """One reader, counted and timed.

    Attributes:
        name: The reader's.
        reader: The reader.
        record: What is printed of it.
        errors: Of inputs that did not end as they must.
    """

    def __init__(self, name: str) -> None:
        from helpers.readers import READERS, read_content

        self.name, self.reader, self._read = name, READERS[name], read_content
        for content in self.reader.seeds():  # what is imported at the first use is no input's
            self._read(self.reader, content)
        self.record: dict[str, float] = {"inputs": 0, "crashes": 0, "valid": 0, "slowest": 0.0, "memory": 0.0}
        self.errors: set[str] = set()

    def __call__(self, content: bytes) -> None:
        """Read one input."""
        before, memory = time.process_time(), _peak_memory()
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                message = self._read(self.reader, content)
        except Exception:  # whatever is not ours is what is looked for
            self._keep_crash(content)
            message = ""
        self.record["inputs"] += 1
        self.record["valid"] += message is None
        self.record["slowest"] = max(self.record["slowest"], time.process_time() - before)
        self.record["memory"] = max(self.record["memory"], (_peak_memory() - memory) / 1e6)

    def _keep_crash(self, content: bytes) -> None:
        from helpers.readers import folder_of

        self.record["crashes"] += 1
        error = " | ".join(traceback.format_exc().splitlines()[-3:])[:300]
        if error not in self.errors:
            self.errors.add(error)
            folder = CORPUS / folder_of(self.name)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"crash-{hashlib.sha1(content).hexdigest()[:10]}").write_bytes(content)
            print(f"{self.name}: {error}", flush=True)


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def finish(targets: Mapping[str, Target]) -> None:
    """Print what was tried and end the process."""
    for name, target in targets.items():
        shown = ", ".join(f"{key} {value:,.4g}" for key, value in target.record.items())
        print(f"{name:<22} {shown}")
    inputs, crashes = (
        int(sum(target.record[key] for target in targets.values())) for key in ("inputs", "crashes")
    )
    print(f"{inputs:,} inputs, {crashes} that did not end in a valid object or our error", flush=True)
    os._exit(1 if crashes else 0)  # libFuzzer would go on


def fuzz_at_random(targets: Mapping[str, Target], runs: int, seed: int, end: float) -> None:
    """Fuzz the readers with changes that nothing guides."""
    from helpers.mutated_content import mutate

    for name, target in targets.items():
        rng = random.Random(f"{name}:{seed}")
        while target.record["inputs"] < runs and time.monotonic() < end:
            target(mutate(target.reader, rng))


def fuzz(targets: Mapping[str, Target], runs: int, seed: int, end: float) -> None:
    """Fuzz the readers in turn, guided by coverage. An input's first byte says which reader it is for."""
    import atheris
    from helpers.mutated_content import change_bytes, mutate
    from helpers.readers import folder_of

    names, work = list(targets), Path(tempfile.mkdtemp())
    for number, name in enumerate(names):
        kept = sorted((CORPUS / folder_of(name)).glob("found-*"))
        contents = [*targets[name].reader.seeds(), *(file.read_bytes() for file in kept)]
        for index, content in enumerate(contents):
            (work / f"seed-{number}-{index}").write_bytes(bytes([number]) + content)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.4:  # another reader, so that each has its turn
            number = rng.randrange(len(names))
            content = mutate(targets[names[number]].reader, rng)
        else:
            number = data[0] % len(names) if data else 0
            reader = targets[names[number]].reader
            own = rng.random() < 0.5
            content = (
                change_bytes(data[1:], rng, reader.seeds()) if own else atheris.Mutate(data[1:], max_size - 1)
            )
        return (bytes([number]) + content)[:max_size]

    done = 0

    def run(data: bytes) -> None:
        nonlocal done
        if data:
            targets[names[data[0] % len(names)]](data[1:])
        done += 1
        if done % 2000 == 0:
            print(f"{done:,} of {runs:,} inputs", flush=True)
        if done >= runs or time.monotonic() > end:
            _keep_corpus(work, targets)
            finish(targets)

    options = [
        f"-seed={seed + 1}",
        f"-max_len={_MAX_LENGTH}",
        "-rss_limit_mb=0",
        "-timeout=60",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], str(work), *options], run, custom_mutator=change)
    atheris.Fuzz()


def _keep_corpus(work: Path, targets: Mapping[str, Target]) -> None:
    """Keep some of the inputs that libFuzzer found to reach more code, of each reader."""
    from helpers.readers import folder_of

    found: dict[int, list[bytes]] = {}
    for file in sorted(work.iterdir()):
        if not file.name.startswith("seed-") and (content := file.read_bytes()):
            found.setdefault(content[0] % len(targets), []).append(content[1:])
    for number, name in enumerate(targets):
        kept = CORPUS / folder_of(name)
        contents = sorted(found.get(number, []), key=len)
        bytes_left = _MOST_BYTES
        for content in contents[:: max(1, len(contents) // _MOST_KEPT)][:_MOST_KEPT]:
            if len(content) <= bytes_left:
                kept.mkdir(parents=True, exist_ok=True)
                (kept / f"found-{hashlib.sha1(content).hexdigest()[:10]}").write_bytes(content)
                bytes_left -= len(content)


if __name__ == "__main__":
    main()
