"""A window of rows against the reference: one test for each column, one for each tensor as a whole.

Numbers are compared by Kolmogorov-Smirnov, categories by chi-square, missing values by Fisher's exact test, and the
columns of a tensor jointly by `mean_discrepancy`, which sees what no single column shows. PSI and Wasserstein distance
say how large a difference is; whether it is more than chance is for the tests alone to say.
Promise: p-values are corrected over everything tested in one comparison (Holm), so that without drift the smallest of
them falls below the level no more often than the level says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from server.watch import scores
from server.watch.plan import Column, Matrix
from server.watch.sketch import ColumnSketch
from server.watch.table import Table

BINS: Final = 10
"""PSI's custom, by which 0.1 is worth a look and 0.25 worth a new model."""
SHOWN_BINS: Final = 24
LEAST_JOINT: Final = 2
"""Columns of numbers from which on a tensor is tested as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnScore:
    """One column of the window against the reference's."""

    column: Column
    psi: float
    distance: float
    """Kolmogorov-Smirnov's for numbers, half the sum of absolute differences of shares for categories."""
    missing: float
    """Share of the window's rows."""
    p_value: float = 1.0
    """Corrected over all that was tested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything about one window."""

    rows: int
    columns: tuple[ColumnScore, ...]
    joint: Mapping[str, scores.Score]
    """By tensor, with corrected p-values; under the empty name, tensors of one column taken together."""

    def p_value(self, tensor: str | None = None) -> float:
        """The smallest, of one tensor or of all."""
        found = [each.p_value for each in self.columns if tensor in (None, each.column.tensor)]
        found += [score.p_value for name, score in self.joint.items() if tensor in (None, name)]
        return min(found, default=1.0)

    def psi(self, tensor: str | None = None) -> float:
        """The largest, of one tensor or of all."""
        return max((each.psi for each in self.columns if tensor in (None, each.column.tensor)), default=0.0)


@dataclass(frozen=True, slots=True)
class Distribution:
    """One column's shares over the same bins, in the reference and in a window."""

    column: Column
    edges: tuple[float, ...]
    """One more than there are bins; empty for categories."""
    reference: tuple[float, ...]
    window: tuple[float, ...]
    """Shares of all rows; what is missing to 1 is missing, or outside of the edges shown."""
    wasserstein: float
    """Distance in standard deviations of the reference; 0 for categories."""


class Comparer:
    """Compares windows with one reference; what only depends on the reference is done once."""

    def __init__(self, table: Table) -> None:
        self.table = table
        reference = table.sample.rows
        self._present = [np.sort(column[~np.isnan(column)]) for column in reference.T]
        self._edges = [_edges(sketch) for sketch in table.sketches]
        self._counts = [
            _counts(column, values, edges)
            for column, values, edges in zip(table.columns, self._present, self._edges, strict=True)
        ]
        self._groups = {name: _Joint(reference[:, at], at) for name, at in _groups(table.columns).items()}

    def compare(self, window: Matrix) -> Comparison:
        """Compare a window's rows, of the table's columns."""
        found = [self._column(index, window[:, index]) for index in range(len(self.table.columns))]
        joint = {name: group.compare(window) for name, group in self._groups.items()}
        tests = [test for _, tested in found for test in tested] + list(joint.values())
        # What cannot speak at all (nothing is missing on either side, a single value) is not counted against the rest.
        speaking = [test for test in tests if test is not scores.NOTHING]
        corrected = dict(zip(map(id, speaking), scores.holm([test.p_value for test in speaking]), strict=True))
        return Comparison(
            rows=len(window),
            columns=tuple(
                replace(score, p_value=min(corrected.get(id(test), 1.0) for test in tested)) for score, tested in found
            ),
            joint={name: scores.Score(test.value, corrected.get(id(test), 1.0)) for name, test in joint.items()},
        )

    def _column(self, index: int, values: Matrix) -> tuple[ColumnScore, tuple[scores.Score, scores.Score]]:
        """Scores of one column, and its two tests: of the values, and of how many are missing."""
        column, reference = self.table.columns[index], self._present[index]
        present = values[~np.isnan(values)]
        before, counts = self._counts[index], _counts(column, present, self._edges[index])
        if column.categories:
            test = scores.chi_square(before, counts)
            apart = float(np.abs(before / max(1, before.sum()) - counts / max(1, counts.sum())).sum() / 2)
        else:
            test = scores.kolmogorov_smirnov(reference, present)
            apart = test.value
        rows = len(self.table.sample.rows)
        gone = scores.missing((rows - len(reference), rows), (len(values) - len(present), len(values)))
        score = ColumnScore(
            column=column,
            psi=_psi(before, counts, rows, len(values)),
            distance=apart,
            missing=(len(values) - len(present)) / max(1, len(values)),
        )
        return score, (test, gone)

    def distributions(self, window: Matrix) -> list[Distribution]:
        """Both sides of each column over bins made to be looked at."""
        return [
            _distribution(sketch, reference, values)
            for sketch, reference, values in zip(self.table.sketches, self.table.sample.rows.T, window.T, strict=True)
        ]


