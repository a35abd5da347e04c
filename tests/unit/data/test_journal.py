"""The journal of rewritten answers goes on after a kill in the middle of a line."""

from __future__ import annotations

from pathlib import Path

from truthgate_eval.data.minimal_pairs import AnswerPair, rewrite_pairs


def test_a_line_without_its_end_is_written_again(tmp_path: Path) -> None:
    pairs = [AnswerPair(n, "?", "A cat.", "A dog.") for n in range(3)]
    journal, asked = tmp_path / "rewrites.jsonl", []

    def rewrite(pair: AnswerPair) -> str:
        asked.append(pair.row)
        return f"A bus {pair.row}."

    first = rewrite_pairs(pairs, rewrite, journal=journal)
    content = journal.read_bytes()
    for cut in (1, 20, len(content.splitlines()[-1])):
        journal.write_bytes(content[:-cut])
        asked.clear()
        assert rewrite_pairs(pairs, rewrite, journal=journal) == first
        assert asked == [2] and journal.read_bytes() == content
