"""`kairos compare`: whether one model may take another's place."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import rich_click as click
from rich.console import Console
from rich.table import Table

from engines.backends.options import Accelerator
from engines.build.compare import Comparison
from engines.build.errors import BuildFailed
from engines.build.manifest import plain
from engines.build.plots import draw_versus
from engines.build.versus import Versus, VersusOptions, versus
from server.cli.build import DATA, FILE
from server.cli.progress import bars

NEW_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(context_settings={"show_default": True})
@click.argument("a", type=DATA)
@click.argument("b", type=DATA)
@click.option(
    "--data", type=DATA, required=True, help="Rows that both answer: .npz, .npy, .parquet, captured requests or images."
)
@click.option(
    "--labels", default="", help="Their classes: an array or column of the data, a .npy or text file, or `folders`."
)
@click.option("--preprocessing", type=FILE, help="TOML file that says how images become inputs.")
@click.option("--output", default="", help="The output with a score for each class, where that is not clear.")
@click.option("--batch", multiple=True, type=click.IntRange(min=1), default=(1, 8, 32), help="Rows to measure at.")
@click.option("--rows", default=4096, type=click.IntRange(min=1), help="Most rows to answer.")
@click.option("--max-drop", default=0.01, help="Largest loss of accuracy (without labels: of agreement) that passes.")
@click.option(
    "--accelerator",
    type=click.Choice([accelerator.value for accelerator in Accelerator]),
    help="What B runs on. Default: what its configuration says.",
)
@click.option("--json", "json_file", type=NEW_FILE, help="Also write all figures to this file.")
@click.option("--plot", type=NEW_FILE, help="Also draw them into this file (needs the `plots` extra).")
def compare(a: Path, b: Path, **values: Any) -> None:  # noqa: ANN401  (click hands over the options by name)
    """Compare B with the reference A: answers, speed on this machine, size. Ends with status 2 when B loses too much.

    A and B are model files, folders of versions (`models/digits/2`) or of models, whose newest version is meant.

    **Examples**

    - `kairos compare models/digits/1 models/digits/2 --data held_out.npz --labels labels --plot digits.png`
    - `kairos compare models/digits models/digits --data held_out.npz --accelerator openvino`
    """
    console = Console(highlight=False)
    errors = Console(stderr=True, highlight=False)
    options = VersusOptions(
        data=values["data"],
        labels=values["labels"],
        preprocessing=values["preprocessing"],
        output=values["output"],
        batches=tuple(values["batch"]),
        max_drop=values["max_drop"],
        rows=values["rows"],
        accelerator=Accelerator(values["accelerator"]) if values["accelerator"] else None,
    )
    try:
        with bars(errors) as progress:
            result = versus(a, b, options, progress)
        show(result, console)
        if values["json_file"]:
            values["json_file"].write_text(json.dumps(plain(result), indent=2) + "\n", encoding="utf-8")
        if values["plot"]:
            draw_versus(result, values["plot"])
    except BuildFailed as error:
        errors.print(f"[bold red]Cannot compare:[/] {error}", soft_wrap=True)
        sys.exit(1)
    sys.exit(0 if result.passes else 2)


def show(result: Versus, console: Console) -> None:
    """Everything, as tables."""
    sides = Table("", "A", "B", "B against A", box=None, pad_edge=False)
    for rows, spent in result.a.seconds.items():
        other = result.b.seconds[rows]
        sides.add_row(
            f"µs of processor time at {rows}", f"{spent * 1e6:.0f}", f"{other * 1e6:.0f}", f"{spent / other:.2f}x"
        )
        sides.add_row(f"rows a second and core at {rows}", f"{rows / spent:.0f}", f"{rows / other:.0f}", "")
    for title, first, second in (
        ("KiB on disk", result.a.size_bytes, result.b.size_bytes),
        ("KiB of memory", result.a.memory_bytes, result.b.memory_bytes),
    ):
        ratio = f"{second / first:.0%}" if first else ""
        sides.add_row(title, f"{first / 1024:.0f}", f"{second / 1024:.0f}", ratio)
    compared = result.comparison
    if compared.accuracy is not None:
        before, after = compared.accuracy
        sides.add_row("accuracy", f"{before:.2%}", f"{after:.2%}", f"{after - before:+.2%}")
    console.print(sides)
    for title, value in (("same best class", compared.agreement), ("best class in top 5", compared.top_k_agreement)):
        if value is not None:
            console.print(f"{title}: {value:.2%} of {compared.rows} rows")
    if compared.divergence is not None:
        console.print(f"KL divergence of '{compared.scores}': {compared.divergence:.2g} nats")
    outputs = Table("output", "cosine", "max error", "unexplained variance", box=None, pad_edge=False)
    for error in compared.outputs:
        outputs.add_row(error.name, f"{error.cosine:.6f}", f"{error.max_error:.3g}", f"{error.unexplained:.2g}")
    console.print(outputs)
    console.print(_worst(compared))
    verdict = "[bold green]passes[/]" if result.passes else "[bold red]fails[/]"
    console.print(f"{compared.judged_by}: {compared.drop:.2%}, allowed {result.max_drop:.2%}: B {verdict}")


def _worst(compared: Comparison) -> Table:
    table = Table("worst rows", "distance", "A says", "B says", "label", box=None, pad_edge=False)
    for row in compared.worst:
        said = ("" if value is None else str(value) for value in (row.reference, row.candidate, row.label))
        table.add_row(str(row.row), f"{row.distance:.2g}", *said)
    return table
