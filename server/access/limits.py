"""How often, and how many calls at once, one caller may come. `now` is an argument, in seconds of any steady clock."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from server.access.errors import Limited

_REMEMBERED: Final = 10_000
"""Callers with a budget of their own. Beyond it the one that was longest away is forgotten, if it is idle."""
_TRIES: Final = 4
"""How many are looked at for one that is idle; more than one, so that there are soon few enough again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one caller may use. 0: without bound."""

    rate_per_s: float = 0.0
    """Requests a second, over time; each message of a stream is one."""
    burst: int = 0
    """Requests at once after a pause. 0: what a second brings, at least one."""
    concurrency: int = 0
    """Calls at a time; a stream is one."""

    @property
    def bounded(self) -> bool:
        """Whether there is anything to count."""
        return self.rate_per_s > 0 or self.concurrency > 0

    @property
    def depth(self) -> float:
        """The most that can be saved up."""
        return float(self.burst) if self.burst else max(1.0, self.rate_per_s)


class Account:
    """What one caller has used."""

    __slots__ = ("calls", "left", "seen_s")

    def __init__(self, share: Share, now: float) -> None:
        self.left = share.depth
        self.seen_s = now
        self.calls = 0


class Accounts:
    """The accounts of all callers."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[str, Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def enter(self, caller: str, share: Share, now: float) -> Account:
        """A call begins: its account, to be given to `leave`. Raises Limited."""
        account = self._accounts.get(caller)
        if account is None:
            account = self._accounts[caller] = Account(share, now)
            self._forget()
        else:
            self._accounts.move_to_end(caller)
        if share.concurrency and account.calls >= share.concurrency:
            raise Limited(f"'{caller}' has {account.calls} calls running, and may have {share.concurrency}", 0.1)
        self.spend(caller, account, share, now)
        account.calls += 1
        return account

    @staticmethod
    def spend(caller: str, account: Account, share: Share, now: float) -> None:
        """One request. Raises Limited when it comes too soon."""
        if not share.rate_per_s:
            return
        account.left = min(share.depth, account.left + max(0.0, now - account.seen_s) * share.rate_per_s)
        account.seen_s = now
        if account.left < 1.0:
            wait_s = (1.0 - account.left) / share.rate_per_s
            raise Limited(f"'{caller}' may send {share.rate_per_s:g} requests a second", wait_s)
        account.left -= 1.0

    @staticmethod
    def leave(account: Account) -> None:
        """A call has ended."""
        account.calls -= 1

    def _forget(self) -> None:
        for _ in range(_TRIES):
            if len(self._accounts) <= _REMEMBERED:
                return
            oldest = next(iter(self._accounts))
            if self._accounts[oldest].calls == 0:
                del self._accounts[oldest]
            else:
                self._accounts.move_to_end(oldest)
