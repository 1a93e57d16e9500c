"""What is kept of all rows ever seen, in little memory: a quantile sketch or counts for each column.

Sketches merge, in any order, so that parts may be profiled apart. They are approximate (KLL with k = 200: ranks within
1.33 % with 99 % confidence), which is good enough to place the edges of bins: any edges make a valid test. Counts in
these bins, and ranks, come from a uniform sample of rows kept exactly (`Sample`): a test that took approximate ranks
for exact ones would raise false alarms in large windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import datasketches
import numpy as np
from numpy.typing import NDArray

from server.watch.plan import Column, Matrix

K: Final = 200
SAMPLE_ROWS: Final = 4096
"""Adds less than a quarter to the noise of a window of 1000 rows; 64 columns of them take 2 MiB."""


class ColumnSketch:
    """All values of one column."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.missing = 0
        self.counts: NDArray[np.int64] = np.zeros(len(column.categories), np.int64)
        self._numbers: Any = datasketches.kll_doubles_sketch(K)

    @property
    def present(self) -> int:
        """Values that are not missing."""
        return int(self.counts.sum()) if self.column.categories else int(self._numbers.n)

    def update(self, values: Matrix) -> None:
        """Take in values; NaN is missing."""
        known = values[~np.isnan(values)]
        self.missing += len(values) - len(known)
        if self.column.categories:
            self.counts += np.bincount(known.astype(np.int64), minlength=len(self.counts))
        elif len(known):
            self._numbers.update(np.ascontiguousarray(known))

    def merge(self, other: ColumnSketch) -> None:
        """Take in all that another sketch of the same column has seen."""
        self.missing += other.missing
        self.counts += other.counts
        self._numbers.merge(other._numbers)

    def quantiles(self, ranks: Sequence[float]) -> list[float]:
        """Values at these ranks; empty when there are none."""
        return [] if self._numbers.is_empty() else [float(value) for value in self._numbers.get_quantiles(list(ranks))]

    def to_bytes(self) -> bytes:
        """The quantile sketch in the portable form of Apache DataSketches."""
        return bytes(self._numbers.serialize())

    @classmethod
    def from_bytes(cls, column: Column, data: bytes, missing: int, counts: Sequence[int]) -> ColumnSketch:
        """The inverse of `to_bytes`. Raises ValueError."""
        sketch = cls(column)
        if len(counts) != len(column.categories):
            raise ValueError(f"column '{column.name}' has {len(column.categories)} categories, not {len(counts)}")
        try:
            sketch._numbers = datasketches.kll_doubles_sketch.deserialize(data)
        except Exception as error:
            raise ValueError(f"the sketch of column '{column.name}' cannot be read: {error}") from error
        sketch.missing = missing
        sketch.counts += np.asarray(counts, np.int64)
        return sketch


@dataclass(slots=True)
class Sample:
    """A uniform sample of rows: those with the smallest of as many random keys. Samples merge like the streams do."""

    rows: Matrix
    keys: NDArray[np.float64]
    size: int = SAMPLE_ROWS

    @classmethod
    def empty(cls, columns: int, size: int = SAMPLE_ROWS) -> Sample:
        """Nothing yet."""
        return cls(np.empty((0, columns)), np.empty(0), size)

    def update(self, rows: Matrix, random: np.random.Generator) -> None:
        """Give each row its chance."""
        self._take(rows, random.random(len(rows)))

    def merge(self, other: Sample) -> None:
        """As if this one had seen the other's rows too; the keys must come from generators of different seeds."""
        self._take(other.rows, other.keys)

    def _take(self, rows: Matrix, keys: NDArray[np.float64]) -> None:
        all_keys = np.concatenate([self.keys, keys])
        order = np.argsort(all_keys)[: self.size]
        self.rows, self.keys = np.concatenate([self.rows, rows])[order], all_keys[order]
