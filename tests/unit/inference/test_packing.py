from __future__ import annotations

import torch

from truthgate_eval.inference.packing import make_batch
from truthgate_eval.inference.prefix_plan import PackedPrompt


def rows() -> list[PackedPrompt]:
    return [
        PackedPrompt((5, 6, 7), ((8, 9), (10,)), (0, 1)),
        PackedPrompt((), ((11, 12),), (2,)),
        PackedPrompt((4,), ((3,), (9,)), (3, 4)),
    ]


def test_a_token_sees_the_trunk_its_rows_prefix_and_its_branch() -> None:
    batch = make_batch(rows(), prefix=(3, 4), dtype=torch.float32, device=torch.device("cpu"))
    assert batch.token_ids.tolist() == [[5, 6, 7, 8, 9, 10], [11, 12, 4, 3, 9, 0]]
    assert batch.offsets == [(0, 0), (1, 0), (1, 2)]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[2, 3, 4, 5, 6, 5], [2, 3, 2, 3, 3, 2]]
    sees = [["".join("x" if k == 0 else "." for k in q) for q in lane[0]] for lane in batch.mask.tolist()]
    assert sees[0] == ["xxx.....", "xxxx....", "xxxxx...", "xxxxxx..", "xxxxxxx.", "xxxxx..x"]
    assert sees[1] == ["xxx.....", "xxxx....", "xx..x...", "xx..xx..", "xx..x.x.", "xx.....x"]
    lanes, places = batch.last_tokens(rows())
    assert list(zip(lanes.tolist(), places.tolist(), strict=True)) == [(0, 4), (0, 5), (1, 1), (1, 3), (1, 4)]


def test_without_packing_every_row_has_a_lane_and_plain_rows_the_usual_mask() -> None:
    plain = [PackedPrompt((), ((5, 6, 7),), (0,)), PackedPrompt((), ((8,),), (1,))]
    batch = make_batch(plain, prefix=(), dtype=torch.float32, device=torch.device("cpu"), pack=False)
    assert batch.position_ids is None and batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.token_ids.tolist() == [[5, 6, 7], [8, 0, 0]]


def test_behind_a_long_trunk_rows_share_lanes_as_long_as_the_trunk() -> None:
    many = [PackedPrompt((), ((5, 6, 7, 8),), (i,)) for i in range(20)]
    shapes = {
        trunk: tuple(
            make_batch(
                many, prefix=(9,) * trunk, dtype=torch.float32, device=torch.device("cpu")
            ).token_ids.shape
        )
        for trunk in (2, 40, 100)
    }
    assert shapes == {2: (20, 4), 40: (2, 40), 100: (1, 80)}
