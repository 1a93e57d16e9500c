"""How much fruitless work a peer may cause before it is told to calm down.

Rule: time is an argument, and is only looked at when a budget runs out; useful work refills a budget by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from server.transport.http2.errors import ConnectionFault, ErrorCode

_NEVER: Final = float("-inf")
_IDLE_PING_INTERVAL_S: Final = 7200.0  # what gRPC's other servers allow on a connection without calls


class Budget:
    """A token bucket: `burst` at most, refilled by `per_s` each second and by useful work."""

    __slots__ = ("_filled_at", "burst", "left", "per_s", "what")

    def __init__(self, what: str, *, burst: int, per_s: float) -> None:
        self.what = what
        self.burst = burst
        self.per_s = per_s
        self.left: float = burst
        """Tokens left. Where every call counts, it is changed directly: up for useful work, down for the rest."""
        self._filled_at = _NEVER

    def earn(self, tokens: int) -> None:
        """Add `tokens`, and cut what is above `burst`."""
        self.left = min(self.left + tokens, self.burst)

    def spend(self, cost: int, now: float) -> None:
        """Take `cost` tokens. ConnectionFault(ENHANCE_YOUR_CALM) when there are too few."""
        self.left -= cost
        if self._filled_at == _NEVER:
            self._filled_at = now
        if self.left >= 0:
            return
        self.left = min(self.left + (now - self._filled_at) * self.per_s, self.burst)
        self._filled_at = now
        if self.left < 0:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {self.what}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PingLimits:
    """How often a client may send keepalive pings; the defaults are those of gRPC's other servers."""

    min_interval_s: float = 300.0
    """Shortest time between pings while nothing is sent to the client. 0: any rate."""
    without_calls: bool = False
    """Whether that interval also holds on a connection without calls; else it is two hours."""
    max_strikes: int = 2
    """Pings that come too soon and are forgiven. The next one ends the connection."""


class PingGuard:
    """Counts pings that come sooner than allowed."""

    __slots__ = ("_last", "_limits", "_strikes")

    def __init__(self, limits: PingLimits) -> None:
        self._limits = limits
        self._last = _NEVER
        self._strikes = 0

    def forgive(self) -> None:
        """Something was sent to the client, so that its pings have a purpose."""
        self._last = _NEVER
        self._strikes = 0

    def pinged(self, now: float, *, idle: bool) -> None:
        """A ping came. ConnectionFault(ENHANCE_YOUR_CALM) when it was one too many."""
        limits = self._limits
        interval = _IDLE_PING_INTERVAL_S if idle and not limits.without_calls else limits.min_interval_s
        too_soon = limits.min_interval_s > 0 and now < self._last + interval
        self._last = now
        if too_soon:
            self._strikes += 1
            if self._strikes > limits.max_strikes:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
