"""The first signal sets a flag, a later one has its usual effect."""

from __future__ import annotations

import signal

import pytest

from ichfast.system import signals
from ichfast.system.signals import stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
