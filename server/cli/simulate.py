"""`kairos simulate`: the scheduler in virtual time, against made-up or recorded requests."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import rich_click as click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from engines.scheduling.arrivals import Arrival, Mix, mean_rows, recorded
from engines.scheduling.cases import DEADLINE, POLICIES, Case
from engines.scheduling.policy import Limits
from engines.scheduling.simulate import Outcome
from server.cli.charts import Panel, draw
from server.cli.values import cost, duration, durations, numbers, row_counts

_LOADS: Final = (0.5, 1.0, 1.5, 2.5)
_MOST_ENGINES: Final = 1024

EXAMPLES: Final = """
A model of 2 ms and 1.5 ms a row, three kinds of callers, from half load to overload:
`kairos simulate --cost 2ms+1.5ms --slo 20ms,50ms,100ms --load 0.5,1,1.5,2.5`

Against what other servers do, with bursts, and a chart:
`kairos simulate --cost 2ms+1.5ms --slo 50ms --arrivals bursty --policy all --plot compare.png`

With what a server has learned, and what it was asked:
`kairos simulate --cost costs/resnet50.json --max-rows 32 --trace monday.jsonl`

How many engines answer 3000 requests a second, 99 % of them in time?
`kairos simulate --cost 2ms+1.5ms --slo 50ms --rate 3000 --engines-for 0.99`
"""


class Job(NamedTuple):
    """One simulation to be done."""

    case: Case
    policy: str
    label: str
    load: float
    arrivals: Sequence[Arrival]
    seed: int


@click.command(epilog=EXAMPLES)
@click.option(
    "--cost",
    type=cost,
    metavar="A+B|FILE",
    required=True,
    help="Execution time: 2ms+1.5ms (start + each row), or a JSON file.",
)
@click.option("--max-rows", type=click.IntRange(1), default=16, show_default=True, help="Most rows in a batch.")
@click.option("--allowed-rows", type=numbers, help="Sizes the engine may see; batches are padded up to the next.")
@click.option("--max-wait", type=duration, default="0", help="Longest wait for company on an idle engine. [default: 0]")
@click.option("--slo", type=durations, default="50ms", show_default=True, help="Callers' deadlines, with shares.")
@click.option("--rows", type=row_counts, default="1", show_default=True, help="Rows of a request, with shares.")
@click.option("--load", "loads", type=numbers, help="Shares of capacity. [default: 0.5,1,1.5,2.5]")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests a second, instead of --load.")
@click.option("--arrivals", "kind", type=click.Choice(["poisson", "bursty"]), default="poisson", show_default=True)
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='Recorded requests instead: JSON lines {"t": s, "rows": n, "deadline": s from t}; --rate and --load scale it.',
)
@click.option("--requests", type=click.IntRange(1), default=50_000, show_default=True, help="How many are simulated.")
@click.option("--engines", type=click.IntRange(1), default=1, show_default=True, help="Engines side by side.")
@click.option("--models", type=click.IntRange(1), default=1, show_default=True, help="Alike models on the one device.")
@click.option(
    "--jitter", type=click.FloatRange(0), default=0.0, show_default=True, help="Executions vary: 0.2 is 20 %."
)
@click.option("--policy", default=DEADLINE, show_default=True, help=f"Any of {', '.join(POLICIES)}, or all.")
@click.option("--engines-for", type=click.FloatRange(0, 1), metavar="SHARE", help="Engines that answer SHARE in time.")
@click.option("--seed", default=0, show_default=True, help="Another seed, other random numbers.")
@click.option("--plot", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Draw a PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def simulate(**options: Any) -> None:  # noqa: ANN401
    """Try the scheduler in virtual time: goodput, attainment, waste, batch sizes and latency, without a server.

    The very objects that serve are driven by made-up or recorded requests, and compared with what other servers do.
    """
    policies = list(POLICIES) if options["policy"] == "all" else options["policy"].split(",")
    if unknown := set(policies) - set(POLICIES):
        raise click.BadParameter(
            f"{', '.join(sorted(unknown))} is none of {', '.join(POLICIES)}", param_hint="--policy"
        )
    case = _case(options)
    if options["engines_for"] is not None:
        _print_engines(case, policies, options)
        return
    jobs = [
        Job(case, policy, label, load, arrivals, options["seed"])
        for label, load, arrivals in _workloads(case, options)
        for policy in policies
    ]
    outcomes = _run(jobs)
    if options["as_json"]:
        click.echo(json.dumps([_record(job, outcome) for job, outcome in zip(jobs, outcomes, strict=True)], indent=2))
    else:
        _print(case, jobs, outcomes)
    if options["plot"]:
        _plot(options["plot"], jobs, outcomes)


def _case(options: Mapping[str, Any]) -> Case:
    allowed = tuple(int(size) for size in sorted(options["allowed_rows"] or ()))
    max_rows = options["max_rows"]
    if max(options["rows"]) > max_rows or min(options["rows"]) < 1:
        raise click.BadParameter(f"a request has 1 to {max_rows} rows", param_hint="--rows")
    if allowed and allowed[-1] != max_rows:
        raise click.BadParameter(f"the largest must be --max-rows, {max_rows}", param_hint="--allowed-rows")
    return Case(
        seconds=options["cost"],
        limits=Limits(max_rows=max_rows, allowed_rows=allowed, max_wait_s=options["max_wait"]),
        mix=Mix(slos=options["slo"], rows=options["rows"], models=options["models"]),
        engines=options["engines"],
        jitter=options["jitter"],
    )


def _workloads(case: Case, options: Mapping[str, Any]) -> Iterator[tuple[str, float, Sequence[Arrival]]]:
    """A label, the load, and the requests, for each load asked for."""
    trace = _trace(options)
    if trace is not None:
        rows_per_s = sum(arrival.rows for arrival in trace) / (trace[-1].at or 1.0)
        natural = rows_per_s / case.capacity
        loads = options["loads"] or [natural]
        if options["rate"]:
            loads = [natural * options["rate"] * trace[-1].at / len(trace)]
        for load in loads:
            yield (
                f"{load:.2f}",
                load,
                [arrival._replace(at=arrival.at * natural / load) for arrival in trace[: options["requests"]]],
            )
        return
    loads = options["loads"] or _LOADS
    if options["rate"]:
        shares = options["rows"]
        mean = sum(rows * share for rows, share in shares.items()) / sum(shares.values())
        loads = [options["rate"] * mean / case.capacity]
    for load in loads:
        bursts = options["kind"] == "bursty"
        yield f"{load:.2f}", load, case.arrivals(load, options["requests"], bursts=bursts, seed=options["seed"])


def _trace(options: Mapping[str, Any]) -> list[Arrival] | None:
    path: Path | None = options["trace"]
    if path is None:
        return None
    try:
        with path.open() as lines:
            arrivals = recorded(lines)
    except (OSError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint="--trace") from error
    if not arrivals or max(arrival.rows for arrival in arrivals) > options["max_rows"]:
        raise click.BadParameter("no requests, or some with more than --max-rows rows", param_hint="--trace")
    return arrivals


def _simulate(job: Job) -> Outcome:
    return job.case.play(job.policy, job.arrivals, seed=job.seed)


def _run(jobs: Sequence[Job]) -> list[Outcome]:
    """All jobs, in as many processes as help, with a progress bar on a terminal."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        if len(jobs) == 1:
            job = jobs[0]
            task = progress.add_task("simulating", total=len(job.arrivals))
            return [
                job.case.play(
                    job.policy, job.arrivals, seed=job.seed, progress=lambda done: progress.advance(task, done)
                )
            ]
        with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
            return list(progress.track(pool.map(_simulate, jobs), total=len(jobs), description="simulating"))


