from __future__ import annotations

import torch

from truthgate_eval.inference.packing import make_batch
from truthgate_eval.inference.prefix_plan import PackedPrompt

CPU = torch.device("cpu")


def packed_prompts() -> list[PackedPrompt]:
    return [
        PackedPrompt((5, 6, 7), ((8, 9), (10,)), (0, 1)),
        PackedPrompt((), ((11, 12),), (2,)),
        PackedPrompt((4,), ((3,), (9,)), (3, 4)),
    ]


def test_a_token_attends_to_the_shared_prefix_its_prompts_prefix_and_its_suffix() -> None:
    batch = make_batch(packed_prompts(), prefix=(3, 4), dtype=torch.float32, device=CPU)
    assert batch.token_ids.tolist() == [[5, 6, 7, 8, 9, 10], [11, 12, 4, 3, 9, 0]]
    assert batch.offsets == [(0, 0), (1, 0), (1, 2)]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[2, 3, 4, 5, 6, 5], [2, 3, 2, 3, 3, 2]]
    sees = [["".join("x" if k == 0 else "." for k in q) for q in row[0]] for row in batch.mask.tolist()]
    assert sees[0] == ["xxx.....", "xxxx....", "xxxxx...", "xxxxxx..", "xxxxxxx.", "xxxxx..x"]
    assert sees[1] == ["xxx.....", "xxxx....", "xx..x...", "xx..xx..", "xx..x.x.", "xx.....x"]
    rows, columns = batch.last_tokens(packed_prompts())
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 4), (0, 5), (1, 1), (1, 3), (1, 4)]


def test_without_packing_every_prompt_has_a_row_and_single_sequences_the_usual_mask() -> None:
    single = [PackedPrompt((), ((5, 6, 7),), (0,)), PackedPrompt((), ((8,),), (1,))]
    batch = make_batch(single, prefix=(), dtype=torch.float32, device=CPU, pack=False)
    assert batch.position_ids is None and batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.token_ids.tolist() == [[5, 6, 7], [8, 0, 0]]


def test_after_a_long_shared_prefix_prompts_share_rows_as_long_as_the_prefix() -> None:
    many = [PackedPrompt((), ((5, 6, 7, 8),), (i,)) for i in range(20)]
    shapes = {
        length: tuple(make_batch(many, prefix=(9,) * length, dtype=torch.float32, device=CPU).token_ids.shape)
        for length in (2, 40, 100)
    }
    assert shapes == {2: (20, 4), 40: (2, 40), 100: (1, 80)}
