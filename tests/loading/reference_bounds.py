"""An assertion that an image of the graph is within the bounds of the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ichfast.augment.bounds import Numbers, image_bounds
from ichfast.augment.bounds import stored_bounds as stored_bounds
from ichfast.augment.parameters import Parameters
from ichfast.windows import Window


def check_within(
    found_SSC: npt.NDArray[np.float16],
    bounds: tuple[Numbers, Numbers],
    parameters: Parameters,
    row: int,
    *,
    windows: Sequence[Window],
    mean_C: Sequence[float],
    std_C: Sequence[float],
) -> None:
    """Check the graph's image of a slice against the bounds of its stored numbers.

    Args:
        found_SSC: the image.
        bounds: minimum and maximum stored number of each pixel.
        parameters: drawn for a batch.
        row: the slice's row in `parameters`.
        windows: C windows.
        mean_C: mean per channel.
        std_C: standard deviation per channel.
    """
    low_SSC, high_SSC = image_bounds(
        bounds, parameters, row, windows=windows, mean_C=mean_C, std_C=std_C
    )
    # A NaN is both.
    num_low = (~(found_SSC >= low_SSC)).sum()
    num_high = (~(found_SSC <= high_SSC)).sum()
    assert num_low + num_high == 0, f"{num_low} too low, {num_high} too high"
