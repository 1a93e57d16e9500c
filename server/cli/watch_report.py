"""The report of `kairos watch report`: one picture a model, alone or in a page."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from server.cli.charts import MISSING
from server.pb import watch_pb2 as pb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COLUMNS: Final = 4
MAX_PANELS: Final = 24
"""Distributions that are drawn: those of the answers, then the inputs' that moved most."""
_MAX_BARS: Final = 16
_MAX_LINES: Final = 6
_BASELINE, _WINDOW, _ALARM = "#9aa5b1", "#2563a8", "#c1292e"
_LINES: Final = ("#2563a8", "#0b6e4f", "#f18f01", "#7d5ba6", "#8d99ae", "#5c4033")
_FLOOR: Final = 1e-12
"""Smaller p-values are drawn here."""

_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Kairos: model quality</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1180px; margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.2rem; margin-top: 2.5rem }} svg {{ width: 100%; height: auto }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem 1.2rem .2rem 0; text-align: left }}
th {{ border-bottom: 1px solid #cbd2d9; font-weight: 600 }} .alarm {{ color: #c1292e; font-weight: 600 }}
.note {{ color: #52606d }}
</style></head><body><h1>Model quality</h1>
<p class="note">Made {made}. Grey is the baseline, blue the latest window, red what moved.</p>
{models}</body></html>
"""


def write_report(models: Sequence[pb.WatchedModel], path: Path) -> None:
    """Write an HTML page, or a PNG, by the name's ending. Raises OSError, or ImportError without matplotlib.

    A picture has the models that were compared with something; a page names the others, too.
    """
    if path.suffix == ".html":
        made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        path.write_text(_PAGE.format(made=made, models="\n".join(map(_section, models))), encoding="utf-8")
        return
    shown = [model for model in models if model.columns] or models
    figure = _figure(sum(_height(model) for model in shown))
    parts = figure.subfigures(len(shown), 1, height_ratios=[_height(model) for model in shown], squeeze=False)
    for part, model in zip(parts[:, 0], shown, strict=True):
        _draw(part, model)
    figure.savefig(path, dpi=110)


def _section(model: pb.WatchedModel) -> str:
    rows = "".join(map(_row, model.readings))
    return (
        f"<h2>{html.escape(model.name)} version {html.escape(model.version)}</h2>"
        f'<p class="note">{html.escape(model.state)}; baseline of {model.reference_rows} rows '
        f"({html.escape(model.note)}), window of {model.window_rows}; {model.sampled} of {model.answered} requests "
        f"sampled, {model.dropped} dropped</p>"
        f"<table><tr><th>signal</th><th>value</th><th>p-value</th><th>rows</th><th></th></tr>{rows}</table>"
        f"{_svg(model) if model.columns else ''}"
    )


def _svg(model: pb.WatchedModel) -> str:
    figure = _figure(_height(model))
    _draw(figure, model)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def _row(reading: pb.WatchReading) -> str:
    tested = not math.isnan(reading.p_value)
    verdict = '<td class="alarm">alarm</td>' if reading.alarm else f"<td>{'ok' if tested else ''}</td>"
    p_value = f"{reading.p_value:.2g}" if tested else ""
    return (
        f"<tr><td>{html.escape(reading.signal)}</td><td>{reading.value:.3f}</td><td>{p_value}</td>"
        f"<td>{reading.samples}</td>{verdict}</tr>"
    )


def _figure(height: float) -> Figure:
    try:
        from matplotlib.figure import Figure as NewFigure  # noqa: PLC0415  (optional, and slow to import)
    except ImportError as error:
        raise ImportError(MISSING) from error
    return NewFigure(figsize=(12, height), layout="constrained")


def _height(model: pb.WatchedModel) -> float:
    return 3.2 + 2.1 * -(-len(_chosen(model)) // COLUMNS)


def _chosen(model: pb.WatchedModel) -> list[pb.WatchedColumn]:
    return sorted(model.columns, key=lambda column: (not column.answer, column.p_value, -column.psi))[:MAX_PANELS]


def _draw(figure: Figure | SubFigure, model: pb.WatchedModel) -> None:
    columns = _chosen(model)
    rows = -(-len(columns) // COLUMNS)
    alarms = [reading.signal for reading in model.readings if reading.alarm]
    verdict = f"alarms: {', '.join(alarms)}" if alarms else model.state
    figure.suptitle(f"{model.name} version {model.version}   {verdict}", color=_ALARM if alarms else "black")
    grid = figure.add_gridspec(rows + 1, COLUMNS, height_ratios=[1.4, *([1.0] * rows)])
    half = COLUMNS // 2
    _draw_values(figure.add_subplot(grid[0, :half]), model)
    _draw_p_values(figure.add_subplot(grid[0, half:]), model)
    for index, column in enumerate(columns):
        at = figure.add_subplot(grid[1 + index // COLUMNS, index % COLUMNS])
        _draw_column(at, column, moved=column.p_value <= model.alarm_p_value)


def _signals(model: pb.WatchedModel) -> list[str]:
    """Signals that are drawn over time: those for the whole model first."""
    found = dict.fromkeys(reading.signal for look in model.history for reading in look.readings)
    return sorted(found, key=lambda signal: "." in signal)[:_MAX_LINES]


def _minutes(model: pb.WatchedModel, signal: str) -> tuple[list[float], list[pb.WatchReading]]:
    """When the signal was read, in minutes before the last look, and what it said."""
    points = [(look.at, each) for look in model.history for each in look.readings if each.signal == signal]
    last = model.history[-1].at if model.history else 0.0
    return [(at - last) / 60 for at, _ in points], [each for _, each in points]


def _draw_values(axes: Axes, model: pb.WatchedModel) -> None:
    for colour, signal in zip(_LINES, _signals(model), strict=False):
        times, readings = _minutes(model, signal)
        axes.plot(times, [each.value for each in readings], color=colour, linewidth=1.4, label=signal)
        alarms = [index for index, each in enumerate(readings) if each.alarm]
        axes.scatter(
            [times[index] for index in alarms],
            [readings[index].value for index in alarms],
            s=14,
            color=_ALARM,
            zorder=3,
        )
    axes.set_title("values: PSI of drift, mean confidence", fontsize=9, loc="left")
    axes.set_ylim(bottom=0)
    _finish(axes, legend=bool(model.history))


def _draw_p_values(axes: Axes, model: pb.WatchedModel) -> None:
    for colour, signal in zip(_LINES, _signals(model), strict=False):
        times, readings = _minutes(model, signal)
        axes.plot(times, [max(_FLOOR, each.p_value) for each in readings], color=colour, linewidth=1.4)
    axes.axhline(model.alarm_p_value, color=_ALARM, linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR / 3, 3)
    axes.set_title("p-values; an alarm below the dotted line", fontsize=9, loc="left")
    _finish(axes, legend=False)


def _finish(axes: Axes, *, legend: bool) -> None:
    axes.set_xlabel("minutes", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=7, frameon=False)


def _draw_column(axes: Axes, column: pb.WatchedColumn, *, moved: bool) -> None:
    colour = _ALARM if moved else _WINDOW
    if column.categories:
        shown = [i for i, both in enumerate(zip(column.reference, column.window, strict=True)) if any(both)][:_MAX_BARS]
        places = list(range(len(shown)))
        axes.bar([at - 0.2 for at in places], [column.reference[i] for i in shown], 0.4, color=_BASELINE)
        axes.bar([at + 0.2 for at in places], [column.window[i] for i in shown], 0.4, color=colour)
        axes.set_xticks(places, [column.categories[i][:10] for i in shown])
    else:
        axes.stairs(column.reference, column.edges, fill=True, color=_BASELINE, alpha=0.7)
        axes.stairs(column.window, column.edges, color=colour, linewidth=1.6)
    side = "answer: " if column.answer else ""
    gone = f", {column.missing:.0%} missing" if column.missing else ""
    axes.set_title(
        f"{side}{column.name}   PSI {column.psi:.2f}{gone}", fontsize=8, loc="left", color=_ALARM if moved else "black"
    )
    axes.tick_params(labelsize=7)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
