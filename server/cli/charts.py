"""Charts of simulations and load tests. matplotlib is an optional extra and only imported here, when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MISSING: Final = "charts need matplotlib: pip install 'kairos[plots]'"

_COLOURS: Final[Mapping[str, str]] = {
    "deadline": "#0b6e4f",
    "fifo": "#c1292e",
    "fifo-reject": "#f18f01",
    "edf-slack": "#8d99ae",
    "clockwork": "#3a6ea5",
    "nexus": "#7d5ba6",
}


class Panel(NamedTuple):
    """One pair of axes: a line for each name, points as (x, y)."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    bound: Sequence[tuple[float, float]] = ()
    """A dotted line: what cannot be exceeded, or what is aimed at."""


def draw(path: Path, panels: Sequence[Panel], x: str, y: str, *, top: float | None = 1.05, columns: int = 3) -> None:
    """Write a PNG with the panels in rows. Raises ImportError with `MISSING` where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  (optional, and slow to import)
    except ImportError as error:
        raise ImportError(MISSING) from error
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for panel, at in zip(panels, axes, strict=False):
        _draw_panel(at, panel, top)
    for at in list(axes)[len(panels) :]:
        at.set_axis_off()
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    figure.savefig(path, dpi=80)


def _draw_panel(axes: Axes, panel: Panel, top: float | None) -> None:
    for name, points in panel.lines.items():
        xs, ys = zip(*points, strict=True) if points else ((), ())
        width = 2.2 if name == "deadline" else 1.1
        axes.plot(xs, ys, label=name, color=_COLOURS.get(name), linewidth=width, marker="." if len(xs) < 20 else None)
    if panel.bound:
        axes.plot(*zip(*panel.bound, strict=True), color="black", linestyle=":", linewidth=1, label="capacity")
    axes.set_title(panel.title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_ylim(bottom=0, top=top)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)
