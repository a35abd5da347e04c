"""Several processes' shares of some work, and how they tell each other of errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch.distributed
from helpers.launch import torchrun
from hypothesis import given
from hypothesis import strategies as st

from truthgate_eval import processes
from truthgate_eval.cli.main import main
from truthgate_eval.errors import DataError, ProcessError
from truthgate_eval.processes import ONE_PROCESS, Processes, check_one_process, launched


@given(st.lists(st.floats(0, 100), max_size=30), st.integers(1, 5))
def test_every_item_is_in_one_block_and_blocks_are_consecutive(weights: list[float], count: int) -> None:
    blocks = [Processes(rank, count).block(weights) for rank in range(count)]
    assert [i for block in blocks for i in block] == list(range(len(weights)))


def test_blocks_weigh_about_the_same() -> None:
    weights = np.random.default_rng(0).uniform(1, 10, 400)
    sums = [weights[Processes(rank, 4).block(weights.tolist())].sum() for rank in range(4)]
    assert max(sums) - min(sums) < 20


def test_one_process_needs_no_other() -> None:
    rows: list[list[int]] = []
    with ONE_PROCESS.together():
        assert ONE_PROCESS.exchange("a") == ["a"] and ONE_PROCESS.on_main(lambda: 3) == 3
        assert ONE_PROCESS.gather_rows([2, 0], np.zeros((2, 1), np.float32), lambda *_: rows.append([])) == [
            0,
            2,
        ]
    assert rows == []
    with pytest.raises(DataError, match="as it was"), ONE_PROCESS.together():
        raise DataError("as it was")


def test_what_was_launched_is_read_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some clusters set it for the launcher itself
    monkeypatch.setenv("RANK", "2")
    assert launched() == ONE_PROCESS
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launched() == Processes(2, 4)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched() == ONE_PROCESS


@pytest.mark.parametrize("rank", ["0", "1"])
def test_other_commands_are_refused_and_the_first_process_says_so(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("LOCAL_RANK", rank), ("RANK", rank), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessError, match="start it without accelerate launch or torchrun"):
        check_one_process("a command")
    for command in ("sweep", "study"):
        monkeypatch.setattr("sys.argv", ["truthgate", command])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 1
        message = f"error: truthgate {command} runs in one process: start it without accelerate launch or torchrun\n"
        assert capsys.readouterr().err == (message if rank == "0" else "")


SCRIPT = """
import sys
import numpy as np
from truthgate_eval.errors import DataError, ProcessError
from truthgate_eval.processes import join

processes = join()
values = np.arange(10, dtype=np.float32).reshape(5, 2)
own = [[0, 3], [4, 1, 2]][processes.rank]
found = np.full((5, 2), -1, dtype=np.float32)
found[own] = values[own]
assert processes.exchange(processes.rank) == [0, 1]
assert processes.gather_rows(own, values[own], found.__setitem__) == [0, 1, 2, 3, 4]
assert np.array_equal(found, values) == processes.is_main, found
assert processes.on_main(lambda: "from 0") == "from 0"
try:
    with processes.together():
        with processes.together():  # blocks may be nested
            if processes.rank == 1:
                raise DataError("only here")
            processes.gather_rows(own, values[own], found.__setitem__)
except ProcessError as error:
    assert str(error) == "only here"
else:
    raise AssertionError("no error in process %d" % processes.rank)
try:
    with processes.together():
        if processes.is_main:
            raise DataError("after the others have finished")
except ProcessError as error:
    assert str(error) == "after the others have finished"
else:
    raise AssertionError("no error in process %d" % processes.rank)
try:
    processes.gather_rows([0], values[:1], found.__setitem__)
except ProcessError as error:
    assert "shared the work differently" in str(error)
else:
    raise AssertionError("both had row 0")
sys.stdout.write("done in %d\\n" % processes.rank)
"""


@pytest.mark.slow
def test_two_processes_exchange_values_rows_and_errors(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = torchrun("script.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["done in 0", "done in 1"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in Linux's /proc")
def test_no_thread_of_a_connection_is_left_when_python_ends(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        gathered: list[object] = [None]
        torch.distributed.all_gather_object(gathered, "value", group=processes._group())
        assert gathered == ["value"] and _gloo_threads()
    finally:
        processes._close_connections()
    assert not _gloo_threads()


def _gloo_threads() -> list[str]:
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]
