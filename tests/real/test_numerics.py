"""Results of the packaged models do not change with batch size, order and engine beyond the stated bounds."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from scripts.numerics.models import Models
from scripts.numerics.page import exceeded
from scripts.numerics.settings import DTYPES, PLAIN, Setting, Size, differences

pytestmark = [pytest.mark.real, pytest.mark.slow]

SIZE = Size(documents=3, probed=2, texts=2, polls=2)
SETTINGS = (Setting(3, "off"), Setting("auto"), Setting(3, order="shuffled"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_differences_from_plain_transformers_keep_the_bounds(dtype: str) -> None:
    models = Models(dtype, SIZE)
    plain = models.run(PLAIN)
    assert len(plain.log_likelihoods) == 6 and plain.activations.shape[0] == 4
    assert len(plain.poll_log_likelihoods) == 16 and torch.tensor(plain.log_likelihoods).lt(0).all()
    assert all(plain.texts) and len(plain.poll_texts) == 2
    assert not any(differences(models.run(PLAIN), plain).values()), "the same run again is equal bit for bit"
    for setting in SETTINGS:
        row = {"dtype": dtype, **differences(models.run(setting), plain)}
        assert exceeded(row, asdict(SIZE)) == [], (setting, row)
