"""The series head: features of all slices of a series to logits.

Promises:

1. A series has the same logits alone and in a batch with longer series, to 1e-6:
   nothing reads the padding.
2. Before the GRU or transformer each slice is seen alone; the instance logits are taken
   there. They train the first layer on the slices themselves.

The GRU needs the lengths of the series on the host, and waits for the device once per
forward pass to get them.

Shape letters: B series of the batch, Z slices of the longest series, D features,
W width, H output of the GRU or transformer, K classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ichfast.labels import CLASSES
from ichfast.series.config import NUM_ATTENTION_HEADS, SeriesConfig

ATTENTION_WIDTH = 64
"""Hidden numbers of the attention over slices."""

MAX_WAVELENGTH = 10_000.0
"""Longest wavelength of the transformer's position encoding, in slices.

Source:
    Vaswani et al. 2017, "Attention is all you need", section 3.5.
"""


class SeriesLogits(NamedTuple):
    """What the series head puts out. Logits of padding are finite and mean nothing."""

    slices_BZK: Tensor
    series_BK: Tensor
    instances_BZK: Tensor
    """Logits of each slice from its own features alone."""


class SeriesHead(nn.Module):
    """Reads the features of a whole series.

    Args:
        num_features: D.
        config: kind and size.
    """

    def __init__(self, num_features: int, config: SeriesConfig) -> None:
        super().__init__()
        self.config = config
        num_classes, num_out = len(CLASSES), 2 * config.hidden
        self.embed = nn.Sequential(
            nn.LayerNorm(num_features),
            nn.Linear(num_features, config.width),
            nn.GELU(),
            nn.LayerNorm(config.width),
        )
        num_in = config.width * (3 if config.deltas else 1) + 1
        make = {"gru": GruContext, "transformer": TransformerContext}[config.kind]
        self.context = make(num_in, config)
        self.dropout = nn.Dropout(config.dropout)
        self.slices = nn.Linear(num_out, num_classes)
        self.attention = nn.Sequential(
            nn.Linear(num_out, ATTENTION_WIDTH),
            nn.Tanh(),
            nn.Linear(ATTENTION_WIDTH, num_classes),
        )
        self.series = nn.Linear(num_out, num_classes)
        self.instances = nn.Linear(config.width, num_classes)

    def forward(
        self, features_BZD: Tensor, is_slice_BZ: Tensor, position_BZ: Tensor
    ) -> SeriesLogits:
        """Logits of slices and series.

        Args:
            features_BZD: pooled features of the backbone, float32; padding is last and
                finite.
            is_slice_BZ: bool, False for padding; each series has a slice.
            position_BZ: float32; see `SeriesConfig.position`.
        """
        embedded_BZW = self._disturbed(self.embed(features_BZD))
        parts = [embedded_BZW, position_BZ[..., None]]
        if self.config.deltas:
            parts += deltas(embedded_BZW, is_slice_BZ)
        context_BZH = self.dropout(self.context(torch.cat(parts, dim=-1), is_slice_BZ))
        score_BZK = self.attention(context_BZH)
        score_BZK = score_BZK.masked_fill(~is_slice_BZ[..., None], -math.inf)
        return SeriesLogits(
            slices_BZK=self.slices(context_BZH),
            series_BK=(score_BZK.softmax(dim=1) * self.series(context_BZH)).sum(dim=1),
            instances_BZK=self.instances(embedded_BZW),
        )

    def _disturbed(self, embedded_BZW: Tensor) -> Tensor:
        if not self.training:
            return embedded_BZW
        config = self.config
        noisy_BZW = embedded_BZW + config.noise * torch.randn_like(embedded_BZW)
        is_kept_BZ1 = torch.rand_like(noisy_BZW[..., :1]) >= config.slice_dropout
        return nn.functional.dropout(noisy_BZW * is_kept_BZ1, config.element_dropout)


def deltas(values_BZW: Tensor, is_slice_BZ: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract from each slice the slice before, and the slice after.

    Args:
        values_BZW: any float dtype, padding last.
        is_slice_BZ: bool, False for padding.

    Returns:
        Shape (B, Z, W) each; 0 where there is no such slice.
    """
    step_BZW = values_BZW[:, 1:] - values_BZW[:, :-1]
    step_BZW = step_BZW * is_slice_BZ[:, 1:, None]
    return (
        nn.functional.pad(step_BZW, (0, 0, 1, 0)),
        nn.functional.pad(-step_BZW, (0, 0, 0, 1)),
    )


class GruContext(nn.Module):
    """A bidirectional GRU over the slices of each series.

    Args:
        num_in: numbers per slice.
        config: `hidden`, `layers`, and `dropout` between the layers.
    """

    def __init__(self, num_in: int, config: SeriesConfig) -> None:
        super().__init__()
        self.gru = nn.GRU(
            num_in,
            config.hidden,
            config.layers,
            batch_first=True,
            bidirectional=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )

    def forward(self, values_BZW: Tensor, is_slice_BZ: Tensor) -> Tensor:
        """Read both ways along each series.

        Args:
            values_BZW: float32, padding last.
            is_slice_BZ: bool, False for padding.

        Returns:
            Shape (B, Z, 2 * hidden), 0 in the padding.
        """
        packed = pack_padded_sequence(
            values_BZW,
            is_slice_BZ.sum(dim=1).cpu(),
            batch_first=True,
            enforce_sorted=False,
        )
        context_BZH, _ = pad_packed_sequence(
            self.gru(packed)[0], batch_first=True, total_length=values_BZW.shape[1]
        )
        return context_BZH


class TransformerContext(nn.Module):
    """A transformer encoder over the slices of each series.

    Args:
        num_in: numbers per slice.
        config: `hidden`, `layers` and `dropout`.
    """

    def __init__(self, num_in: int, config: SeriesConfig) -> None:
        super().__init__()
        num_out = 2 * config.hidden
        self.project = nn.Linear(num_in, num_out)
        layer = nn.TransformerEncoderLayer(
            num_out,
            NUM_ATTENTION_HEADS,
            dim_feedforward=2 * num_out,
            dropout=config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.layers, norm=nn.LayerNorm(num_out), enable_nested_tensor=False
        )

    def forward(self, values_BZW: Tensor, is_slice_BZ: Tensor) -> Tensor:
        """Let all slices of each series attend to each other.

        Args:
            values_BZW: float32, padding last.
            is_slice_BZ: bool, False for padding.

        Returns:
            Shape (B, Z, 2 * hidden).
        """
        projected_BZH = self.project(values_BZW)
        return self.encoder(
            projected_BZH + order_encoding(projected_BZH),
            src_key_padding_mask=~is_slice_BZ,
        )


def order_encoding(like_BZH: Tensor) -> Tensor:
    """Sines and cosines of a slice's place in its series, shape (Z, H).

    Args:
        like_BZH: gives shape, device and dtype; H is even.

    Source:
        Vaswani et al. 2017, "Attention is all you need", section 3.5.
    """
    _, num_slices, size = like_BZH.shape
    order_Z1 = torch.arange(num_slices, device=like_BZH.device)[:, None]
    share = torch.arange(0, size, 2, device=like_BZH.device) / size
    angle = order_Z1 * MAX_WAVELENGTH**-share
    return torch.cat([angle.sin(), angle.cos()], dim=1).to(like_BZH)
