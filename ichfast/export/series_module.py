"""The path from the HU of a whole series to its probabilities as one torch module.

The head reads a fixed number of slices: a shorter series is padded, a longer one is
sampled, as in `ichfast.series.batches`. So one file takes series of any length.
torch.export cannot have a GRU over a variable number of slices.

Shape letters: Z slices of the series, L slices that the head reads, D features or
slices of a slab, H rows and columns or numbers of the head, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ichfast.evaluation.calibration import Calibration
from ichfast.export.module import HuToProbs
from ichfast.series.head import GruContext, SeriesHead


class SeriesToProbs(nn.Module):
    """Backbones, series head and blend, together with the preparation of the input.

    Args:
        backbones: from HU to the logits of slices; their logits are averaged.
        head: reads the features of each; it is changed.
        shares: share of the head of each class.
        calibration: of the probabilities of slices; None for none.
    """

    share_K: Tensor
    temperature_K: Tensor
    bias_K: Tensor

    def __init__(
        self,
        backbones: Sequence[HuToProbs],
        head: SeriesHead,
        *,
        shares: Sequence[float],
        calibration: Calibration | None,
    ) -> None:
        super().__init__()
        self.backbones = nn.ModuleList(backbones)
        self.head = head
        if isinstance(head.context, GruContext):
            head.context = PaddedGru(head.context.gru)
        maps = calibration.maps if calibration else [(1.0, 0.0, None)] * len(shares)
        temperatures, biases, _ = zip(*maps, strict=True)
        for name, values in (
            ("share_K", shares),
            ("temperature_K", temperatures),
            ("bias_K", biases),
        ):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def forward(self, hu_ZHH: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the six probabilities of each slice, and of the series.

        Args:
            hu_ZHH: HU, float32, shape (Z, 512, 512), from the lowest slice to the
                highest.

        Returns:
            Shapes (Z, 6) and (6,), float32, in `labels.CLASSES` order.
        """
        slices, series = zip(
            *(self._read(cast(HuToProbs, each), hu_ZHH) for each in self.backbones),
            strict=True,
        )
        slices_ZK = torch.stack(slices).mean(dim=0)
        slices_ZK = slices_ZK / self.temperature_K + self.bias_K
        return slices_ZK.sigmoid(), torch.stack(series).mean(dim=0).sigmoid()

    def _read(self, backbone: HuToProbs, hu_ZHH: Tensor) -> tuple[Tensor, Tensor]:
        """Blended logits of the slices (Z, K) and of the series (K,)."""
        model: Any = backbone.model
        features = model.forward_features(backbone.images(_slabs(backbone, hu_ZHH)))
        pooled_ZD = model.forward_head(features, pre_logits=True).flatten(1)
        slice_model_ZK = model.forward_head(features)
        # A features folder has float16.
        slices_ZK, series_K = self._read_features(pooled_ZD.half().float())
        highest_K = slice_model_ZK.amax(dim=0)
        share_K = self.share_K
        return (
            (1.0 - share_K) * slice_model_ZK + share_K * slices_ZK,
            (1.0 - share_K) * highest_K + share_K * series_K,
        )

    def _read_features(self, features_ZD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the head: of the slices (Z, K) and of the series (K,)."""
        count_Z = torch.ones_like(features_ZD[:, 0], dtype=torch.int64)
        order_Z, num_slices = count_Z.cumsum(0) - 1, count_Z.sum()
        max_slices = self.head.config.max_slices
        num_read = num_slices.clamp(max=max_slices)
        order_L = torch.arange(max_slices, device=features_ZD.device)
        is_slice_L = order_L < num_read
        sampled_L = order_L * (num_slices - 1) // (num_read - 1).clamp(min=1)
        sampled_L = torch.where(is_slice_L, sampled_L, 0)
        logits = self.head(
            features_ZD.index_select(0, sampled_L)[None] * is_slice_L[None, :, None],
            is_slice_L[None],
            (sampled_L / (num_slices - 1).clamp(min=1) * is_slice_L)[None],
        )
        is_before_ZL = (sampled_L <= order_Z[:, None]) & is_slice_L
        below_Z = is_before_ZL.sum(dim=1) - 1
        above_Z = torch.minimum(below_Z + 1, num_read - 1)
        start_Z = sampled_L.index_select(0, below_Z)
        gap_Z = (sampled_L.index_select(0, above_Z) - start_Z).clamp(min=1)
        share_Z1 = ((order_Z - start_Z) / gap_Z)[:, None]
        below_ZK = logits.slices_BZK[0].index_select(0, below_Z)
        above_ZK = logits.slices_BZK[0].index_select(0, above_Z)
        return below_ZK + (above_ZK - below_ZK) * share_Z1, logits.series_BK[0]


def _slabs(backbone: HuToProbs, hu_ZHH: Tensor) -> Tensor:
    """What a backbone sees of each slice: itself, or a slab around it."""
    if backbone.slab_depth == 1:
        return hu_ZHH
    order_Z = torch.ones_like(hu_ZHH[:, 0, 0], dtype=torch.int64).cumsum(0) - 1
    reach = backbone.slab_depth // 2
    slab = [
        hu_ZHH.index_select(
            0, torch.minimum((order_Z + step).clamp(min=0), order_Z[-1])
        )
        for step in range(-reach, reach + 1)
    ]
    return torch.stack(slab, dim=1)


class PaddedGru(nn.Module):
    """A bidirectional GRU over one padded series.

    Each direction is a GRU of its own. The backward one reads the slices in reversed
    order, so that padding comes last for both.

    Args:
        gru: the trained GRU, bidirectional, batch first.
    """

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.ways = nn.ModuleList()
        weights = dict(gru.named_parameters())
        for layer in range(gru.num_layers):
            for end in ("", "_reverse"):
                parts = {
                    f"{part}_l0": weights[f"{part}_l{layer}{end}"]
                    for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                }
                num_in = parts["weight_ih_l0"].shape[1]
                way = nn.GRU(num_in, gru.hidden_size, batch_first=True)
                way.load_state_dict(parts)
                self.ways.append(way)

    def forward(self, values_1LW: Tensor, is_slice_1L: Tensor) -> Tensor:
        """Read both ways along the series.

        Args:
            values_1LW: float32, padding last.
            is_slice_1L: bool, False for padding.

        Returns:
            Shape (1, L, 2 * hidden); the padding means nothing.
        """
        order_L = torch.arange(values_1LW.shape[1], device=values_1LW.device)
        last = is_slice_1L.sum() - 1
        reversed_L = torch.where(is_slice_1L[0], last - order_L, order_L)
        ways = list(self.ways)
        for forward, backward in zip(ways[::2], ways[1::2], strict=True):
            there, _ = forward(values_1LW)
            back, _ = backward(values_1LW.index_select(1, reversed_L))
            values_1LW = torch.cat([there, back.index_select(1, reversed_L)], dim=2)
        return values_1LW
