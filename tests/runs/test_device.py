"""The batch for prediction doubles until it does not fit."""

from __future__ import annotations

import pytest

from ichfast.runs.device import MAX_BATCH_SIZE, double_while


@pytest.mark.parametrize(
    ("room", "expected"), [(0, 0), (1, 1), (7, 4), (64, 64), (10**9, MAX_BATCH_SIZE)]
)
def test_the_largest_batch_that_fits_is_found(room: int, expected: int) -> None:
    tried: list[int] = []

    def fits(batch_size: int) -> bool:
        tried.append(batch_size)
        return batch_size <= room

    assert double_while(fits) == expected
    assert tried == [2**k for k in range(len(tried))]
    assert sum(size > room for size in tried) <= 1  # running out of memory is slow
