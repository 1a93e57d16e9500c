"""The cost model: straight lines through measured costs. Pure.

Rule: lines are fitted by relative errors, so that a point of 100 us counts as much as one of 10,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from loadtest.sizing.study import LARGE_KIB, TLS, TLS_LARGE, Load, Study

TOGETHER: Final = 32
"""Requests that share a turn of a process at its capacity: what 64 callers reach."""


@dataclass(frozen=True, slots=True)
class Line:
    """y = fixed + slope * x."""

    fixed: float
    slope: float
    worst: float
    """Largest distance of a point from the line, as a share of the point."""

    def at(self, x: float) -> float:
        return self.fixed + self.slope * x


def line(points: Sequence[tuple[float, float]]) -> Line:
    """The line with the least squares of relative errors, neither part negative. ValueError of less than two points."""
    if len({x for x, _ in points}) < 2:
        raise ValueError("a line takes two points")
    xs, ys = np.array(points, dtype=float).T
    columns = np.stack([1 / ys, xs / ys], axis=1)
    fixed, slope = (float(each) for each in np.linalg.lstsq(columns, np.ones(len(ys)), rcond=None)[0])
    if fixed < 0 or slope < 0:  # then the best line without that part
        column = columns[:, 0 if slope < 0 else 1]
        best = float(column.sum() / (column @ column))
        fixed, slope = (best, 0.0) if slope < 0 else (0.0, best)
    return Line(fixed, slope, float(np.max(np.abs((fixed + slope * xs) / ys - 1))))


def shared(loads: Sequence[Load]) -> Line:
    """CPU of a request among k that share a turn: (cost of a request) + (cost of a turn) * 1/k."""
    return line([(1 / load.rows_per_batch, load.cpu_us) for load in loads if load.rows_per_batch])


def by_size(loads: Sequence[Load]) -> Line:
    """CPU of a request by its KiB."""
    return line([(load.x, load.cpu_us) for load in loads])


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """The cost model's figures."""

    turn_us: float
    """CPU of a turn of the server, which the requests that are there share."""
    request_us: float
    """CPU of each request beside that."""
    in_us_per_kib: float
    out_us_per_kib: float
    tls_us: float
    """What TLS adds to a small request."""
    tls_us_per_kib: float
    base_mib: float
    model_mib: float
    """Memory of a loaded model beyond its file."""
    model_load_s: float
    connection_kib: float
    tls_connection_kib: float

    @property
    def busy_us(self) -> float:
        """CPU of a small request in a process at capacity."""
        return self.turn_us / TOGETHER + self.request_us


def coefficients(study: Study) -> Coefficients:
    """The model that a study amounts to. ValueError where a part of it is missing."""
    turns, inwards = shared(study.pick("callers")), by_size(study.pick("payload", "message"))
    answers = study.pick("payload", "answer")
    if not (study.base and study.models and answers):
        raise ValueError("parts of the study are missing: measure all of them")
    outwards = max(0.0, answers[0].cpu_us - inwards.fixed) / answers[0].x
    small, large = study.price(TLS).extra_us, study.price(TLS_LARGE).extra_us
    connections = {
        tls: line([(each.connections, each.rss_kib) for each in study.idles if each.tls == tls])
        for tls in (False, True)
    }
    models = line([(each.models, each.rss_kib - each.file_kib * each.models) for each in study.models])
    return Coefficients(
        turn_us=turns.slope, request_us=turns.fixed, in_us_per_kib=inwards.slope, out_us_per_kib=outwards,
        tls_us=small, tls_us_per_kib=max(0.0, large - small) / LARGE_KIB, base_mib=study.base[0].rss_kib / 1024,
        model_mib=models.slope / 1024, model_load_s=line([(each.models, each.ready_s) for each in study.models]).slope,
        connection_kib=connections[False].slope, tls_connection_kib=connections[True].slope,
    )  # fmt: skip
