"""`kairos profile`: how a model is best run on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import rich_click as click
from rich.console import Console
from rich.table import Table

from engines.backends.onnxruntime import offered
from engines.backends.options import Accelerator
from engines.backends.processor import this_processor
from engines.build.bench import open_version
from engines.build.errors import BuildFailed
from engines.build.manifest import plain
from engines.build.plots import draw_profile
from engines.build.profile import Point, Profile, ProfileOptions, apply, curves_of, frontier_of
from engines.build.profile import profile as sweep
from engines.build.versus import newest_version
from engines.costs import costs_file, save_costs
from engines.repository.layout import version_of
from engines.scheduling.latency import CostModel
from server.cli.options.models import default_cache_dir
from server.cli.progress import bars

OWN_KERNELS: Final = "none"
NEW_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(context_settings={"show_default": True})
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--version", "versions", multiple=True, type=int, help="Versions to sweep. Default: the newest.")
@click.option("--slo-ms", type=click.FloatRange(min=0, min_open=True), help="Bound on the 99th percentile of latency.")
@click.option("--batch", multiple=True, type=click.IntRange(min=1), help="Rows to try. Default: powers of two.")
@click.option(
    "--accelerator",
    "accelerators",
    multiple=True,
    type=click.Choice([OWN_KERNELS, *(accelerator.value for accelerator in Accelerator)]),
    help="What to run on. Default: all that this ONNX Runtime offers.",
)
@click.option("--seconds", default=0.3, type=click.FloatRange(min=0.01), help="Length of each measurement.")
@click.option("--json", "json_file", type=NEW_FILE, help="Also write all figures to this file.")
@click.option("--plot", type=NEW_FILE, help="Also draw them into this file (needs the `plots` extra).")
@click.option(
    "--apply",
    "write",
    is_flag=True,
    help="Write the best configuration into config.pbtxt, and what it costs for `serve`.",
)
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_cache_dir,
    show_default="~/.cache/kairos",
    help="The server's cache, where its scheduler finds the costs.",
)
def profile(model: Path, **values: Any) -> None:  # noqa: ANN401  (click hands over the options by name)
    """Sweep batch sizes, instances, threads, accelerators and versions of a model; say what serves most rows.

    MODEL is a model's folder in a repository.

    **Examples**

    - `kairos profile models/digits --slo-ms 5`
    - `kairos profile models/digits --version 1 --version 2 --plot digits.png --json digits.json`
    """
    errors = Console(stderr=True, highlight=False)
    options = ProfileOptions(
        slo_ms=values["slo_ms"],
        batches=tuple(values["batch"]),
        seconds=values["seconds"],
        accelerators=accelerators_of(values["accelerators"]),
    )
    try:
        numbers = values["versions"] or (version_of(newest_version(model).name),)
        with bars(errors) as progress:
            result = sweep([model / str(number) for number in numbers], options, progress)
        show(result, Console(highlight=False))
        if values["json_file"]:
            values["json_file"].write_text(json.dumps(plain(result), indent=2) + "\n", encoding="utf-8")
        if values["plot"]:
            _draw(result, values["plot"])
        if values["write"] and result.best is not None:
            click.echo(f"written: {apply(result.best, model)}")
            for file in seed_scheduler(result, result.best, model, values["cache_dir"]):
                click.echo(f"written: {file}")
    except BuildFailed as error:
        errors.print(f"[bold red]Cannot profile:[/] {error}", soft_wrap=True)
        sys.exit(1)
    sys.exit(0 if result.best is not None else 2)


def accelerators_of(names: Sequence[str]) -> tuple[Accelerator | None, ...]:
    """What to sweep; None for ONNX Runtime's own kernels."""
    if not names:
        return (None, *offered(this_processor()))
    return tuple(dict.fromkeys(None if name == OWN_KERNELS else Accelerator(name) for name in names))


def seed_scheduler(result: Profile, best: Point, model: Path, cache_dir: Path) -> list[Path]:
    """Leave what executions cost in the best layout where the server looks for it; the files."""
    written = []
    for version, costs in result.costs.items():
        definition = open_version(model / str(version)).definition
        cost = CostModel(definition.limits.max_rows, definition.limits.allowed_rows)
        cost.seed(costs)
        file = costs_file(cache_dir, definition.spec, best.instances, best.threads)
        save_costs(file, cost)
        written.append(file)
    return written


def show(result: Profile, console: Console) -> None:
    """The points that no other dominates, and what is best."""
    table = Table(
        "version", "rows", "instances", "threads", "on", "rows/s", "p50 ms", "p99 ms", "", box=None, pad_edge=False
    )
    shown = frontier_of(result.points)
    if result.best is not None and result.best not in shown:
        shown.append(result.best)
    for point in shown:
        marks = [name for name, marked in (("knee", result.knee), ("best", result.best)) if point == marked]
        table.add_row(
            *map(str, (point.version, point.rows, point.instances, point.threads)),
            point.accelerator.value if point.accelerator else "",
            f"{point.rows_per_second:.0f}",
            f"{point.p50_ms:.3f}",
            f"{point.p99_ms:.3f}",
            ", ".join(marks),
        )
    console.print(table)
    console.print(f"{len(result.points)} points measured; those are shown that no other beats in both columns")
    if result.best is None:
        console.print(f"[bold red]nothing keeps {result.slo_ms:g} ms[/]")
        return
    best = result.best
    where = f" on {best.accelerator.value}" if best.accelerator else ""
    console.print(
        f"[bold]best: version {best.version}, batches of up to {best.rows} rows, {best.instances} instance(s) with "
        f"{best.threads} thread(s){where}: {best.rows_per_second:.0f} rows a second, p99 {best.p99_ms:.3f} ms[/]"
    )


def _draw(result: Profile, path: Path) -> None:
    best = None if result.best is None else (result.best.p99_ms, result.best.rows_per_second)
    knee = (result.knee.p99_ms, result.knee.rows_per_second)
    draw_profile(curves_of(result.points), knee, best, result.slo_ms, path)
