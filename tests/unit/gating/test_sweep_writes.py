"""A sweep whose files cannot be written ends in one line, and takes no half written run for a result."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from truthgate_eval.errors import TruthGateError
from truthgate_eval.gating.sweep import Candidate
from truthgate_eval.gating.sweep_store import SweepStore
from truthgate_eval.harness.evaluator import check_written


def test_a_candidate_that_cannot_be_written_is_one_line_and_is_evaluated_again(tmp_path: Path) -> None:
    store, before = SweepStore(tmp_path, {}), resource.getrlimit(resource.RLIMIT_FSIZE)
    store.add(Candidate(0.0, "minmax", "post", value=0.5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.points_file.stat().st_size + 10, before[1]))
    try:
        with pytest.raises(TruthGateError, match=r"points\.jsonl cannot be written: File too large$"):
            store.add(Candidate(1.0, "minmax", "post", value=0.5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [candidate.lam for candidate in store.candidates().values()] == [0.0]


def write_run(folder: Path, lines: int) -> tuple[Path, Path]:
    content = {"results": {"t": {}}, "configs": {"t": {}}, "lm_eval_version": "0", "config": {}}
    results, samples = folder / "results_2026-01-01.json", folder / "samples_t_2026-01-01.jsonl"
    results.write_text(json.dumps(content))
    samples.write_text(lines * '{"doc_id": 0}\n')
    return results, samples


def test_a_run_counts_only_with_all_of_its_samples(tmp_path: Path) -> None:
    results, samples = write_run(tmp_path, 3)
    check_written(tmp_path, {"t": 3})
    with pytest.raises(TruthGateError, match=r"could not write its files in .* has 3 of 4 documents"):
        check_written(tmp_path, {"t": 4})
    samples.unlink()
    with pytest.raises(TruthGateError, match=r"could not write its files in .*jsonl: No such file"):
        check_written(tmp_path, {"t": 3})
    results.write_text("")
    with pytest.raises(TruthGateError, match=r"is the disk full\?\): .* is not a results file"):
        check_written(tmp_path, {"t": 3})
    results.unlink()
    with pytest.raises(TruthGateError, match="there is no results file"):
        check_written(tmp_path, {"t": 3})
