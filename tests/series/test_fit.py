"""Training is exact per seed, keeps the best epoch, and takes missing labels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ichfast.errors import TrainError
from ichfast.evaluation.logits import sigmoid
from ichfast.evaluation.metrics import weighted_log_loss
from ichfast.series.batches import SeriesArrays, SeriesBatches, map_back
from ichfast.series.config import KINDS, SeriesConfig
from ichfast.series.fit import (
    FittedHead,
    HeadTrainer,
    fit_head,
    predict_series,
    validate_head,
)
from ichfast.series.head import SeriesHead
from tests.series.arrays import noise_series
from tests.series.planted import planted_series

TRAIN, VALID = noise_series((3, 9, 5, 7, 4), seed=1), noise_series((6, 2), seed=2)
CONFIG = SeriesConfig(
    width=10, hidden=6, layers=1, batch_size=2, epochs=4, min_steps=0, lr=3e-3
)
MISSING = np.float32(np.nan)


def only_series_labels(arrays: SeriesArrays) -> SeriesArrays:
    return replace(
        arrays,
        labels_NK=np.full_like(arrays.labels_NK, MISSING),
        series_labels_SK=arrays.targets_SK,
    )


def without_times(fitted: FittedHead) -> list[dict[str, float]]:
    times = ("slices_per_s", "seconds", "wait_share")
    return [
        {name: value for name, value in row.items() if name not in times}
        for row in fitted.history
    ]


def loss_of(head: SeriesHead, valid: SeriesArrays) -> float:
    return validate_head(head, valid)["valid_weighted_log_loss"]


def weights(fitted: FittedHead) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in fitted.head.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(kind: str) -> None:
    config = replace(CONFIG, kind=kind)
    first = fit_head(TRAIN, VALID, config)
    torch.rand(7)  # torch's own state has no part in it
    second = fit_head(TRAIN, VALID, config)
    assert without_times(first) == without_times(second)
    assert torch.equal(weights(first), weights(second))
    other = fit_head(TRAIN, VALID, replace(config, seed=7))
    assert without_times(first) != without_times(other)


def test_fitting_leaves_the_random_state_of_torch_as_it_was() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    fit_head(TRAIN, VALID, CONFIG)
    assert torch.equal(torch.rand(3), expected)


def test_the_head_has_the_weights_of_the_best_epoch() -> None:
    fitted = fit_head(TRAIN, VALID, replace(CONFIG, lr=0.3, epochs=8))
    losses = [row["valid_weighted_log_loss"] for row in fitted.history]
    assert fitted.best_epoch == int(np.argmin(losses)) < len(losses) - 1
    assert loss_of(fitted.head, VALID) == losses[fitted.best_epoch]
    assert not fitted.head.training


def test_validation_is_the_weighted_log_loss_of_the_slices() -> None:
    head = fit_head(TRAIN, VALID, CONFIG).head
    probs = sigmoid(predict_series(head, VALID)[0])
    expected = weighted_log_loss(probs, VALID.labels_NK.astype(np.float64))
    assert loss_of(head, VALID) == pytest.approx(expected, rel=1e-12)


def test_validation_on_series_labels_takes_the_highest_slice() -> None:
    head = fit_head(TRAIN, VALID, CONFIG).head
    valid = only_series_labels(VALID)
    slices, _ = predict_series(head, valid)
    highest = np.array([slices[:6].max(axis=0), slices[6:].max(axis=0)])
    expected = weighted_log_loss(
        sigmoid(highest), valid.series_labels_SK.astype(np.float64)
    )
    assert loss_of(head, valid) == pytest.approx(expected, rel=1e-12)


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    head = fit_head(TRAIN, VALID, CONFIG).head
    expected = predict_series(head, TRAIN)
    head.config = replace(CONFIG, batch_size=5)
    for found, each in zip(predict_series(head, TRAIN), expected, strict=True):
        np.testing.assert_allclose(found, each, rtol=0, atol=1e-6)


def test_rows_of_no_series_have_no_logits() -> None:
    head = fit_head(TRAIN, VALID, CONFIG).head
    one = replace(
        VALID, rows=[np.array([5, 3])], series_labels_SK=VALID.series_labels_SK[:1]
    )
    slices, series = predict_series(head, one)
    assert np.flatnonzero(~np.isnan(slices).any(axis=1)).tolist() == [3, 5]
    assert series.shape == (1, 6)
    none = replace(VALID, rows=[], series_labels_SK=VALID.series_labels_SK[:0])
    slices, series = predict_series(head, none)
    assert np.isnan(slices).all()
    assert series.shape == (0, 6)


def test_a_long_series_is_predicted_from_its_sampled_slices() -> None:
    torch.manual_seed(0)
    head = SeriesHead(11, replace(CONFIG, max_slices=4)).eval()
    arrays = noise_series((9, 3))
    batches = SeriesBatches(arrays, head.config, torch.device("cpu"))
    batch = batches.batch(np.array([0]))
    with torch.no_grad():
        logits = head(batch.features_BZD, batch.is_slice_BZ, batch.position_BZ)
    slices, _ = predict_series(head, arrays)
    assert not np.isnan(slices).any()
    expected = map_back(logits.slices_BZK[0].double().numpy(), batches.sampled[0], 9)
    np.testing.assert_allclose(slices[:9], expected, rtol=0, atol=1e-6)


def test_a_head_trains_with_missing_labels() -> None:
    train, valid = planted_series(60, seed=0), planted_series(20, seed=1)
    rng = np.random.default_rng(4)
    labels = np.where(rng.random(train.labels_NK.shape) < 0.5, MISSING, train.labels_NK)
    config = replace(CONFIG, epochs=2, batch_size=4, lr=1e-2)
    fitted = fit_head(replace(train, labels_NK=labels), valid, config)
    assert all(math.isfinite(value) for row in fitted.history for value in row.values())
    first, last = (row["train_loss"] for row in fitted.history)
    assert last < first


def test_a_class_that_nothing_labels_leaves_its_outputs_as_they_were() -> None:
    labels = TRAIN.labels_NK.copy()
    labels[:, 3] = MISSING
    train, valid = replace(TRAIN, labels_NK=labels), only_series_labels(VALID)
    config = replace(CONFIG, weight_decay=0.0)
    torch.manual_seed(config.seed)
    before = SeriesHead(11, config)
    after = fit_head(train, valid, config).head
    for name in ("slices", "series", "instances"):
        weight = f"{name}.weight"
        is_same = (before.get_parameter(weight) == after.get_parameter(weight)).all(1)
        assert is_same.tolist() == [k == 3 for k in range(6)]


@pytest.mark.slow
def test_labels_of_series_alone_teach_the_slices() -> None:
    """The highest slice trains, and the head finds which slices are positive."""
    train, valid = planted_series(150, seed=0), planted_series(40, seed=1)
    # Every whole series has all classes, so there would be nothing to tell apart.
    train, valid = (_halves(each) for each in (train, valid))
    config = replace(CONFIG, width=32, hidden=16, batch_size=8, epochs=8, lr=1e-2)
    head = fit_head(only_series_labels(train), only_series_labels(valid), config).head
    slices, _ = predict_series(head, valid)
    for k in range(6):
        is_positive = valid.labels_NK[:, k] == 1
        positive, negative = slices[is_positive, k], slices[~is_positive, k]
        assert (positive[:, None] > negative).mean() > 0.8


def _halves(arrays: SeriesArrays) -> SeriesArrays:
    """Cut each series into two, so that many have no positive slice of a class."""
    rows = [half for whole in arrays.rows for half in np.array_split(whole, 2)]
    series_labels = np.full((len(rows), 6), MISSING)
    return replace(arrays, rows=rows, series_labels_SK=series_labels)


@pytest.mark.parametrize("name", ["training", "validation"])
def test_series_without_any_label_are_refused(name: str) -> None:
    unlabelled = replace(TRAIN, labels_NK=np.full_like(TRAIN.labels_NK, MISSING))
    sets = (unlabelled, VALID) if name == "training" else (TRAIN, unlabelled)
    with pytest.raises(TrainError, match=rf"none of the 5 {name} series has a label"):
        fit_head(*sets, CONFIG)


def test_features_that_are_not_finite_stop_the_training_in_one_line() -> None:
    features = TRAIN.features_ND.copy()
    features[4, 2] = np.inf
    with pytest.raises(TrainError, match="loss of the series head is nan in epoch 0"):
        fit_head(replace(TRAIN, features_ND=features), VALID, CONFIG)


def test_the_learning_rate_rises_to_its_peak_and_falls_over_all_epochs() -> None:
    trainer = HeadTrainer(
        TRAIN, VALID, replace(CONFIG, warm_up=0.2), torch.device("cpu")
    )
    epochs = range(trainer.num_epochs)
    rates = [rate for epoch in epochs for rate in trainer._rates(epoch)]
    peak = int(0.2 * len(rates))
    assert peak > 1
    assert rates[peak] == max(rates) == CONFIG.lr
    assert np.all(np.diff(rates[: peak + 1]) > 0)
    assert np.all(np.diff(rates[peak:]) < 0)
    assert 0 < rates[-1] < CONFIG.lr / 20
