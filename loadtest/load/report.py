"""A report in one HTML file: tables, and plots as SVG. matplotlib is an extra, imported when plots are made."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from server.cli.charts import MISSING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Result = dict[str, Any]

_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #dde3ea; white-space: nowrap; }
th:first-child, td:first-child, td:last-child, th:last-child { text-align: left; }
.invalid { background: #c1292e; color: white; padding: .6rem .9rem; font-weight: 600; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } .plots svg { max-width: 100%; height: auto; }
.about { color: #5b6777; } details pre { background: #f4f6f8; padding: .8rem; overflow: auto; }
"""
_HOW: Final = (
    "Latency counts from when a request was due, whether or not it could leave then; percentiles are of answers with "
    "status OK."
)


def write_html(path: Path, results: Sequence[Result]) -> None:
    """Write the report. ImportError, naming the extra, where matplotlib is not installed."""
    path.write_text(page(results))


def page(results: Sequence[Result]) -> str:
    """The whole file."""
    title = results[0]["scenario"]["name"] if len(results) == 1 else f"{len(results)} runs"
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{_text(title)}</title><style>{_STYLE}</style>",
        f"<h1>Load test: {_text(title)}</h1>",
        f"<p class='about'>{_text(results[0]['at'])} on {_text(results[0]['machine'])}. {_HOW}</p>",
        *(f"<p class='invalid'>INVALID: {_text(name)}: {_text(why)}</p>" for name, why in _faults(results)),
        _table(results),
    ]
    if len(results) > 1:
        parts += ["<h2>By offered load</h2><div class='plots'>", _figure(_plot_goodput, results)]
        parts += [_figure(_plot_latencies, results), "</div>"]
        parts += ["<h2>Latency of all runs</h2><div class='plots'>", _figure(_plot_cdf, results), "</div>"]
    parts += [_run(result, alone=len(results) == 1) for result in results]
    return "\n".join(parts) + "\n"


def _text(value: object) -> str:
    return html.escape(str(value))


def _faults(results: Sequence[Result]) -> list[tuple[str, str]]:
    return [(result["scenario"]["name"], why) for result in results for why in result["invalid_because"]]


def _table(results: Sequence[Result]) -> str:
    head = [
        "run",
        "asked/s",
        "answers/s",
        "in time/s",
        "in time",
        "p50 ms",
        "p90",
        "p99",
        "p99.9",
        "max",
        "server CPU",
        "ends",
    ]
    rows = []
    for result in results:
        latency, server = result["latency_ms"], result.get("server")
        rows.append(
            [
                result["scenario"]["name"],
                *(f"{result[name]:,.0f}" for name in ("offered_per_s", "answers_per_s", "good_per_s")),
                f"{result['good_share']:.1%}",
                *(f"{latency[name]:.2f}" if latency else "" for name in ("p50", "p90", "p99", "p99.9", "max")),
                f"{server['cpu_us_per_call']:.0f} us" if server else "",
                ", ".join(f"{count:,} {name}" for name, count in result["codes"].items()),
            ]
        )
    return _html_table(head, rows)


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{_text(name)}</th>' for name in head)}</tr>{body}</table>"


def _run(result: Result, *, alone: bool) -> str:
    plots = [*([_plot_cdf] if alone else []), _plot_percentiles, _plot_rates]
    if result.get("server"):
        plots += [_plot_batches, _plot_cpu]
    slip, generator = result["slip_ms"], result["generator"]
    about = (
        f"Requests left {slip['p50']:.2f} ms (p50), {slip['p99']:.2f} ms (p99) and at most {slip['max']:.1f} ms after "
        f"they were due; the generator used {generator['cpu_us_per_call']:.0f} us of CPU for each."
        if slip
        else "Nothing was sent."
    )
    kinds = ""
    if len(result["kinds"]) > 1:
        rows = [
            [each["model"], f"{each['sent']:,}", f"{each['good_share']:.1%}", *_few(each["latency_ms"])]
            for each in result["kinds"]
        ]
        kinds = _html_table(["model", "sent", "in time", "p50 ms", "p99", "max"], rows)
    drawn = "".join(_figure(plot, [result]) for plot in plots)
    heading = f"<h2>{_text(result['scenario']['name'])}</h2>"
    scenario = (
        f"<details><summary>Scenario</summary><pre>{_text(json.dumps(result['scenario'], indent=1))}</pre></details>"
    )
    return f"{heading}<p class='about'>{about}</p>{kinds}<div class='plots'>{drawn}</div>{scenario}"


