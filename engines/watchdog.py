"""How long an execution may take before its engine is given up, and how many such engines a process bears.

A thread that hangs inside native code cannot be ended. Its engine is therefore left alone, and a new one takes its
place; what the old one holds stays held. That is why their number has a bound, over all models of the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """When an execution counts as hung."""

    floor_s: float = 60.0
    """No execution is given up sooner. math.inf: none ever is."""
    factor: float = 20.0
    """Nor is one before it took so many times the seconds that its rows are expected to take."""
    max_hung: int = 3
    """Hung threads that the process bears. With one more it is beyond repair: no engine is replaced any more."""

    def bound_s(self, expected_s: float) -> float:
        """How long an execution may take that is expected to take so long; 0 when nothing is known of it."""
        return max(self.floor_s, self.factor * expected_s)


@dataclass(slots=True)
class HungEngines:
    """Engines that were given up and whose threads have not come back, over all pools of a process."""

    patience: Patience = field(default_factory=Patience)
    too_many: Callable[[], None] = lambda: None
    """Called when there are more than the process bears."""
    count: int = 0

    @property
    def bearable(self) -> bool:
        """Whether those that were given up may still be replaced."""
        return self.count <= self.patience.max_hung

    def gave_up(self) -> None:
        """One more hangs."""
        self.count += 1
        if not self.bearable:
            self.too_many()

    def came_back(self) -> None:
        """One of them was only slow, and has ended."""
        self.count -= 1


@dataclass(frozen=True, slots=True)
class Watch:
    """What one pool's watchdog goes by."""

    hung: HungEngines
    expected_s: Callable[[int], float] = lambda _: 0.0
    """Expected seconds of an execution by its rows, padding included; 0 when nothing is known."""

    @property
    def on(self) -> bool:
        """Whether anything is ever given up."""
        return self.hung.patience.floor_s < math.inf

    @property
    def floor_s(self) -> float:
        """No execution is given up sooner."""
        return self.hung.patience.floor_s

    def bound_s(self, rows: int) -> float:
        """How long an execution of so many rows may take."""
        return self.hung.patience.bound_s(self.expected_s(rows))
