"""The loss is a weighted mean over what is labelled, of slices or of series."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ichfast.series.batches import SeriesArrays, SeriesBatch, SeriesBatches
from ichfast.series.config import SeriesConfig
from ichfast.series.head import SeriesHead, SeriesLogits
from ichfast.series.loss import series_loss
from tests.series.arrays import noise_series

LENGTHS = (4, 7, 2)
WEIGHTS = (2, 1, 1, 1, 1, 1)


def make_batch(arrays: SeriesArrays) -> SeriesBatch:
    batches = SeriesBatches(arrays, SeriesConfig(), torch.device("cpu"))
    return batches.batch(np.arange(len(arrays)))


def random_logits(batch: SeriesBatch) -> SeriesLogits:
    draws = torch.Generator().manual_seed(5)
    shape = batch.targets_BZK.shape
    slices, instances = (torch.randn(shape, generator=draws) for _ in range(2))
    series = torch.randn((shape[0], 6), generator=draws)
    logits = SeriesLogits(slices_BZK=slices, series_BK=series, instances_BZK=instances)
    for each in logits:
        each.requires_grad_()
    return logits


def cell_loss(logit: Tensor, target: float) -> float:
    p = 1 / (1 + math.exp(-float(logit)))
    return -math.log(p if target else 1 - p)


def mean(cells: list[tuple[int, Tensor, float]]) -> float:
    """Weighted mean over cells of class, logit and target."""
    total = sum(WEIGHTS[k] * cell_loss(logit, target) for k, logit, target in cells)
    return total / sum(WEIGHTS[k] for k, *_ in cells)


def slice_cells(
    logits_BZK: Tensor, batch: SeriesBatch
) -> list[tuple[int, Tensor, float]]:
    logits_BZK = logits_BZK.detach()
    return [
        (int(k), logits_BZK[b, z, k], float(batch.targets_BZK[b, z, k]))
        for b, z, k in torch.argwhere(~batch.targets_BZK.isnan())
    ]


def test_the_loss_adds_slices_series_and_instances_by_weight() -> None:
    batch = make_batch(noise_series(LENGTHS))
    logits = random_logits(batch)
    series_cells = [
        (k, logits.series_BK.detach()[b, k], float(batch.series_targets_BK[b, k]))
        for b in range(3)
        for k in range(6)
    ]
    expected = (
        mean(slice_cells(logits.slices_BZK, batch))
        + 0.25 * mean(series_cells)
        + 0.10 * mean(slice_cells(logits.instances_BZK, batch))
    )
    assert float(series_loss(logits, batch).detach()) == pytest.approx(
        expected, rel=1e-5
    )
    assert len(slice_cells(logits.slices_BZK, batch)) == 6 * sum(LENGTHS)


def test_a_missing_label_has_no_part_in_loss_and_gradient() -> None:
    arrays = noise_series(LENGTHS)
    rng = np.random.default_rng(2)
    labels = np.where(rng.random((13, 6)) < 0.4, np.float32(np.nan), arrays.labels_NK)
    batch = make_batch(replace(arrays, labels_NK=labels))
    logits = random_logits(batch)
    loss = series_loss(logits, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    known_series = ~batch.series_targets_BK.isnan()
    series_cells = [
        (int(k), logits.series_BK.detach()[b, k], float(batch.series_targets_BK[b, k]))
        for b, k in torch.argwhere(known_series)
    ]
    expected = (
        mean(slice_cells(logits.slices_BZK, batch))
        + 0.25 * mean(series_cells)
        + 0.10 * mean(slice_cells(logits.instances_BZK, batch))
    )
    assert 0 < len(series_cells) < 18
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    is_missing = batch.targets_BZK.isnan()
    for each in (logits.slices_BZK, logits.instances_BZK):
        assert each.grad is not None
        assert torch.equal(each.grad == 0, is_missing)
    assert logits.series_BK.grad is not None
    assert torch.equal(logits.series_BK.grad == 0, ~known_series)


def test_where_only_the_series_has_a_label_its_highest_slice_trains() -> None:
    arrays = noise_series(LENGTHS)
    labels, series_labels = arrays.labels_NK.copy(), arrays.series_labels_SK.copy()
    labels[:4, 2] = np.nan  # all slices of the first series
    series_labels[:2, 2] = 1.0  # the slices of the second count
    batch = make_batch(
        replace(arrays, labels_NK=labels, series_labels_SK=series_labels)
    )
    assert batch.series_targets_BK[0, 2] == 1.0
    logits = random_logits(batch)
    series_loss(logits, batch).backward()  # type: ignore[no-untyped-call]
    for each in (logits.slices_BZK, logits.instances_BZK):
        assert each.grad is not None
        highest = int(each.detach()[0, :4, 2].argmax())
        trained = each.grad[0, :4, 2].nonzero().flatten().tolist()
        assert trained == [highest]
        assert each.grad[0, highest, 2] < 0
        assert (each.grad[1, :7, 2] != 0).all()


def test_without_any_label_loss_and_gradient_are_0() -> None:
    arrays = noise_series(LENGTHS)
    batch = make_batch(
        replace(arrays, labels_NK=np.full_like(arrays.labels_NK, np.nan))
    )
    head = SeriesHead(11, SeriesConfig(width=10, hidden=6))
    loss = series_loss(
        head(batch.features_BZD, batch.is_slice_BZ, batch.position_BZ), batch
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0
    assert all((p.grad == 0).all() for p in head.parameters() if p.grad is not None)
