"""Halving a slice in NumPy: each new pixel is the mean of 2x2, ties to the even number.

The fast form of `ichfast.augment.reference.halve`, equal to the bit. On a CPU it takes
a third of what DALI needs for the same means, or less (see bench/LOG.md, 2026-11).

Shape letters: H rows, W columns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def halve_into(
    stored_HW: npt.NDArray[np.uint16], times: int, out_HW: npt.NDArray[np.uint16]
) -> None:
    """Halve rows and columns some times; ties go to the even number.

    Args:
        stored_HW: shape (H, W), uint16 up to 32,767, C order. Not changed. Beyond an
            odd edge lies air, 0.
        times: how often, once at least.
        out_HW: shape (ceil(H / 2**times), ceil(W / 2**times)), uint16; overwritten.
    """
    for _ in range(times - 1):
        stored_HW = _quarter(sum_of_2x2(_pad_to_even(stored_HW))).astype(np.uint16)
    out_HW[...] = _quarter(sum_of_2x2(_pad_to_even(stored_HW)))


def _quarter(sum_HW: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """A quarter of each sum in its low 16 bits; above them is rubbish. In place.

    Two additions instead of the six steps of whole numbers that round ties to the even
    number: with the bits of 2**23 a sum is a float32, 2**23 larger; and what is added
    to reach 2**25 is rounded to steps of 4, as a processor rounds, so that the low bits
    count the steps.

    Source:
        IEEE 754 binary32: 24 bits of precision, the highest not written.
    """
    sum_HW += np.float32(2**23).view(np.uint32)
    bits_HW = sum_HW.view(np.float32)
    bits_HW += np.float32(2**25 - 2**23)
    return sum_HW


def sum_of_2x2(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint32]:
    """Sums of four pixels.

    Args:
        stored_HW: shape (H, W), both even, uint16 up to 32,767, C order. Not changed.

    Returns:
        Shape (H / 2, W / 2), uint32; the caller's own.
    """
    # Two numbers up to 32,767 fit in a uint16; two neighbours are one uint32.
    sum_HW = (stored_HW[0::2] + stored_HW[1::2]).view(np.uint32)
    right_HW = sum_HW >> 16
    sum_HW &= 0xFFFF
    sum_HW += right_HW
    return sum_HW


def _pad_to_even(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    rows, columns = stored_HW.shape
    if rows % 2 or columns % 2:
        return np.pad(stored_HW, ((0, rows % 2), (0, columns % 2)))
    return stored_HW
