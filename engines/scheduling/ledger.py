"""Who asked for what, and what they got: attainment by class of deadlines, and shares by tenant.

Rule: nothing here reads a clock. Recent counts fade with time, halving every `_HALF_LIFE_S`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

from engines.scheduling.report import ClassStatistics, Pending

_HALF_LIFE_S: Final = 2.0
_LEAST_SEEN: Final = 0.05
"""Part of a full memory below which a rate is not extrapolated further."""
_TENANTS: Final = 1024
"""Most tenants with an account; beyond, the least active is forgotten."""


class Fading:
    """A count that forgets: an event weighs half after one half-life."""

    __slots__ = ("_at", "_count", "_decay", "_since")

    def __init__(self, half_life_s: float = _HALF_LIFE_S) -> None:
        self._decay = math.log(2.0) / half_life_s
        self._count = 0.0
        self._at = -math.inf
        self._since = math.inf

    def half_life(self, seconds: float) -> None:
        """Forget at another pace from now on."""
        self._decay = math.log(2.0) / seconds

    def add(self, amount: float, now: float) -> None:
        """Count it."""
        self._count = self.value(now) + amount
        self._at = now
        self._since = min(self._since, now)

    def value(self, now: float) -> float:
        """What is left of all that was counted."""
        return self._count * math.exp(-self._decay * (now - self._at)) if self._count else 0.0

    def rate(self, now: float) -> float:
        """Counts a second, over about the last half-life, or since the first if that is less."""
        seen = -math.expm1(-self._decay * max(0.0, now - self._since))
        return self.value(now) * self._decay / max(seen, _LEAST_SEEN)


class _Class:
    __slots__ = ("asked", "got", "label", "late", "left", "met", "offered", "refused")

    def __init__(self, label: str) -> None:
        self.label = label
        self.offered = self.refused = self.left = self.met = self.late = 0
        self.asked = Fading()
        self.got = Fading()


class Ledger:
    """The account of one queue."""

    def __init__(self, classes_s: Sequence[float], floor: float) -> None:
        self._bounds = sorted(classes_s)
        labels = [f"<={bound:g}s" for bound in self._bounds]
        labels += [f">{self._bounds[-1]:g}s" if self._bounds else "any", "none"]
        self._classes = [_Class(label) for label in labels]
        self._floor = floor
        self._asked = Fading()
        self._got = Fading()
        self._tenants: dict[str, Fading] = {}

    def offered(self, pending: Pending, now: float) -> None:
        """It came, whatever becomes of it."""
        account = self._of(pending)
        account.offered += 1
        account.asked.add(1.0, now)
        self._asked.add(1.0, now)

    def refused(self, pending: Pending) -> None:
        """It was told no."""
        self._of(pending).refused += 1

    def left(self, pending: Pending) -> None:
        """Its caller went away."""
        self._of(pending).left += 1

    def ran(self, pending: Pending, *, met: bool) -> None:
        """Its execution has ended."""
        account = self._of(pending)
        if met:
            account.met += 1
        else:
            account.late += 1

    def started(self, members: Sequence[Pending], now: float) -> None:
        """They leave for an engine together."""
        self._got.add(len(members), now)
        if len(members) == 1:  # the rule at low load, where each microsecond shows
            (pending,) = members
            self._of(pending).got.add(1.0, now)
            self._tenant(pending.tenant, now).add(pending.rows, now)
            return
        rows: dict[str, int] = {}
        got: dict[_Class, int] = {}
        for pending in members:
            rows[pending.tenant] = rows.get(pending.tenant, 0) + pending.rows
            account = self._of(pending)
            got[account] = got.get(account, 0) + 1
        for account, count in got.items():
            account.got.add(count, now)
        for name, count in rows.items():
            self._tenant(name, now).add(count, now)

    def owed(self, pending: Pending, now: float) -> bool:
        """Whether its class has lately been served a smaller part of what it asked than the floor, times the mean."""
        account = self._of(pending)
        asked = self._asked.value(now)
        return account.got.value(now) * asked < self._floor * account.asked.value(now) * self._got.value(now)

    def above_share(self, pending: Pending, now: float) -> bool:
        """Whether its tenant has lately had more than an equal part of what was executed. Never with one tenant."""
        if len(self._tenants) < 2:
            return False
        mine = self._tenants.get(pending.tenant)
        if mine is None:
            return False
        active = [value for tenant in self._tenants.values() if (value := tenant.value(now)) >= 1.0]
        return len(active) > 1 and mine.value(now) > sum(active) / len(active)

    def statistics(self) -> Mapping[str, ClassStatistics]:
        """By label, those that were ever asked for."""
        return {
            account.label: ClassStatistics(account.offered, account.refused, account.left, account.met, account.late)
            for account in self._classes
            if account.offered
        }

    def _tenant(self, name: str, now: float) -> Fading:
        tenant = self._tenants.get(name)
        if tenant is None:
            if len(self._tenants) >= _TENANTS:
                del self._tenants[min(self._tenants, key=lambda other: self._tenants[other].value(now))]
            tenant = self._tenants[name] = Fading()
        return tenant

    def _of(self, pending: Pending) -> _Class:
        if pending.deadline == math.inf:
            return self._classes[-1]
        return self._classes[bisect_left(self._bounds, pending.deadline - pending.arrived - 1e-9)]
