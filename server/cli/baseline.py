"""`kairos baseline`: what a model's inputs and answers look like when all is well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click
from rich.console import Console
from rich.table import Table as Lines

from engines.backends.cores import available_cores
from engines.backends.processor import this_processor
from engines.backends.sweep import Layout
from engines.build.bench import answers, open_engine, open_version
from engines.build.data import dataset_of, open_data
from engines.build.errors import BuildFailed
from engines.errors import InferError
from engines.repository.layout import version_of
from server.cli.build import DATA, FILE
from server.cli.channel import fail
from server.cli.progress import bars
from server.watch.settings import hints_of
from server.watch.watcher import MISSING

if TYPE_CHECKING:
    from server.watch.reference import Reference
    from server.watch.table import Table

_SHOWN: int = 24


@click.command(context_settings={"show_default": True})
@click.argument("model")
@click.option(
    "--repository",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of models.",
)
@click.option("--version", type=click.IntRange(min=1), help="Default: the newest.")
@click.option(
    "--data",
    type=DATA,
    required=True,
    help="Rows like those that will be served, and not those that the model was trained on, of which it is too sure: "
    ".npz, .npy, .parquet, or a directory of images.",
)
@click.option("--preprocessing", type=FILE, help="TOML file that says how images become inputs.")
@click.option("--rows", default=100_000, type=click.IntRange(min=1), help="Most rows to look at, evenly from all.")
def baseline(
    model: str, repository: Path, version: int | None, data: Path, preprocessing: Path | None, rows: int
) -> None:
    """Profile data, and a model's answers to it, as what `watch` compares requests with.

    Writes `baseline.json` and `baseline.npz` beside the version's model file. A server that polls its repository picks
    them up; `watch { enable: true }` in the model's config.pbtxt turns the watch on.

    **Example**

    - `kairos baseline digits --repository models --data held_out.npz`
    """
    errors = Console(stderr=True, highlight=False)
    try:
        from server.watch.reference import save  # noqa: PLC0415  (an extra, and slow to import)

        folder = _folder(repository / model, version)
        with bars(errors) as progress:
            reference = _make(folder, data, preprocessing, rows, progress)
        path = save(reference, folder)
    except ImportError:
        fail(f"No baseline: {MISSING}")
    except (BuildFailed, InferError, OSError) as error:
        fail(f"No baseline: {error}")
    else:
        _show(reference, path)


def _folder(model: Path, version: int | None) -> Path:
    """The version's folder. Raises BuildFailed."""
    if not model.is_dir():
        raise BuildFailed(f"{model.parent} has no model '{model.name}'")
    number = version or max((version_of(entry.name) for entry in model.iterdir()), default=0)
    if not number or not (model / str(number)).is_dir():
        raise BuildFailed(f"model '{model.name}' has no version{f' {version}' if version else ''}")
    return model / str(number)


def _make(
    folder: Path, data: Path, preprocessing: Path | None, rows: int, progress: Callable[[str, int, int], None]
) -> Reference:
    from server.watch.baseline import make_reference  # noqa: PLC0415  (as above)

    trial = open_version(folder)
    definition = trial.definition
    needed = [tensor for tensor in definition.spec.inputs if not tensor.optional]
    dataset = open_data(data, needed, preprocessing=preprocessing, as_served=True).spread(rows)
    engine = open_engine(trial, Layout(1, available_cores()), this_processor())
    try:
        return make_reference(
            definition.spec,
            hints_of(definition.config.watch, definition.spec),
            dataset,
            lambda arrays: answers(engine, dataset_of(arrays, source=dataset.source)),
            progress,
            model_digest=definition.files_digest,
        )
    finally:
        engine.close()


def _show(reference: Reference, path: Path) -> None:
    console = Console(highlight=False)
    lines = Lines("", "rows", "missing", "5 %", "median", "95 %", box=None, pad_edge=False)
    for table, what in ((reference.inputs, "inputs"), (reference.answers, "answers")):
        if table is not None:
            _add_lines(lines, table, what)
    console.print(lines)
    console.print(f"[bold green]written[/] {path}", soft_wrap=True)


def _add_lines(lines: Lines, table: Table, what: str) -> None:
    kinds = ", ".join(f"{plan.tensor} as {plan.kind}" for plan in table.plans)
    lines.add_row(f"[bold]{what}[/]: {kinds}", str(table.rows))
    for sketch in table.sketches[:_SHOWN]:
        column = sketch.column
        if column.categories:
            found = sorted(zip(sketch.counts.tolist(), column.categories, strict=True), reverse=True)[:3]
            figures = [f"{name} {count / max(1, table.rows):.0%}" for count, name in found if count]
        else:
            figures = [f"{value:.4g}" for value in sketch.quantiles((0.05, 0.5, 0.95))]
        lines.add_row(f"  {column.name}", str(sketch.present), str(sketch.missing), *figures)
    if len(table.sketches) > _SHOWN:
        lines.add_row(f"  and {len(table.sketches) - _SHOWN} more")
