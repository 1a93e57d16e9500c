"""`kairos label`: soft targets for a student, from a teacher that is being served."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich_click as click
from rich.console import Console

from engines.build.data import open_data
from engines.build.errors import BuildFailed
from engines.tensor import DType
from server.cli.build import DATA, FILE
from server.cli.channel import with_server
from server.cli.labelling.parts import Job, Parts
from server.cli.labelling.teacher import AskOptions, Description, teacher
from server.cli.progress import bars
from server.cli.values import duration

Show = Callable[[str, int, int], None]


@click.command(context_settings={"show_default": True})
@click.argument("data", type=DATA)
@click.argument("result", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--model", required=True, help="The teacher's name on the server.")
@click.option("--version", default="", help="Its version. Default: the one that answers now; the job keeps to it.")
@with_server
@click.option("--outputs", default="", help="Names of the outputs to keep, with commas between. Default: all numbers.")
@click.option("--labels", default="", help="An array or column of the data that is no input.")
@click.option("--preprocessing", type=FILE, help="TOML file that says how images become inputs.")
@click.option(
    "--batch", default=32, type=click.IntRange(min=1), help="Rows of a request, at most what the model takes."
)
@click.option("--in-flight", default=8, type=click.IntRange(min=1), help="Requests under way.")
@click.option("--deadline", default="10s", help="Deadline of each request.")
@click.option("--patience", default="300s", help="Longest time without a single answer.")
def label(data: Path, result: Path, **values: Any) -> None:  # noqa: ANN401  (click hands over the options by name)
    """Put all rows of DATA through a served model, and write its outputs to RESULT: the soft targets of a student.

    DATA is an .npz, .npy or .parquet file, or a directory of images; RESULT an .npz or .parquet file, whose rows are in
    the order of DATA's. An interrupted job (Ctrl-C, a crash, a server that goes away) leaves its answers in
    `RESULT.parts`; the same command goes on from there. A server that is busy says when to come back, and is obeyed.

    **Examples**

    - `kairos label unlabelled.npz soft.npz --model digits`
    - `kairos label rows.parquet soft.parquet --model digits --version 2 --outputs probabilities --in-flight 16`
    """
    errors = Console(stderr=True, highlight=False)
    options = AskOptions(
        batch=values["batch"],
        in_flight=values["in_flight"],
        deadline_s=duration(values["deadline"]),
        patience_s=duration(values["patience"]),
    )
    if result.suffix not in (".npz", ".parquet"):
        raise click.BadParameter(f"{result} must end with .npz or .parquet", param_hint="RESULT")
    try:
        with bars(errors) as show:
            said = asyncio.run(_label(data, result, values, options, show))
    except BuildFailed as error:
        errors.print(f"[bold red]Not finished:[/] {error}", soft_wrap=True)
        _tell_parts(errors, result)
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("[yellow]interrupted[/]")
        _tell_parts(errors, result)
        sys.exit(130)
    Console(highlight=False).print(said, soft_wrap=True)


async def _label(data: Path, result: Path, values: dict[str, Any], options: AskOptions, show: Show) -> str:
    parts = Parts(result)
    async with teacher(values["server"], values["model"], options) as asked:
        begun = await asyncio.to_thread(parts.begun)
        found = await asked.describe(values["version"] or ("" if begun is None else begun.version))
        rows = await asyncio.to_thread(
            open_data, data, found.inputs, labels=values["labels"], preprocessing=values["preprocessing"]
        )
        job = Job(
            data=rows.digest, rows=len(rows), model=values["model"], version=found.version, digest=found.digest,
            outputs=_outputs(found, values["outputs"]),
        )  # fmt: skip
        kept = 0

        def done(count: int) -> None:
            nonlocal kept
            kept += count
            show("labelling", kept, job.rows)

        await asked.label(rows, job, parts, found.max_rows, done)
        answers = await asyncio.to_thread(parts.assemble, job)
        await asyncio.to_thread(parts.finish, job, answers)
    shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in answers.items())
    waited = f"; {asked.paused} requests had to be sent again" if asked.paused else ""
    return f"[bold green]{result}[/]: {shapes} from {job.model} version {job.version}{waited}"


def _outputs(found: Description, named: str) -> tuple[str, ...]:
    """The outputs to keep. Raises BuildFailed for those that are not there, or are no numbers."""
    numbers = tuple(name for name, dtype in found.outputs.items() if dtype is not DType.BYTES)
    wanted = tuple(name.strip() for name in named.split(",")) if named else numbers
    for name in wanted or ("",):
        if name not in numbers:
            raise BuildFailed(f"'{name}' is no output that holds numbers; these do: {', '.join(numbers) or 'none'}")
    return wanted


def _tell_parts(errors: Console, result: Path) -> None:
    folder = Parts(result).folder
    if folder.exists():
        errors.print(f"what was answered is kept in {folder}; the same command goes on from there", soft_wrap=True)
