"""The head reads slices, not padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ichfast.series.batches import SeriesBatch, SeriesBatches
from ichfast.series.config import KINDS, POSITIONS, SeriesConfig
from ichfast.series.fit import predict_series
from ichfast.series.head import SeriesHead, SeriesLogits, deltas
from tests.series.arrays import noise_series

CPU = torch.device("cpu")
LENGTHS = (1, 7, 2, 13, 5)
CONFIG = SeriesConfig(width=10, hidden=6)


def make_head(config: SeriesConfig) -> SeriesHead:
    torch.manual_seed(3)
    return SeriesHead(11, config).eval()


def logits_of(head: SeriesHead, batch: SeriesBatch) -> SeriesLogits:
    logits = head(batch.features_BZD, batch.is_slice_BZ, batch.position_BZ)
    assert isinstance(logits, SeriesLogits)
    return logits


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("deltas", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_series_has_the_same_logits_alone_and_in_a_padded_batch(
    kind: str, deltas: bool, position: str, mode: type
) -> None:
    config = replace(CONFIG, kind=kind, deltas=deltas, position=position)
    head, arrays = make_head(config), noise_series(LENGTHS)
    batches = SeriesBatches(arrays, config, CPU)
    with mode():
        together = logits_of(head, batches.batch(np.arange(len(LENGTHS))))
        for s, length in enumerate(LENGTHS):
            alone = logits_of(head, batches.batch(np.array([s])))
            for found, expected in (
                (together.slices_BZK[s, :length], alone.slices_BZK[0]),
                (together.series_BK[s], alone.series_BK[0]),
                (together.instances_BZK[s, :length], alone.instances_BZK[0]),
            ):
                torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("deltas", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_padding_has_no_influence_whatever_is_in_it(
    kind: str, deltas: bool
) -> None:
    config = replace(CONFIG, kind=kind, deltas=deltas)
    head = make_head(config)
    batch = SeriesBatches(noise_series(LENGTHS), config, CPU).batch(np.arange(5))
    changed = batch.features_BZD.clone()
    changed[~batch.is_slice_BZ] = 1e3 * torch.randn(11)
    expected = logits_of(head, batch)
    found = logits_of(head, replace(batch, features_BZD=changed))
    torch.testing.assert_close(found.series_BK, expected.series_BK, rtol=0, atol=1e-6)
    mask = batch.is_slice_BZ
    torch.testing.assert_close(
        found.slices_BZK[mask], expected.slices_BZK[mask], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_slice_sees_all_others_and_instances_see_one(kind: str) -> None:
    config = replace(CONFIG, kind=kind)
    head = make_head(config)
    batch = SeriesBatches(noise_series([9]), config, CPU).batch(np.array([0]))
    for z in (0, 8):
        changed = batch.features_BZD.clone()
        changed[0, z, 0] += 2.0
        before, after = (
            logits_of(head, each)
            for each in (batch, replace(batch, features_BZD=changed))
        )
        assert (before.slices_BZK != after.slices_BZK).all(dim=2).all()
        is_changed_Z = (before.instances_BZK != after.instances_BZK).any(dim=2)[0]
        assert is_changed_Z.nonzero().flatten().tolist() == [z]
        assert (before.series_BK != after.series_BK).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_slices_matters(kind: str) -> None:
    config = replace(CONFIG, kind=kind)
    head, arrays = make_head(config), noise_series([9])
    swapped = replace(arrays, rows=[arrays.rows[0][[1, 0, *range(2, 9)]]])
    slices, _ = predict_series(head, arrays)
    assert np.abs(slices - predict_series(head, swapped)[0]).max() > 1e-4


def test_series_logits_weigh_slices_by_attention_of_each_class() -> None:
    head = make_head(CONFIG)
    batch = SeriesBatches(noise_series([4, 6]), CONFIG, CPU).batch(np.arange(2))
    context = head.context(
        torch.cat([head.embed(batch.features_BZD), batch.position_BZ[..., None]], -1),
        batch.is_slice_BZ,
    )
    for b, length in enumerate((4, 6)):
        for k in range(6):
            weights = head.attention(context[b, :length])[:, k].softmax(dim=0)
            expected = (weights * head.series(context[b, :length])[:, k]).sum()
            found = logits_of(head, batch).series_BK[b, k]
            torch.testing.assert_close(found, expected)


def test_deltas_are_0_at_the_ends_of_a_series() -> None:
    values = torch.tensor([[1.0, 3.0, 7.0], [2.0, 5.0, 0.0]])[..., None]
    mask = torch.tensor([[True, True, True], [True, True, False]])
    before, after = deltas(values, mask)
    assert before[..., 0].tolist() == [[0, 2, 4], [0, 3, 0]]
    assert after[..., 0].tolist() == [[-2, -4, 0], [-3, 0, 0]]


def test_only_training_disturbs_the_features() -> None:
    batch = SeriesBatches(noise_series([30]), CONFIG, CPU).batch(np.array([0]))
    head = make_head(replace(CONFIG, dropout=0.0, slice_dropout=0.5))
    first, second = logits_of(head, batch), logits_of(head, batch)
    assert torch.equal(first.slices_BZK, second.slices_BZK)
    head.train()
    instances = logits_of(head, batch).instances_BZK[0]
    # Without its numbers a slice has the bias of the layer as its logits.
    is_dropped_Z = (instances == head.instances.bias).all(dim=1)
    assert 5 <= is_dropped_Z.sum() <= 25
    assert not torch.equal(instances, logits_of(head, batch).instances_BZK[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_reads_the_order_of_the_slices_also_without_positions(
    kind: str,
) -> None:
    head = make_head(replace(CONFIG, kind=kind))
    features_BZD = torch.randn(1, 7, 11)
    is_slice_BZ, position_BZ = torch.ones(1, 7, dtype=torch.bool), torch.zeros(1, 7)
    with torch.no_grad():
        forward = head(features_BZD, is_slice_BZ, position_BZ).slices_BZK
        backward = head(features_BZD.flip(1), is_slice_BZ, position_BZ).slices_BZK
    assert (backward.flip(1) - forward).abs().max() > 1e-3
