"""Bounds on a mean of which only a sample is known, and the right to look at them again and again.

Rule: nothing here reads a clock or keeps a sample.

The bounds are Chernoff's in the form of Hoeffding (Probability inequalities for sums of bounded random variables, JASA
58, 1963, theorem 1): for n independent values in [0, 1] with mean p, P(mean >= q) <= exp(-n KL(q || p)) for any q > p.
They hold for every n, also for shares that are no plain yes or no, and near 0 and 1, where normal approximations fail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

_HALVINGS: Final = 50
"""Halving [0, 1] this often leaves less than a float can tell apart."""


def divergence(q: float, p: float) -> float:
    """KL divergence of a coin with mean `q` from one with mean `p`, in nats; infinite where p excludes q."""
    first = 0.0 if q == 0.0 else math.inf if p == 0.0 else q * math.log(q / p)
    second = 0.0 if q == 1.0 else math.inf if p == 1.0 else (1.0 - q) * math.log((1.0 - q) / (1.0 - p))
    return first + second


def upper(mean: float, count: int, level: float) -> float:
    """What the true mean exceeds with a probability of at most `level`; 1 without a sample."""
    if count == 0:
        return 1.0
    enough = -math.log(level) / count
    low, high = mean, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if divergence(mean, middle) > enough else (middle, high)
    return high


def lower(mean: float, count: int, level: float) -> float:
    """What the true mean is below of with a probability of at most `level`; 0 without a sample."""
    return 1.0 - upper(1.0 - mean, count, level)


@dataclass(slots=True)
class Looks:
    """When a growing sample may be tested, and at which level, so that all tests together keep one level.

    The k-th look is allowed level / (k (k + 1)), which sums up to `level` over all looks; looks come at sample sizes
    that grow geometrically, so that their number, and with it the price of looking, is logarithmic. (The stitching of
    Howard et al., Time-uniform, nonparametric, nonasymptotic confidence sequences, Annals of Statistics 49, 2021, in
    its plainest form.)
    """

    level: float
    """Chance that a test that should not fail ever does."""
    due: int = 10
    """Size of the sample at the next look."""
    growth: float = 1.25
    taken: int = 0

    def take(self, count: int) -> float | None:
        """The level of a look at a sample of this size; None while it is too early."""
        if count < self.due:
            return None
        self.taken += 1
        self.due = max(count + 1, math.ceil(count * self.growth))
        return self.level / (self.taken * (self.taken + 1))
