"""What an execution costs: seconds by batch size, learned from a sweep and from every execution since.

Rule: nothing here reads a clock; `CostModel` is told how long each execution took.
Shape: seconds(rows) = curve(rows) * ratio. The curve is the isotonic regression (pool adjacent violators) of one
median per size, read off linearly in between; the ratio says how far single executions stray from the curve, and is
shared by all sizes, so that a size that ran twice has a usable quantile.
Robust: medians ignore outliers, a ratio counts as at most four.
Drift: when four executions in a row are outside the quantiles, or the median of the last twelve is a tenth off and not
by chance, the whole curve moves by that median: sizes that have not run lately are corrected too.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Final

import numpy as np

FORMAT: Final = 1
"""Version of `as_dict`."""
_SAMPLES: Final = 24
"""Executions of one size that its median is taken over."""
_RATIOS: Final = 256
"""Executions of any size that the quantile is taken over."""
_RECENT: Final = 12
_DRIFT: Final = 0.1
"""The curve moves when the median of the last `_RECENT` ratios is off by more than this, ..."""
_CHANCE: Final = 4.0 * 1.25 / math.sqrt(_RECENT)
"""... and by more than this times their standard deviation: four of the median's own."""
_IN_A_ROW: Final = 4
_OUTLIER: Final = 4.0
"""No single execution counts as further from the curve than this factor."""
_REFRESH: Final = 8
"""Executions between two computations of the tables; a drift is followed at once."""
_REFRESH_S: Final = 0.01
"""Executed seconds between two of them: quick models would otherwise spend more on the tables than on their rows."""


@dataclass(frozen=True, slots=True)
class CostStatistics:
    """A snapshot."""

    executions: int
    error_ratio: float
    """Mean of the last 32 executions' seconds over what the curve said at the time. 1: exact; 2: twice as slow."""
    spread: float
    """Quantile over typical: 1.5 says that batches are planned with 1.5 times the typical seconds."""
    seconds: Mapping[int, float]
    """The curve: typical seconds by executed rows."""


