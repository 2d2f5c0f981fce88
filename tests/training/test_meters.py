"""Waiting for data: measured, and worth a word when it is long."""

from __future__ import annotations

import logging
import time

import pytest
import torch

from ichfast.training.meters import WARM_UP, WINDOW, LoaderWatch, WaitMeter


def watch(wait_share: float, num_batches: int, first_wait_s: float = 0.0) -> None:
    """Batches of one second, of which a share was spent waiting."""
    watched = LoaderWatch()
    for done in range(1, num_batches + 1):
        elapsed_s = done + first_wait_s
        watched.note(elapsed_s=elapsed_s, waited_s=wait_share * done + first_wait_s)


def test_a_loader_that_is_the_limit_is_named_once_with_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch(0.43, 10 * (WARM_UP + WINDOW))
    (record,) = caplog.records
    assert "the loader is the limit: 43 % of the time" in record.getMessage()
    assert "--set data.level=256" in record.getMessage()


@pytest.mark.parametrize(
    ("wait_share", "num_batches", "first_wait_s"),
    [(0.1, 500, 0.0), (0.9, WARM_UP + WINDOW - 1, 0.0), (0.1, 500, 1000.0)],
    ids=["short waits", "too few batches to tell", "a slow start"],
)
def test_nothing_is_said_of(
    caplog: pytest.LogCaptureFixture,
    wait_share: float,
    num_batches: int,
    first_wait_s: float,
) -> None:
    with caplog.at_level(logging.INFO):
        watch(wait_share, num_batches, first_wait_s)
    assert caplog.records == []


def test_only_what_is_wrapped_counts_as_waiting() -> None:
    meter = WaitMeter(torch.device("cpu"))
    assert meter.seconds() == 0
    for _ in range(2):
        with meter.waiting():
            time.sleep(0.02)
        time.sleep(0.1)
    assert 0.04 <= meter.seconds() < 0.2
