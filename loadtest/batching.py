"""Simulates every cell of docs/batching.md and writes its tables and charts: `python loadtest/batching.py`.

Minutes on one core; `--scale 0.1` takes a tenth of the requests, for a look. Exits with 1 when a bar is missed that
docs/batching.md does not name as missed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress

from engines.scheduling.cases import CASES, DEADLINE, POLICIES, Case
from server.cli.charts import Panel, draw

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "batching.md"
IMAGES = ROOT / "docs" / "images"
LOADS = (0.5, 0.8, 1.0, 1.1, 1.5, 2.5)
REQUESTS = {"small": 100_000, "large": 40_000, "alike": 40_000, "shared": 50_000}
CONDITIONS = {
    "costs exact": {},
    "costs 20 % too low at first": {"seed_error": 0.8},
    "costs 20 % too high at first": {"seed_error": 1.2},
    "executions jitter by 20 %": {"jitter": 0.2},
}
GOODPUT_BAR, BEHIND_BAR, WASTE_BAR, WASTE_BAR_JITTER = 0.90, 0.005, 0.01, 0.02


class Cell(NamedTuple):
    """One world at one load."""

    case: str
    bursts: bool
    condition: str
    load: float


class Result(NamedTuple):
    """What one policy made of a cell."""

    goodput: float
    waste: float
    batch: float
    classes: tuple[tuple[float, float], ...]
    """Attainment by seconds to the deadline."""


def world(cell: Cell) -> Case:
    """The case under the cell's condition."""
    return replace(CASES[cell.case], **CONDITIONS[cell.condition])


def simulate(cell: Cell, scale: float) -> dict[str, Result]:
    """All policies on the same arrivals."""
    case = world(cell)
    arrivals = case.arrivals(cell.load, int(REQUESTS[cell.case] * scale), bursts=cell.bursts, seed=11)
    results = {}
    for policy in POLICIES:
        outcome = case.play(policy, arrivals, seed=12)
        classes = tuple((slo, one.attainment) for slo, one in sorted(outcome.classes.items()))
        results[policy] = Result(outcome.goodput, outcome.waste, outcome.mean_rows, classes)
    return results


def missed(cell: Cell, results: dict[str, Result]) -> Iterator[str]:
    """The bars that the deadline policy misses in a cell."""
    mine = results[DEADLINE]
    best = max((name for name in results if name != DEADLINE), key=lambda name: results[name].goodput)
    where = f"{cell.case}, {'bursty' if cell.bursts else 'Poisson'}, {cell.condition}, load {cell.load:g}"
    if mine.goodput < results[best].goodput - BEHIND_BAR:
        yield f"{where}: {mine.goodput:.3f} is behind {best} ({results[best].goodput:.3f})"
    if not cell.bursts and mine.goodput < GOODPUT_BAR * min(1.0, 1.0 / cell.load):
        reached = mine.goodput / min(1.0, 1.0 / cell.load)
        yield f"{where}: goodput is {reached:.3f} of what capacity allows, not {GOODPUT_BAR:.2f}"
    bar = WASTE_BAR_JITTER if world(cell).jitter else WASTE_BAR
    if mine.waste > bar:
        yield f"{where}: {mine.waste:.1%} of the rows ran in vain, more than {bar:.0%}"


def tables(results: dict[Cell, dict[str, Result]]) -> Iterator[str]:
    """Markdown, a table for each case, kind of arrivals and condition."""
    for case in CASES:
        for bursts in (False, True):
            for condition in CONDITIONS:
                rows = [cell for cell in results if cell[:3] == (case, bursts, condition)]
                slos = [f"{slo * 1e3:g} ms" for slo, _ in results[rows[0]][DEADLINE].classes]
                yield f"**{case}, {'bursty' if bursts else 'Poisson'}, {condition}**\n"
                columns = ["load", "capacity", *POLICIES, *slos, "in vain", "rows a batch"]
                yield f"| {' | '.join(columns)} |"
                yield "|" + "---|" * len(columns)
                for cell in rows:
                    yield _row(cell, results[cell])
                yield ""


def _row(cell: Cell, found: dict[str, Result]) -> str:
    mine = found[DEADLINE]
    fields = [f"{cell.load:g}", f"{min(1.0, 1.0 / cell.load):.3f}"]
    fields += [f"**{mine.goodput:.3f}**", *(f"{found[name].goodput:.3f}" for name in POLICIES if name != DEADLINE)]
    fields += [f"{attainment:.2f}" for _, attainment in mine.classes]
    return f"| {' | '.join([*fields, f'{mine.waste:.2%}', f'{mine.batch:.0f}'])} |"


def charts(results: dict[Cell, dict[str, Result]]) -> None:
    """Goodput by load for all policies, and attainment by class for ours."""
    capacity = [(load, min(1.0, 1.0 / load)) for load in LOADS]
    for condition, name in (("costs exact", "exact"), ("executions jitter by 20 %", "jitter")):
        panels = []
        for bursts in (False, True):
            for case in CASES:
                cells = [Cell(case, bursts, condition, load) for load in LOADS]
                lines = {name: [(cell.load, results[cell][name].goodput) for cell in cells] for name in POLICIES}
                panels.append(Panel(f"{case}, {'bursty' if bursts else 'Poisson'}", lines, capacity))
        draw(IMAGES / f"batching-goodput-{name}.png", panels, "load (1 = capacity)", "answered in time", columns=4)
    panels = []
    for case in CASES:
        lines = {}
        cells = [Cell(case, False, "costs exact", load) for load in LOADS]
        for at, (slo, _) in enumerate(results[cells[0]][DEADLINE].classes):
            lines[f"{slo * 1e3:g} ms"] = [(cell.load, results[cell][DEADLINE].classes[at][1]) for cell in cells]
        panels.append(Panel(f"{case}, Poisson, deadline policy", lines, capacity))
    draw(IMAGES / "batching-classes.png", panels, "load (1 = capacity)", "answered in time", columns=4)


def write(text: str) -> None:
    """Put the tables between the page's markers."""
    page = PAGE.read_text()
    between = re.compile(r"(<!-- tables -->\n).*(<!-- /tables -->)", re.DOTALL)
    PAGE.write_text(between.sub(lambda found: found[1] + "\n" + text + "\n" + found[2], page))


def main() -> None:
    """Simulate, write, and say which bars are missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the documented number of requests")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    cells = [
        Cell(case, bursts, condition, load)
        for case in CASES
        for bursts in (False, True)
        for condition in CONDITIONS
        for load in LOADS
    ]
    results = {}
    with ProcessPoolExecutor(options.processes) as pool, Progress() as progress:
        futures = [pool.submit(simulate, cell, options.scale) for cell in cells]
        for cell, future in progress.track(list(zip(cells, futures, strict=True)), description="simulating"):
            results[cell] = future.result()
    failures = [line for cell, found in results.items() for line in missed(cell, found)]
    summary = "\n".join(f"- {line}" for line in failures) or "Every bar is met in every cell."
    IMAGES.mkdir(exist_ok=True)
    charts(results)
    write(f"Bars missed:\n\n{summary}\n\n" + "\n".join(tables(results)))
    print(summary)
    unnamed = [line for line in failures if line.split(": ")[0] not in PAGE.read_text().split("<!-- tables -->")[0]]
    sys.exit(1 if unnamed else 0)


if __name__ == "__main__":
    main()