class CostModel:
    """Cost of one model on one kind of device; `typical`, `means` and `bounds` are tables indexed by rows."""

    def __init__(self, max_rows: int, allowed_rows: Sequence[int] = (), *, quantile: float = 0.9) -> None:
        self.max_rows = max_rows
        self.sizes: list[int] = _sizes(max_rows, allowed_rows)
        """Sizes worth considering, ascending; the last is `max_rows`."""
        self.quantile = quantile
        self._padded = [
            self.sizes[bisect_left(self.sizes, rows)] if rows and allowed_rows else rows for rows in range(max_rows + 1)
        ]
        self._samples: dict[int, deque[float]] = {}
        self._ratios: deque[float] = deque(maxlen=_RATIOS)
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._errors: deque[float] = deque(maxlen=32)
        self._executions = 0
        self._unread_s = 0.0
        self._tolerance = _DRIFT
        self._least = 1.0
        self.spread = 1.0
        self.typical = [0.0] * (max_rows + 1)
        self.means = self.typical
        """Expected seconds by rows, padding included. Ascending; the entry of no rows is 0."""
        self.bounds = self.typical
        """Seconds that only one in 1/(1 - quantile) executions exceeds."""

    def __repr__(self) -> str:
        curve = " ".join(f"{rows}:{seconds * 1e3:.3g}" for rows, seconds in self.statistics().seconds.items())
        return f"<CostModel [ms: {curve} | spread: {self.spread:.2f} | executions: {self._executions}]>"

    def padded(self, rows: int) -> int:
        """The size that the engine executes for so many rows."""
        return self._padded[rows] if rows <= self.max_rows else rows

    def seed(self, sweep: Mapping[int, float]) -> None:
        """Start from measured seconds by rows; what was known of these sizes is forgotten."""
        for rows, seconds in sweep.items():
            if rows > 0 and 0.0 < seconds < math.inf:
                self._samples[min(rows, self.max_rows)] = deque([seconds], maxlen=_SAMPLES)
        self._refresh()

    def observe(self, rows: int, seconds: float) -> None:
        """An execution of that many rows, padding included, took that long."""
        if not 0 < rows <= self.max_rows or seconds <= 0.0:
            return
        self._executions += 1
        self._unread_s += seconds
        typical = self.typical[rows]
        if typical > 0.0:
            ratio = min(max(seconds / typical, 1.0 / _OUTLIER), _OUTLIER)
            self._errors.append(ratio)
            self._recent.append(ratio)
            self._ratios.append(ratio)
            seconds = ratio * typical  # a size that has hardly run must not believe in a single stall, either
        at = self._bucket(rows)
        if self.typical[at] > 0.0:
            seconds *= self.typical[at] / typical
        known = at in self._samples
        if not known:
            self._samples[at] = deque(maxlen=_SAMPLES)
        self._samples[at].append(seconds)
        drifted = self._follow_drift()
        if drifted or not known or (self._executions % _REFRESH == 0 and self._unread_s >= _REFRESH_S):
            self._refresh()

    def statistics(self) -> CostStatistics:
        """How good the model is, and what it says."""
        error = fmean(self._errors) if self._errors else 1.0
        return CostStatistics(
            self._executions, error, self.spread, {rows: self.typical[rows] for rows in sorted(self._samples)}
        )

    def as_dict(self) -> dict[str, Any]:
        """All that a restart should know, as plain JSON values."""
        ratios = sorted(self._ratios)
        return {
            "format": FORMAT,
            "seconds": {str(rows): self.typical[rows] for rows in sorted(self._samples)},
            "ratios": ratios[:: max(1, len(ratios) // 32)] + ratios[-1:],
        }

    def restore(self, state: object) -> None:
        """Continue from what `as_dict` gave; ValueError when it is something else."""
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            raise ValueError(f"not a cost file of format {FORMAT}")
        try:
            sweep = {int(rows): float(seconds) for rows, seconds in state["seconds"].items()}
            ratios = [float(ratio) for ratio in state["ratios"]]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a cost file: {error!r}") from error
        self._ratios.extend(ratio for ratio in ratios if 1.0 / _OUTLIER <= ratio <= _OUTLIER)
        self.seed(sweep)

    def _bucket(self, rows: int) -> int:
        at = bisect_left(self.sizes, rows)
        if at > 0 and rows * rows < self.sizes[at - 1] * self.sizes[at]:  # nearer to the lower size, as ratios go
            at -= 1
        return self.sizes[at]

    def _follow_drift(self) -> bool:
        recent = self._recent
        if self._strayed():
            factor, moved = median(list(recent)[-_IN_A_ROW:]), _IN_A_ROW
        elif (
            len(recent) == _RECENT and self._executions % _IN_A_ROW == 0 and abs(median(recent) - 1.0) > self._tolerance
        ):
            factor, moved = median(recent), _RECENT
        else:
            return False
        for rows in self._samples:
            self._samples[rows] = deque([self.typical[rows] * factor], maxlen=_SAMPLES)
        for _ in range(min(moved, len(self._ratios))):
            self._ratios.pop()
        recent.clear()
        return True

    def _carry_along(self, known: Sequence[int]) -> None:
        """Let sizes that have not run since they were last set follow those that have, up and down.

        Else each move of the whole curve would stay with them for good: what runs corrects only itself. Nor can a
        batch cost more than its rows would in batches of a size that runs.
        """
        fresh = {rows: median(self._samples[rows]) for rows in known if len(self._samples[rows]) > 1}
        if not fresh or len(fresh) == len(known):
            return
        changes = [seconds / self.typical[rows] for rows, seconds in fresh.items() if self.typical[rows] > 0.0]
        level = median(changes) if changes else 1.0
        for rows in known:
            if rows not in fresh:
                most = min((seconds * rows / run for run, seconds in fresh.items() if run < rows), default=math.inf)
                self._samples[rows] = deque([min(self._samples[rows][0] * level, most)], maxlen=_SAMPLES)

    def _strayed(self) -> bool:
        """Whether the last executions were all above the quantiles, or all below."""
        recent = self._recent
        if len(recent) < _IN_A_ROW:
            return False
        high, low = self.spread * (1.0 + _DRIFT), self._least * (1.0 - _DRIFT)
        if low <= recent[-1] <= high:
            return False
        last = list(recent)[-_IN_A_ROW:]
        return min(last) > high or max(last) < low

    def _refresh(self) -> None:
        self._unread_s = 0.0
        known = sorted(self._samples)
        if not known:
            return
        self._carry_along(known)
        medians = [median(self._samples[rows]) for rows in known]
        curve = isotonic(medians, [len(self._samples[rows]) for rows in known])
        by_rows = _read_off(known, curve, self.max_rows)
        self.typical = [0.0, *by_rows.tolist()]
        padded = np.asarray([0.0, *by_rows])[self._padded]
        self.spread = max(1.0, quantile_of(self._ratios, self.quantile))
        self._least = min(1.0, quantile_of(self._ratios, 1.0 - self.quantile))
        self._tolerance = max(_DRIFT, _CHANCE * float(np.std(self._ratios))) if self._ratios else _DRIFT
        self.means = (padded * (fmean(self._ratios) if self._ratios else 1.0)).tolist()
        self.bounds = (padded * self.spread).tolist()


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The ascending sequence nearest to `values` in weighted least squares: pool adjacent violators."""
    pools: list[list[float]] = []  # mean, weight, members
    for value, weight in zip(values, weights, strict=True):
        pools.append([value, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, heavy, members = pools.pop()
            below = pools[-1]
            total = below[1] + heavy
            below[0] = (below[0] * below[1] + mean * heavy) / total
            below[1] = total
            below[2] += members
    return [mean for mean, _, members in pools for _ in range(int(members))]


def quantile_of(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed; 1 when there are none."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 1.0


def _read_off(known: Sequence[int], curve: Sequence[float], max_rows: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The curve at 1..max_rows: linear in between, level below, continued above (level when only one is known)."""
    rows = np.arange(1, max_rows + 1, dtype=np.float64)
    seconds = np.interp(rows, known, curve)
    if len(known) > 1:
        slope = (curve[-1] - curve[0]) / (known[-1] - known[0])
        seconds += np.maximum(rows - known[-1], 0.0) * slope
    return seconds


def _sizes(max_rows: int, allowed_rows: Sequence[int]) -> list[int]:
    """The allowed sizes; or 1, 2, 3, 4, 6, 8, 12, 16, ...: two to each doubling."""
    if allowed_rows:
        return sorted({min(rows, max_rows) for rows in allowed_rows} | {max_rows})
    sizes = {max_rows, 1}
    power = 2
    while power < max_rows:
        sizes |= {power, min(power * 3 // 2, max_rows)}
        power *= 2
    return sorted(sizes)