def _record(job: Job, outcome: Outcome) -> dict[str, Any]:
    return {
        "policy": job.policy,
        "load": job.load,
        "requests": outcome.offered,
        "in_time": outcome.goodput,
        "goodput_per_s": outcome.met / (job.arrivals[-1].at or 1.0),
        "in_vain": outcome.waste,
        "rows_per_batch": outcome.mean_rows,
        "busy": outcome.busy_s / outcome.ended / job.case.engines if outcome.ended else 0.0,
        "latency_s": {f"p{share * 100:g}": outcome.latency(share) for share in (0.5, 0.95, 0.99)}
        if outcome.met
        else {},
        "attainment": {_name(slo): one.attainment for slo, one in sorted(outcome.classes.items())},
    }


def _name(slo: float) -> str:
    return "none" if slo == math.inf else f"{slo * 1e3:g} ms"


def _print(case: Case, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    slos = sorted({slo for outcome in outcomes for slo in outcome.classes})[:8]
    columns = ["load", "policy", "in time", "goodput/s", *(f"≤ {_name(slo)}" for slo in slos)]
    table = Table(*columns, "in vain", "rows/batch", "busy", "p50 ms", "p95 ms", "p99 ms", box=None)
    for job, outcome in zip(jobs, outcomes, strict=True):
        record = _record(job, outcome)
        table.add_row(
            job.label,
            f"[bold]{job.policy}[/]" if job.policy == DEADLINE else job.policy,
            f"{outcome.goodput:.1%}",
            f"{record['goodput_per_s']:.1f}",
            *(f"{outcome.classes[slo].attainment:.1%}" if slo in outcome.classes else "" for slo in slos),
            f"{outcome.waste:.1%}",
            f"{outcome.mean_rows:.1f}",
            f"{record['busy']:.0%}",
            *(f"{seconds * 1e3:.2f}" for seconds in record["latency_s"].values()),
        )
    console = Console()
    rate = case.capacity / mean_rows(jobs[0].arrivals)
    console.print(f"Capacity: {case.capacity:.1f} rows/s, {rate:.1f} of these requests/s.", highlight=False)
    console.print(table)


def _plot(path: Path, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    shares: dict[str, list[tuple[float, float]]] = {}
    waits: dict[str, list[tuple[float, float]]] = {}
    sizes: dict[str, list[tuple[float, float]]] = {}
    for job, outcome in zip(jobs, outcomes, strict=True):
        shares.setdefault(job.policy, []).append((job.load, outcome.goodput))
        name = job.policy if len(jobs) > 1 else "latency"
        count = max(1, outcome.met)
        values = sorted(value for one in outcome.classes.values() for value in one.latencies)
        step = max(1, count // 200)
        waits[f"{name} at {job.label}"] = [(value * 1e3, at * step / count) for at, value in enumerate(values[::step])]
        total = sum(outcome.batch_rows.values())
        sizes[f"{name} at {job.label}"] = [(rows, n / total) for rows, n in sorted(outcome.batch_rows.items())]
    bound = [(load, min(1.0, 1.0 / load)) for load in sorted({job.load for job in jobs})]
    panels = [
        Panel("answered in time, by load", shares, bound),
        Panel("latency of those in time, ms (distribution)", waits),
        Panel("rows in a batch (share of batches)", sizes),
    ]
    try:
        draw(path, panels, "", "")
    except ImportError as error:
        raise click.ClickException(str(error)) from error


def _print_engines(case: Case, policies: Sequence[str], options: Mapping[str, Any]) -> None:
    """The fewest engines with which enough is answered in time, by doubling and halving."""
    if not options["rate"] and not options["trace"]:
        raise click.UsageError("--engines-for needs --rate or --trace: how much is asked?")
    _, _, arrivals = next(_workloads(case, options))
    wanted: float = options["engines_for"]
    found = {}
    for policy in policies:
        tried: dict[int, float] = {}

        def enough(engines: int, policy: str = policy, tried: dict[int, float] = tried) -> bool:
            tried[engines] = replace(case, engines=engines).play(policy, arrivals, seed=options["seed"]).goodput
            return tried[engines] >= wanted

        high = 1
        while not enough(high) and high < _MOST_ENGINES:
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        found[policy] = (high if tried[high] >= wanted else None, tried)
    if options["as_json"]:
        click.echo(
            json.dumps({policy: {"engines": n, "tried": tried} for policy, (n, tried) in found.items()}, indent=2)
        )
        return
    for policy, (engines, tried) in found.items():
        attempts = ", ".join(f"{n}: {share:.1%}" for n, share in sorted(tried.items()))
        text = f"{engines} engine(s)" if engines else f"not even {_MOST_ENGINES} engines"
        Console().print(f"[bold]{policy}[/]: {text} (in time with {attempts})", highlight=False)
