"""Series in order, sampled evenly, shuffled by seed and padded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ichfast.series.batches import (
    SeriesBatch,
    SeriesBatches,
    epoch_batches,
    map_back,
    sample_evenly,
    series_rows,
)
from ichfast.series.config import SeriesConfig
from tests.series.arrays import noise_series

CPU = torch.device("cpu")


def make_table() -> pd.DataFrame:
    """Three series: two of one study, one with unknown and repeated positions."""
    columns = [
        "patient", "study", "series", "position_mm", "instance_number", "slice_id",
    ]  # fmt: skip
    return pd.DataFrame(
        [
            ("p1", "s1", "b", 10.0, 2, "ID_1"),
            ("p2", "s1", "a", np.nan, 1, "ID_2"),
            ("p1", "s1", "a", 5.0, 1, "ID_3"),
            ("p2", "s1", "a", 0.0, 3, "ID_4"),
            ("p1", "s1", "b", -5.0, 9, "ID_5"),
            ("p2", "s1", "a", 0.0, 2, "ID_6"),
            ("p1", "s1", "b", 0.0, 5, "ID_7"),
        ],
        columns=columns,
        index=[9, 9, 4, 3, 2, 1, 0],
    )


def test_series_are_found_in_the_order_of_a_store() -> None:
    rows = series_rows(make_table())
    assert [each.tolist() for each in rows] == [[2], [4, 6, 0], [5, 3, 1]]


def test_an_empty_table_has_no_series() -> None:
    assert series_rows(make_table().iloc[:0]) == []


@pytest.mark.parametrize("num_slices", [1, 2, 5, 63, 64, 65, 66, 127, 128, 700])
def test_sampling_is_even_and_keeps_both_ends(num_slices: int) -> None:
    sampled = sample_evenly(num_slices, 64)
    assert len(sampled) == min(num_slices, 64)
    assert sampled[0] == 0
    assert sampled[-1] == num_slices - 1
    steps = np.diff(sampled)
    if num_slices > 1:
        assert 1 <= steps.min() <= steps.max() <= steps.min() + 1


def test_logits_of_sampled_slices_stay_and_others_are_interpolated() -> None:
    sampled = sample_evenly(11, 5)
    assert sampled.tolist() == [0, 2, 5, 7, 10]
    logits = np.stack([sampled, -2.0 * sampled, sampled**2], axis=1).astype(float)
    mapped = map_back(logits, sampled, 11)
    assert mapped.shape == (11, 3)
    np.testing.assert_array_equal(mapped[sampled], logits)
    np.testing.assert_allclose(mapped[:, 0], np.arange(11))
    np.testing.assert_allclose(mapped[:, 1], -2 * np.arange(11))
    assert mapped[6, 2] == (25 + 49) / 2


def test_an_epoch_has_each_series_once_in_batches_of_nearly_equal_size() -> None:
    batches = epoch_batches(23, 5, seed=1, epoch=0)
    assert [len(each) for each in batches] == [5, 5, 5, 4, 4]
    assert sorted(np.concatenate(batches)) == list(range(23))
    again = epoch_batches(23, 5, seed=1, epoch=0)
    assert np.array_equal(np.concatenate(batches), np.concatenate(again))
    for other in ({"seed": 1, "epoch": 1}, {"seed": 2, "epoch": 0}):
        order = np.concatenate(epoch_batches(23, 5, **other))
        assert not np.array_equal(order, np.concatenate(batches))


def make_batch(config: SeriesConfig) -> SeriesBatch:
    arrays = noise_series((3, 9))
    return SeriesBatches(arrays, config, CPU).batch(np.array([1, 0]))


def test_a_batch_is_padded_at_the_end_of_the_shorter_series() -> None:
    arrays, batch = noise_series((3, 9)), make_batch(SeriesConfig())
    assert batch.is_slice_BZ.sum(dim=1).tolist() == [9, 3]
    np.testing.assert_array_equal(batch.features_BZD[0], arrays.features_ND[3:])
    np.testing.assert_array_equal(batch.features_BZD[1, :3], arrays.features_ND[:3])
    np.testing.assert_array_equal(batch.targets_BZK[1, :3], arrays.labels_NK[:3])
    assert (batch.features_BZD[1, 3:] == 0).all()
    assert batch.targets_BZK[1, 3:].isnan().all()
    assert not batch.is_slice_BZ[1, 3:].any()


def test_a_long_series_keeps_its_label_when_its_positive_slice_is_not_sampled() -> None:
    arrays = noise_series((9,))
    labels = np.zeros_like(arrays.labels_NK)
    labels[1, 0] = 1.0
    arrays = replace(arrays, labels_NK=labels)
    batches = SeriesBatches(arrays, SeriesConfig(max_slices=4), CPU)
    batch = batches.batch(np.array([0]))
    assert batches.sampled[0].tolist() == [0, 2, 5, 8]
    np.testing.assert_array_equal(
        batch.features_BZD[0], arrays.features_ND[[0, 2, 5, 8]]
    )
    assert batch.targets_BZK.sum() == 0
    assert batch.series_targets_BK[0].tolist() == [1, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(batch.position_BZ[0], np.array([0, 2, 5, 8]) / 8)


def test_positions_are_ordinal_or_hundreds_of_millimetres_from_the_middle() -> None:
    ordinal = make_batch(SeriesConfig(position="ordinal")).position_BZ
    np.testing.assert_allclose(ordinal[0], np.linspace(0, 1, 9))
    np.testing.assert_allclose(ordinal[1, :3], [0, 0.5, 1])
    z = make_batch(SeriesConfig(position="z")).position_BZ
    np.testing.assert_allclose(z[0], 0.05 * np.arange(-4, 5), atol=1e-7)
    np.testing.assert_allclose(z[1, :3], [-0.05, 0, 0.05], atol=1e-7)


@pytest.mark.parametrize(
    ("position_mm", "expected"),
    [([10.0, 20.0, np.nan], [-0.05, 0.05, 0]), ([np.nan] * 3, [0, 0, 0])],
)
def test_a_slice_without_a_position_is_placed_in_the_middle(
    position_mm: list[float], expected: list[float]
) -> None:
    arrays = replace(noise_series((3,)), position_mm_N=np.array(position_mm))
    batches = SeriesBatches(arrays, SeriesConfig(position="z"), CPU)
    np.testing.assert_allclose(
        batches.batch(np.array([0])).position_BZ[0], expected, atol=1e-7
    )


def test_a_series_has_its_own_label_or_that_of_its_slices() -> None:
    arrays = noise_series((2, 2))
    missing = np.float32(np.nan)
    labels = np.zeros((4, 6), np.float32)
    labels[0, 0], labels[1, 1] = 1, missing  # all known; partly missing
    labels[0, 2], labels[1, 2] = 1, missing  # without a label of the series
    labels[:2, 3] = missing  # only the series is labelled
    labels[:2, 4] = missing  # nothing is
    series_labels = np.full((2, 6), missing)
    series_labels[0, [1, 3]] = 1
    arrays = replace(arrays, labels_NK=labels, series_labels_SK=series_labels)
    np.testing.assert_array_equal(arrays.targets_SK[0], [1, 1, missing, 1, missing, 0])
    np.testing.assert_array_equal(arrays.targets_SK[1], np.zeros(6))
    np.testing.assert_array_equal(
        np.argwhere(~np.isnan(arrays.bag_labels_SK)), [[0, 3]]
    )
    assert np.isnan(arrays.series_labels_SK).sum() == 10  # unchanged