class _Joint:
    """The columns of numbers of one tensor, complete rows only."""

    def __init__(self, reference: Matrix, at: Sequence[int]) -> None:
        self._at = list(at)
        complete = reference[~np.isnan(reference).any(axis=1)]
        self._waves = scores.Waves.over(complete) if len(complete) > 1 else None
        self._reference = self._waves.of(complete) if self._waves is not None else complete

    def compare(self, window: Matrix) -> scores.Score:
        rows = window[:, self._at]
        rows = rows[~np.isnan(rows).any(axis=1)]
        if self._waves is None or not len(rows):
            return scores.NOTHING
        return scores.mean_discrepancy(self._reference, self._waves.of(rows))


def _groups(columns: Sequence[Column]) -> dict[str, list[int]]:
    """Positions of the columns that are tested together, by tensor."""
    numbers: dict[str, list[int]] = {}
    for index, column in enumerate(columns):
        if not column.categories:
            numbers.setdefault(column.tensor, []).append(index)
    groups = {tensor: at for tensor, at in numbers.items() if len(at) >= LEAST_JOINT}
    single = [index for at in numbers.values() if len(at) < LEAST_JOINT for index in at]
    return groups | ({"": single} if len(single) >= LEAST_JOINT else {})


def _edges(sketch: ColumnSketch) -> NDArray[np.float64]:
    """Inner edges of bins that hold about equal shares of the reference."""
    return np.unique(sketch.quantiles([rank / BINS for rank in range(1, BINS)]))


def _counts(column: Column, present: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    if column.categories:
        return np.bincount(present.astype(np.int64), minlength=len(column.categories))
    return np.bincount(np.searchsorted(edges, present, side="left"), minlength=len(edges) + 1)


def _psi(before: NDArray[np.int64], now: NDArray[np.int64], rows: int, rows_now: int) -> float:
    """PSI with what is missing as one more bin, where anything is."""
    gone, gone_now = rows - int(before.sum()), rows_now - int(now.sum())
    if gone or gone_now:
        before, now = np.append(before, gone), np.append(now, gone_now)
    used = before + now > 0
    return scores.stability_index(before[used], now[used])


def _distribution(sketch: ColumnSketch, reference: NDArray[np.float64], window: NDArray[np.float64]) -> Distribution:
    column = sketch.column
    if column.categories:
        edges: NDArray[np.floating[Any]] = np.arange(len(column.categories) + 1) - 0.5
    else:
        edges = _shown_edges(reference, window)
    present = [values[~np.isnan(values)] for values in (reference, window)]
    before, now = (
        tuple((np.histogram(known, edges)[0] / max(1, len(values))).tolist())
        for known, values in zip(present, (reference, window), strict=True)
    )
    if column.categories:
        return Distribution(column, (), before, now, 0.0)
    return Distribution(column, tuple(edges.tolist()), before, now, scores.wasserstein(*present))


def _shown_edges(reference: Matrix, window: Matrix) -> NDArray[np.floating[Any]]:
    """Bins of equal width over the reference and nearly all of the window: one outlier must not hide the rest."""
    before, now = reference[~np.isnan(reference)], window[~np.isnan(window)]
    ends = [*(before.min(), before.max())] if len(before) else []
    ends += np.quantile(now, [0.01, 0.99]).tolist() if len(now) else []
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, SHOWN_BINS + 1)
