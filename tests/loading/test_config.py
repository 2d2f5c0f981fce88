"""Images grow if a recipe asks for it, and have a channel for each slice and window."""

from __future__ import annotations

import re
from typing import Any

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


@pytest.mark.parametrize(
    ("windows", "neighbours", "channels", "shown"),
    [
        (("brain",), 0, 1, [0]),
        (("brain",), 1, 3, [1]),
        (("brain", "bone"), 1, 6, [2]),
        (("brain", "subdural", "bone"), 1, 9, [3, 4, 5]),
        (("brain", "subdural", "bone"), 2, 15, [6, 7, 8]),
        (("brain", "subdural", "bone", "soft"), 0, 4, [0]),
    ],
)
def test_a_picture_shows_windows_of_the_middle_slice(
    windows: tuple[str, ...], neighbours: int, channels: int, shown: list[int]
) -> None:
    config = DataConfig(windows=windows, neighbours=neighbours)
    assert config.num_channels == channels
    assert list(range(channels))[config.shown_channels] == shown


@pytest.mark.parametrize("windows", ["brain", ["brain"], None])
def test_windows_that_are_no_tuple_are_refused(windows: Any) -> None:
    message = f'windows is a tuple of names, such as ("brain",), got {windows!r}'
    with pytest.raises(LoaderError, match=re.escape(message)):
        DataConfig(windows=windows)
