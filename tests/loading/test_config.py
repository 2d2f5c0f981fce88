"""Images grow over the first epochs if a recipe asks for it."""

from __future__ import annotations

import pytest

from ichfast.errors import LoaderError
from ichfast.loading.config import DataConfig
from ichfast.recipes.resolve import fast


def sizes(config: DataConfig, num_epochs: int) -> list[int]:
    return [config.size_in_epoch(epoch, num_epochs) for epoch in range(num_epochs)]


def test_images_grow_in_steps_over_two_thirds_of_the_epochs() -> None:
    config = DataConfig(size=224, grow_from=128)
    assert sizes(config, 12) == [128] * 3 + [160] * 3 + [192] * 2 + [224] * 4
    assert sizes(config, 3) == [128, 160, 224]
    assert sizes(config, 1) == [128]


def test_a_size_that_is_not_a_multiple_of_the_step_is_reached_at_the_end() -> None:
    assert sizes(DataConfig(size=100, grow_from=60), 6) == [60, 60, 60, 60, 100, 100]


def test_images_do_not_grow_by_default() -> None:
    assert sizes(DataConfig(size=224), 3) == [224] * 3


@pytest.mark.parametrize("grow_from", [31, 225])
def test_a_first_size_out_of_range_is_refused(grow_from: int) -> None:
    with pytest.raises(LoaderError, match=r"data\.grow_from is from 32 to data\.size"):
        DataConfig(size=224, grow_from=grow_from)


@pytest.mark.parametrize(("size", "first"), [(32, 32), (224, 160), (512, 352)])
def test_fast_begins_at_two_thirds_of_the_size_on_a_gpu(size: int, first: int) -> None:
    assert fast(size=size).data.grow_from == first
    assert fast(size=size, device_type="cpu").data.grow_from is None
