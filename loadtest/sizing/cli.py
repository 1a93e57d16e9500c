"""How large a deployment must be.

python -m loadtest.sizing --write                          # measures, and writes docs/sizing.md; 8 minutes
python -m loadtest.sizing --quick                          # a look
python -m loadtest.sizing --for requests_per_s=2000 payload_kib=600 engine_ms=5
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.sizing import estimate
from loadtest.sizing.features import PRICES, prices
from loadtest.sizing.fits import coefficients
from loadtest.sizing.page import write
from loadtest.sizing.parts import PARTS, Options, rows_of
from loadtest.sizing.study import Base, Found, Idle, Load, Models, Price, Study
from loadtest.support import ROOT, machine

FIGURES: Final = ROOT / "docs" / "sizing.json"
QUICK: Final = Options(
    callers=(1, 8, 64), kib=(0.25, 64, 4096), loads=(0.25, 0.5, 0.9), connections=(0, 100, 1000), models=(1, 10, 40),
    closed_s=0.7, open_s=1.0, rounds=1, turns=4, turn_s=0.2,
)  # fmt: skip
MEASURED: Final[dict[str, Callable[[Options], Iterator[Found]]]] = {**PARTS, "features": prices}
_console = Console(stderr=True, highlight=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1)
@click.option(
    "--for", "asked", is_flag=True, help="Measure nothing: say what it takes for a load, given as NAME=NUMBER."
)
@click.option("--quick", is_flag=True, help="A look: fewer and shorter runs.")
@click.option("--parts", default=",".join(MEASURED), show_default=True, help="What is measured.")
@click.option("--json", "path", type=click.Path(path_type=Path), default=Path("build/sizing.json"), show_default=True)
@click.option("--write", "writes", is_flag=True, help="Put the figures into docs/sizing.md and docs/sizing.json.")
@click.option("--only-write", is_flag=True, help="Do so with what an earlier run left in the JSON file.")
def main(  # noqa: PLR0913 - as many as there are options
    *, words: tuple[str, ...], asked: bool, quick: bool, parts: str, path: Path, writes: bool, only_write: bool
) -> None:
    """Measure how requests, payload, connections and models cost, or size a deployment by what was measured."""
    if asked:
        answer(words)
        return
    if words:
        raise click.UsageError(f"{words[0]!r} means something after --for alone")
    if only_write:
        publish(Study.of(json.loads(path.read_text())))
        return
    chosen = parts.split(",")
    for part in chosen:
        if part not in MEASURED:
            raise click.UsageError(f"{part!r} is none of {', '.join(MEASURED)}")
    if writes and set(chosen) != set(MEASURED):
        raise click.UsageError("--write takes all parts")
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # thousands of connections, here and in the servers
    found = study(QUICK if quick else Options(), chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_json(found))
    if writes:
        publish(found)


def answer(words: Sequence[str]) -> None:
    """Print the worksheet for a load, by the figures in docs/."""
    try:
        wanted = estimate.parse(words)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    of = coefficients(Study.of(json.loads(FIGURES.read_text())))
    print("\n".join(estimate.worked(wanted, of)))


def publish(found: Study) -> None:
    """Page, picture, and the figures that `--for` reckons with: all from the same digits."""
    text = as_json(found)
    write(Study.of(json.loads(text)))
    FIGURES.write_text(text)


def as_json(found: Study) -> str:
    """As it is kept, a figure a line."""
    data = dataclasses.asdict(found)
    lines = [
        f'"{name}": ' + (_rows(value) if isinstance(value, list) else json.dumps(_short(value)))
        for name, value in data.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _rows(rows: Sequence[object]) -> str:
    return "[\n  " + ",\n  ".join(json.dumps(_short(row)) for row in rows) + "\n]" if rows else "[]"


def _short(value: object) -> object:
    """Six digits are more than was measured."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list | tuple) else value


def study(options: Options, parts: Sequence[str]) -> Study:
    """Measure these parts, with a bar that says how far it is and a line for each figure."""
    began = time.monotonic()
    found: list[Found] = []
    expected = rows_of(options) | {"features": len(PRICES)}
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console) as progress:
        task = progress.add_task("", total=sum(expected[part] for part in parts))
        for part in parts:
            progress.update(task, description=part)
            for row in MEASURED[part](options):
                found.append(row)
                progress.advance(task)
                progress.console.print(told(row), soft_wrap=True)
    return Study(
        machine=machine(),
        command=" ".join(["python -m loadtest.sizing", *sys.argv[1:]]),
        at=datetime.now(UTC).date().isoformat(),
        minutes=(time.monotonic() - began) / 60,
        base=[row for row in found if isinstance(row, Base)],
        loads=[row for row in found if isinstance(row, Load)],
        idles=[row for row in found if isinstance(row, Idle)],
        models=[row for row in found if isinstance(row, Models)],
        prices=[row for row in found if isinstance(row, Price)],
    )


def told(row: Found) -> str:
    """A figure in a line."""
    if not isinstance(row, Load):
        return str(row)
    latency = f"p50 {row.p50_ms:7.2f} ms  p99 {row.p99_ms:8.2f} ms" if row.p50_ms and row.p99_ms else "no answers"
    return (
        f"{row.part:12}{row.name:9}{row.x:8g}  {row.answers_per_s:8,.0f}/s  CPU {row.cpu_us:7.0f} us"
        f"  loop {row.loop_us:7.0f} us  rows {row.rows_per_batch or 0:5.1f}  {latency}  "
        f"{row.refused:6.2%} refused  {'; '.join(row.faults)}"
    )
