"""The path from HU to probabilities as one torch module.

In float32 and for slices of 512x512 it repeats what the store, the DALI graph and the
model do in validation: round to stored values, make the small level if the run reads
it, halve, resample, window, normalise. `tests/export/test_export.py` compares it with
`ichfast predict`.

Shape letters: B slices, D slices of a slab, H rows, W columns, C windows, S output
size, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ichfast.augment.geometry import count_halvings
from ichfast.evaluation.calibration import Calibration
from ichfast.store.levels import SMALL_LEVEL, SOURCE_LEVEL
from ichfast.windows import HU_OFFSET, Normalization, Window

ROWS = COLUMNS = SOURCE_LEVEL
"""Size of the slices that the module takes, in pixels."""

MAX_STORED = 32_767
"""Largest value in a store."""


class CalibratedModel(nn.Module):
    """A model whose logits are calibrated.

    Args:
        model: takes images, returns logits (B, K).
        calibration: of the same classes.
    """

    temperature_K: Tensor
    bias_K: Tensor

    def __init__(self, model: nn.Module, calibration: Calibration) -> None:
        super().__init__()
        self.model = model
        temperatures, biases, _ = zip(*calibration.maps, strict=True)
        self.register_buffer("temperature_K", torch.tensor(temperatures))
        self.register_buffer("bias_K", torch.tensor(biases))

    def forward(self, images_BCSS: Tensor) -> Tensor:
        """Return calibrated logits, shape (B, K)."""
        logits_BK: Tensor = self.model(images_BCSS)
        return logits_BK / self.temperature_K + self.bias_K


class HuToProbs(nn.Module):
    """A model together with the preparation of its input.

    Args:
        model: takes images (B, D * C, S, S), returns logits (B, K).
        size: S, in pixels.
        level: the level that the run reads, 512 or 256.
        windows: windows in channel order.
        normalization: mean and standard deviation of each window.
        slab_depth: D.
    """

    row_S: Tensor
    row_share_S1: Tensor
    column_S: Tensor
    column_share_S: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        size: int,
        level: int,
        windows: Sequence[Window],
        normalization: Normalization,
        slab_depth: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.reads_small_level = level == SMALL_LEVEL
        side = np.array([level])
        self.num_halvings = int(count_halvings(side, side, size)[0])
        self._windows = list(
            zip(windows, normalization.mean, normalization.std, strict=True)
        )
        self.slab_depth = slab_depth
        row_S, column_S = _places(level >> self.num_halvings, size)
        for name, places_S in (
            ("row_S", (row_S.floor() + 1).long()),
            ("row_share_S1", (row_S - row_S.floor())[:, None]),
            ("column_S", (column_S.floor() + 1).long()),
            ("column_share_S", column_S - column_S.floor()),
        ):
            self.register_buffer(name, places_S, persistent=False)

    def forward(self, hu: Tensor) -> Tensor:
        """Predict the six probabilities of each slice.

        Args:
            hu: HU, float32, shape (B, 512, 512); or, for more than one slice in a
                slab, (B, D, 512, 512), from the lowest slice to the highest.

        Returns:
            Shape (B, 6), float32, in `labels.CLASSES` order.
        """
        logits_BK: Tensor = self.model(self.images(hu))
        return logits_BK.sigmoid()

    def images(self, hu: Tensor) -> Tensor:
        """Prepare the images that the model sees, shape (B, D * C, S, S).

        Args:
            hu: as `forward` takes it.
        """
        hu_BDHW = hu if self.slab_depth > 1 else hu.unsqueeze(1)
        stored_BDHW = (hu_BDHW.round() + HU_OFFSET).clamp(0, MAX_STORED)
        if self.reads_small_level:
            stored_BDHW = (_mean_of_2x2(stored_BDHW) + 0.5).floor()
        for _ in range(self.num_halvings):
            stored_BDHW = _mean_of_2x2(stored_BDHW).round()
        hu_BDSS = self._resample(stored_BDHW).round() - HU_OFFSET
        images_BDCSS = torch.stack(
            [
                (_apply_window(hu_BDSS, window) - mean) / std
                for window, mean, std in self._windows
            ],
            dim=2,
        )
        # The loader returns float16.
        return images_BDCSS.flatten(1, 2).half().float()

    def _resample(self, stored_BDHW: Tensor) -> Tensor:
        """Resample bilinearly, along the columns, then along the rows; air around."""
        padded_BDHW = nn.functional.pad(stored_BDHW, (1, 1, 1, 1))
        left = padded_BDHW.index_select(3, self.column_S)
        right = padded_BDHW.index_select(3, self.column_S + 1)
        columns_BDHS = left + (right - left) * self.column_share_S
        upper = columns_BDHS.index_select(2, self.row_S)
        lower = columns_BDHS.index_select(2, self.row_S + 1)
        return upper + (lower - upper) * self.row_share_S1


def _places(side: int, size: int) -> tuple[Tensor, Tensor]:
    """The positions in the source that rows and columns of the output come from.

    The matrix counts from corners and the positions from centres. Float32 and the two
    orders of arithmetic are those of DALI's warp on a CPU, so that ties in the later
    rounding fall the same way.

    Args:
        side: side of the source, in pixels.
        size: side of the output, in pixels.
    """
    scale = np.float32(side / size)
    output_S = np.arange(size, dtype=np.float32)
    half = np.float32(0.5)
    row_S = scale * output_S + (half * scale - half)
    column_S = scale * (output_S + half) - half
    return torch.from_numpy(row_S), torch.from_numpy(column_S)


def _mean_of_2x2(values_BDHW: Tensor) -> Tensor:
    rows_BDHW = values_BDHW[:, :, 0::2] + values_BDHW[:, :, 1::2]
    return (rows_BDHW[..., 0::2] + rows_BDHW[..., 1::2]) / 4


def _apply_window(hu_BDSS: Tensor, window: Window) -> Tensor:
    distance = (hu_BDSS - window.center) / window.width
    if window.shape == "sigmoid":
        return (4.0 * distance).sigmoid()
    return (distance + 0.5).clamp(0.0, 1.0)
