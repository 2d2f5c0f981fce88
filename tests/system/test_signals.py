"""The first signal sets a flag, a later one has its usual effect."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from ichfast.system import signals
from ichfast.system.signals import signals_interrupt, stop_on_signal

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_becomes_a_flag_and_its_echo_is_no_second_one(number: int) -> None:
    before = signal.getsignal(number)
    with stop_on_signal() as should_stop:
        assert not should_stop()
        for _ in range(3):
            signal.raise_signal(number)
        assert should_stop()
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "ECHO_S", 0.0)
    with stop_on_signal() as should_stop:
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", STOPPING)
def test_each_signal_interrupts_and_has_its_old_effect_after_the_block(
    number: int,
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("block", [signals_interrupt, stop_on_signal])
def test_a_signal_that_is_ignored_as_by_nohup_stays_ignored(
    block: Callable[[], AbstractContextManager[object]],
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with block():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
