"""The picture at the top of docs/sizing.md: cost by callers, cost by payload, latency by load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from loadtest.sizing.fits import by_size, shared
from loadtest.sizing.study import Load, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS: Final = "#0b6e4f"
_OTHER: Final = "#3a6ea5"
_LATE: Final = "#f18f01"


def draw(study: Study, path: Path) -> None:
    """Write a PNG. ImportError where matplotlib is missing."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (optional, and slow to import)

    figure = Figure(figsize=(12.0, 3.6), layout="constrained")
    callers, payload, load = figure.subplots(1, 3)
    _callers(callers, study)
    _payload(payload, study)
    _load(load, study)
    for axes in (callers, payload, load):
        axes.set_ylim(bottom=0 if axes.get_yscale() == "linear" else None)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def _callers(axes: Axes, study: Study) -> None:
    loads = [load for load in study.pick("callers") if load.rows_per_batch]
    fit = shared(loads)
    together = [load.rows_per_batch or 1.0 for load in loads]
    line = np.geomspace(min(together), max(together), 50)
    axes.plot(together, [load.cpu_us for load in loads], "o", color=_OURS, label="measured")
    axes.plot(line, fit.fixed + fit.slope / line, color=_OURS, label=f"{fit.fixed:.0f} + {fit.slope:.0f} / k")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(_plain)
    axes.set_title("server CPU of a small request, us,\nby how many share a turn (k)", fontsize=10)


def _payload(axes: Axes, study: Study) -> None:
    messages = study.pick("payload", "message")
    fit = by_size(messages)
    sizes = [load.x for load in messages]
    line = np.geomspace(min(sizes), max(sizes), 50)
    axes.plot(sizes, [load.cpu_us for load in messages], "o", color=_OURS, label="in the message")
    axes.plot(line, fit.fixed + fit.slope * line, color=_OURS, label=f"{fit.fixed:.0f} + {fit.slope:.2f} a KiB")
    mapped = study.pick("payload", "shared")
    axes.plot([load.x for load in mapped], [load.cpu_us for load in mapped], "s", color=_OTHER, label="shared memory")
    axes.set_xscale("log")
    _logarithmic(axes)
    axes.xaxis.set_major_formatter(_plain)
    axes.set_title("server CPU of a request, us,\nby its KiB", fontsize=10)


def _load(axes: Axes, study: Study) -> None:
    def points(loads: list[Load], name: str) -> tuple[list[float], list[float]]:
        answered = [(load.x, value) for load in loads if (value := getattr(load, name)) is not None]
        return [x for x, _ in answered], [value for _, value in answered]

    for name, label, colour in (("without", "no deadline", _OURS), ("with", "deadline", _LATE)):
        loads = study.pick("load", name)
        axes.plot(*points(loads, "p50_ms"), marker=".", color=colour, label=f"p50, {label}")
        axes.plot(*points(loads, "p99_ms"), marker=".", color=colour, linestyle="--", label=f"p99, {label}")
    _logarithmic(axes)
    axes.set_title("latency of answers, ms,\nby the share of capacity that is asked", fontsize=10)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic y with plain numbers at the powers of ten, and at a few between."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_plain)
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:,g}" if f"{value:e}"[0] in "25" else "")


def _plain(value: float, _: object) -> str:
    return f"{value:,g}"
