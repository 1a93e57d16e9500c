"""Rates and concurrency, by a clock of the test's own."""

from __future__ import annotations

import pytest

from server.access import limits
from server.access.errors import Limited
from server.access.limits import Accounts, Share


def test_a_rate_is_kept_and_the_wait_is_named() -> None:
    accounts, share = Accounts(), Share(rate_per_s=10, burst=3)
    for _ in range(3):
        accounts.leave(accounts.enter("a", share, 0.0))
    with pytest.raises(Limited, match="'a' may send 10 requests a second") as refused:
        accounts.enter("a", share, 0.0)
    assert refused.value.retry_after_s == pytest.approx(0.1)
    accounts.enter("b", share, 0.0)  # others are not touched
    accounts.enter("a", share, 0.1)
    accounts.enter("a", share, 1000.0)
    accounts.enter("a", share, 1000.0)
    accounts.enter("a", share, 1000.0)
    with pytest.raises(Limited):  # a long pause saves up no more than the burst
        accounts.enter("a", share, 1000.0)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    accounts, share = Accounts(), Share(rate_per_s=1, burst=1)
    accounts.enter("a", share, 100.0)
    with pytest.raises(Limited):
        accounts.enter("a", share, 50.0)
    with pytest.raises(Limited):
        accounts.enter("a", share, 50.5)
    accounts.enter("a", share, 51.0)


def test_calls_at_a_time() -> None:
    accounts, share = Accounts(), Share(concurrency=2)
    first, _ = accounts.enter("a", share, 0.0), accounts.enter("a", share, 0.0)
    with pytest.raises(Limited, match="has 2 calls running, and may have 2"):
        accounts.enter("a", share, 0.0)
    accounts.leave(first)
    accounts.enter("a", share, 0.0)


def test_messages_of_a_stream_are_paid_for() -> None:
    accounts, share = Accounts(), Share(rate_per_s=1, burst=2)
    account = accounts.enter("a", share, 0.0)
    accounts.spend("a", account, share, 0.0)
    with pytest.raises(Limited):
        accounts.spend("a", account, share, 0.0)


def test_callers_without_end_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_REMEMBERED", 10)
    accounts, share = Accounts(), Share(rate_per_s=1, concurrency=1)
    accounts.enter("busy", share, 0.0)
    for number in range(100):
        accounts.leave(accounts.enter(f"c{number}", share, 0.0))
    assert len(accounts) <= 11
    with pytest.raises(Limited):  # whoever has a call running is not forgotten
        accounts.enter("busy", share, 100.0)