def _few(latency: dict[str, float]) -> list[str]:
    return [f"{latency[name]:.2f}" if latency else "" for name in ("p50", "p99", "max")]


def _figure(plot: Callable[[Axes, Sequence[Result]], None], results: Sequence[Result]) -> str:
    """A plot as an SVG element; text stays text, in the reader's fonts."""
    try:
        import matplotlib as mpl  # noqa: PLC0415  (optional, and slow to import)
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(MISSING) from error
    with mpl.rc_context(
        {"svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif", "svg.hashsalt": "kairos"}
    ):
        figure = Figure(figsize=(5.0, 3.1), layout="constrained")
        axes = figure.subplots()
        plot(axes, results)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue().partition("<svg")[1] + out.getvalue().partition("<svg")[2]


def _name(result: Result) -> str:
    return str(result["scenario"]["name"])


def _plot_cdf(axes: Axes, results: Sequence[Result]) -> None:
    for result in results:
        if result["cdf"]:
            axes.plot(
                *zip(*result["cdf"], strict=True), label=_name(result) if len(results) > 1 else None, linewidth=1.6
            )
    axes.set(
        title="answered within", xlabel="ms since the request was due", ylabel="share of all requests", xscale="log"
    )
    axes.set_ylim(0, 1.02)


def _plot_percentiles(axes: Axes, results: Sequence[Result]) -> None:
    series = results[0]["series"]
    for name in ("p50", "p99"):
        points = [(t, value) for t, value in zip(series["t"], series[name], strict=True) if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=name)
    axes.set(title="latency over time", xlabel="seconds", ylabel="ms", yscale="log")


def _plot_rates(axes: Axes, results: Sequence[Result]) -> None:
    series = results[0]["series"]
    for name, label in (("offered", "asked"), ("answers", "answered"), ("good", "answered in time")):
        axes.plot(series["t"], series[name], label=label)
    axes.set(title="by when it was asked", xlabel="seconds", ylabel="a second")
    axes.set_ylim(bottom=0)


def _plot_batches(axes: Axes, results: Sequence[Result]) -> None:
    sizes = results[0]["server"]["batches"]
    axes.bar(list(sizes), list(sizes.values()))
    axes.set(title="batches formed, by their rows (upper bounds)", xlabel="rows", ylabel="batches")


def _plot_cpu(axes: Axes, results: Sequence[Result]) -> None:
    cores = results[0]["server"]["cores"]
    if cores:
        axes.plot(*zip(*cores, strict=True))
    axes.set(title="server CPU", xlabel="seconds", ylabel="cores")
    axes.set_ylim(bottom=0)


def _plot_goodput(axes: Axes, results: Sequence[Result]) -> None:
    asked = [result["offered_per_s"] for result in results]
    for name, label in (("answers_per_s", "answered"), ("good_per_s", "answered in time")):
        axes.plot(asked, [result[name] for result in results], marker=".", label=label)
    axes.plot([0, max(asked)], [0, max(asked)], color="black", linestyle=":", linewidth=1, label="asked")
    axes.set(title="goodput and throughput", xlabel="asked a second", ylabel="a second")
    axes.set_ylim(bottom=0)


def _plot_latencies(axes: Axes, results: Sequence[Result]) -> None:
    answered = [result for result in results if result["latency_ms"]]
    for name in ("p50", "p95", "p99"):
        axes.plot(
            [result["offered_per_s"] for result in answered],
            [result["latency_ms"][name] for result in answered],
            marker=".",
            label=name,
        )
    axes.set(title="latency of answers", xlabel="asked a second", ylabel="ms", yscale="log")
