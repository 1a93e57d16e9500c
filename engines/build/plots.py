"""Pictures of measurements. They need matplotlib: the extra `plots`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.build.errors import BuildFailed
from engines.build.versus import Versus


def _figure(width: float, height: float, columns: int) -> tuple[Any, Any]:
    try:
        figure_class: Any = importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise BuildFailed("pictures need matplotlib: pip install 'kairos[plots]'") from error
    figure = figure_class(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def draw_versus(result: Versus, path: Path) -> None:
    """Speed by batch size, agreement of the outputs, and size on disk and in memory. Raises BuildFailed."""
    figure, (speed, quality, cost) = _figure(12, 4, 3)
    for side, name in ((result.a, "A"), (result.b, "B")):
        speed.plot(list(side.seconds), [value * 1e3 for value in side.seconds.values()], "o-", label=name)
    speed.set(xlabel="rows in an execution", ylabel="ms of processor time", title="speed", xscale="log", yscale="log")
    speed.legend()
    comparison = result.comparison
    bars = {f"cosine {error.name}": error.cosine for error in comparison.outputs}
    if comparison.agreement is not None and comparison.top_k_agreement is not None:
        bars |= {"same best class": comparison.agreement, "best class in top 5": comparison.top_k_agreement}
    if comparison.accuracy is not None:
        bars |= {"accuracy A": comparison.accuracy[0], "accuracy B": comparison.accuracy[1]}
    quality.barh(list(bars), list(bars.values()))
    quality.set(xlim=(min(0.9, *bars.values()), 1.0), title=f"drop {comparison.drop:.2%}")
    quality.invert_yaxis()
    places = range(2)
    for offset, side, name in ((-0.2, result.a, "A"), (0.2, result.b, "B")):
        sizes = [side.size_bytes / 2**20, side.memory_bytes / 2**20]
        cost.bar([place + offset for place in places], sizes, width=0.4, label=name)
    cost.set_xticks(list(places), ["file", "memory"])
    cost.set(ylabel="MiB", title="size")
    cost.legend()
    figure.savefig(path, dpi=120)


def draw_profile(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    knee: tuple[float, float],
    best: tuple[float, float] | None,
    slo_ms: float | None,
    path: Path,
) -> None:
    """Throughput against latency: points (ms, rows a second) by name of the curve, the knee and the best point marked.

    Raises BuildFailed.
    """
    figure, (axes,) = _figure(8, 5, 1)
    for name, points in curves.items():
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", markersize=4, label=name)
    axes.plot(*knee, "D", color="black", fillstyle="none", markersize=11, label="knee")
    if best is not None:
        axes.plot(*best, "*", color="red", markersize=14, label="best")
    if slo_ms is not None:
        axes.axvline(slo_ms, color="grey", linestyle="--", label=f"{slo_ms:g} ms")
    axes.set(xlabel="99th percentile of latency, ms", ylabel="rows a second", xscale="log", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)
