"""The commands: run, sweep, compare, report."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rich_click as click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from loadtest.load import once
from loadtest.load.generator import Progress
from loadtest.load.report import write_html
from loadtest.load.scenario import Scenario, ScenarioError, check, load
from loadtest.load.workers import LoadFailed, Report

INVALID = 3
"""Exit status of a run whose figures may not be believed."""

_console = Console(stderr=True, highlight=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Open-loop load on a gRPC model server.

    Requests leave when a schedule says so, whatever became of those before them, and latency counts from then.
    """


def _overrides(command: Callable[..., None]) -> Callable[..., None]:
    """The options that stand in for keys of the scenario file."""
    options = [
        click.argument("scenario", type=click.Path(exists=True, dir_okay=False, path_type=Path)),
        click.option("--address", help="Where the server listens, host:port."),
        click.option("--metrics", help="URL of its Prometheus metrics."),
        click.option("--seconds", type=float, help="Length of the run."),
        click.option("--processes", type=int, help="Processes of the generator."),
        click.option("--connections", type=int, help="Connections of each process."),
        click.option("--client", type=click.Choice(["http2", "grpc.aio"]), help="By what means."),
        click.option("--seed", type=int, help="Another seed draws other requests at other times."),
        click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result to this file."),
        click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write a report with plots."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _scenario(path: Path, given: dict[str, Any]) -> Scenario:
    scenario = dataclasses.replace(load(path), **{key: value for key, value in given.items() if value is not None})
    check(scenario)
    return scenario


@main.command()
@_overrides
@click.option("--rate", type=float, help="Requests a second, in place of the scenario's.")
def run(scenario: Path, json_path: Path | None, html_path: Path | None, rate: float | None, **given: Any) -> None:  # noqa: ANN401 - as click gives them
    """Run a scenario once. Exit status 3: the generator was the limit, the figures are invalid."""
    with _faults():
        chosen = _scenario(scenario, given)
        if rate is not None:
            chosen = dataclasses.replace(chosen, arrivals=dataclasses.replace(chosen.arrivals, rate=rate))
        with _live(chosen) as report:
            result = once.run_once(chosen, report)
    _finish([result], json_path, html_path)


@main.command()
@_overrides
@click.option("--loads", default="0.25,0.5,0.75,0.9,1,1.25,1.5,2,2.5", show_default=True, help="Multiples of capacity.")
@click.option("--capacity", type=float, help="Requests a second that count as 1. Default: measured by a closed loop.")
@click.option("--callers", type=int, default=64, show_default=True, help="Of that closed loop.")
def sweep(
    scenario: Path,
    json_path: Path | None,
    html_path: Path | None,
    loads: str,
    capacity: float | None,
    callers: int,
    **given: Any,  # noqa: ANN401 - as click gives them
) -> None:
    """Run a scenario at several loads: where does goodput stop following what is asked?"""
    with _faults():
        chosen = _scenario(scenario, given)
        multiples = _numbers(loads)
        if capacity is None:
            capacity, measured = once.capacity(chosen, callers, min(chosen.seconds, 5.0))
            _console.print(f"capacity: {capacity:,.0f} answers/s, by {callers} callers who wait for each answer")
            _judge(measured)

        def before(at: float, of: Scenario) -> Report:
            _console.print(f"load {at:g}: {of.arrivals.rate:,.0f} requests/s for {of.seconds:g} s")
            return lambda _now, _progress: None

        results = once.sweep(chosen, multiples, capacity, before)
    _finish(results, json_path, html_path)


def _numbers(text: str) -> list[float]:
    try:
        found = [float(each) for each in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of numbers like 0.5,1,2") from None
    if min(found) <= 0:
        raise click.BadParameter("loads must be more than 0")
    return found


@main.command()
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def compare(before: Path, after: Path) -> None:
    """Put two results beside each other, run by run."""
    ours, theirs = _results(before), _results(after)
    if len(ours) != len(theirs):
        raise click.ClickException(f"{len(ours)} runs cannot be compared with {len(theirs)}")
    console = Console(highlight=False)
    for first, second in zip(ours, theirs, strict=True):
        table = Table(title=first["scenario"]["name"], box=None)
        for title in ("", before.name, after.name, "ratio"):
            table.add_column(title, justify="left" if not title else "right")
        for name, one, other in _compared(first, second):
            table.add_row(name, f"{one:,.3f}", f"{other:,.3f}", f"{other / one:.3f}" if one else "")
        console.print(table)
        for path, result in ((before, first), (after, second)):
            if not result["valid"]:
                console.print(f"[bold red]{path.name} is invalid:[/] {'; '.join(result['invalid_because'])}")


def _compared(first: once.Result, second: once.Result) -> list[tuple[str, float, float]]:
    rows = [(name, first[name], second[name]) for name in ("offered_per_s", "answers_per_s", "good_per_s")]
    latencies = first["latency_ms"], second["latency_ms"]
    rows += [(f"{name}, ms", latencies[0][name], latencies[1][name]) for name in latencies[0] if name in latencies[1]]
    if "server" in first and "server" in second:
        rows.append(("server CPU us/call", first["server"]["cpu_us_per_call"], second["server"]["cpu_us_per_call"]))
    return rows


@main.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--html", "html_path", type=click.Path(path_type=Path), required=True, help="Where the report goes.")
def report(results: Sequence[Path], html_path: Path) -> None:
    """Write one report of several results."""
    write_html(html_path, [result for path in results for result in _results(path)])
    _console.print(f"wrote {html_path}")


def _results(path: Path) -> list[once.Result]:
    try:
        found = json.loads(path.read_text())["results"]
    except (ValueError, KeyError, TypeError):
        raise click.ClickException(f"{path}: not a result of this program") from None
    return list(found)


class _faults:  # noqa: N801 - reads as a statement
    """Turns what is wrong with a scenario or a run into an error message."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ScenarioError | LoadFailed):
            raise click.ClickException(str(error)) from None


class _live:  # noqa: N801 - reads as a statement
    """A line that tells how far a run is."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._live = Live(console=_console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Report:
        self._live.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _show(self, now: float, progress: Sequence[Progress]) -> None:
        sent, ended, good = (sum(getattr(each, name) for each in progress) for name in ("sent", "ended", "good"))
        slip_ms = max(each.slip_s for each in progress) * 1e3
        colour = "red" if slip_ms > self._scenario.max_slip_ms and self._scenario.arrivals.kind != "closed" else "dim"
        self._live.update(
            f"{self._scenario.name}: {max(0.0, now):5.1f} of {self._scenario.seconds:g} s | sent {sent:,} | "
            f"in flight {sent - ended:,} | in time {good / max(1, ended):.1%} | [{colour}]slip {slip_ms:.1f} ms[/]"
        )


def _finish(results: list[once.Result], json_path: Path | None, html_path: Path | None) -> None:
    """Show, write, and judge."""
    show(results)
    if json_path is not None:
        json_path.write_text(json.dumps({"results": results}, indent=1) + "\n")
    if html_path is not None:
        write_html(html_path, results)
    if not all([_judge(result) for result in results]):  # noqa: C419 - all of them are to be told
        sys.exit(INVALID)


def show(results: Sequence[once.Result]) -> None:
    """A table, one line for each run."""
    table = Table(box=None, pad_edge=False)
    for title in ("run", "asked/s", "answers/s", "in time/s", "p50", "p95", "p99", "max ms", "CPU us", "not OK"):
        table.add_column(title, justify="left" if title == "run" else "right", no_wrap=True)
    for result in results:
        latency = result["latency_ms"]
        server = result.get("server")
        table.add_row(
            result["scenario"]["name"],
            *(f"{result[name]:,.0f}" for name in ("offered_per_s", "answers_per_s", "good_per_s")),
            *(f"{latency[name]:.2f}" if latency else "" for name in ("p50", "p95", "p99", "max")),
            f"{server['cpu_us_per_call']:.0f}" if server else "",
            f"{1 - result['codes'].get('OK', 0) / max(1, result['sent']):.1%}",
        )
    console = Console(highlight=False)
    console.print(table)
    for result in results:
        ends = ", ".join(f"{count:,} {name}" for name, count in result["codes"].items())
        console.print(f"{result['scenario']['name']}: {ends}", soft_wrap=True)


def _judge(result: once.Result) -> bool:
    """Say it loudly where the figures are worth nothing."""
    for fault in result["invalid_because"]:
        _console.print(f"[bold white on red] INVALID [/] {result['scenario']['name']}: {fault}")
    return bool(result["valid"])
