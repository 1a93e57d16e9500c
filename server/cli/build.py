"""`kairos build`: from an ONNX file to a version that is ready to be served."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import rich_click as click
from rich.console import Console
from rich.table import Table

from engines.build import manifest
from engines.build.builder import build as build_version
from engines.build.choose import speedups
from engines.build.errors import BuildFailed, Refused
from engines.build.options import BuildOptions, BuildReport, Precision, Target
from engines.build.ranges import Method
from server.cli.options.models import default_cache_dir
from server.cli.progress import bars

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
DATA = click.Path(exists=True, path_type=Path)


@click.command(context_settings={"show_default": True})
@click.argument("model", type=FILE)
@click.option("--name", required=True, help="The model's name in the repository.")
@click.option(
    "--repository",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of models; made if new.",
)
@click.option(
    "--precision",
    type=click.Choice([precision.value for precision in Precision]),
    default="auto",
    help="`auto`: whatever is fastest on the target within the allowed drop.",
)
@click.option(
    "--target",
    type=click.Choice([target.value for target in Target]),
    default="auto",
    help="`auto`: tensorrt where an NVIDIA driver is, else cpu.",
)
@click.option(
    "--calibration",
    type=DATA,
    help="Rows like those that will be served: .npz, .npy, .parquet, a directory of images or of captured requests, or "
    "the calibration.json of an earlier build of the same model. Needed for INT8.",
)
@click.option("--data", type=DATA, help="Rows to judge by. Default: every fourth row of the calibration data.")
@click.option(
    "--labels", default="", help="Their classes: an array or column of the data, a .npy or text file, or `folders`."
)
@click.option("--preprocessing", type=FILE, help="TOML file that says how images become inputs.")
@click.option("--max-drop", default=0.01, help="Largest loss of accuracy (without labels: of agreement) to publish.")
@click.option(
    "--method",
    type=click.Choice(["auto", *(method.value for method in Method)]),
    default="auto",
    help="How ranges are chosen. `auto`: the method with the least measured error.",
)
@click.option("--calibration-rows", default=512, type=click.IntRange(min=1), help="Most rows to calibrate on.")
@click.option("--tries", default=8, type=click.IntRange(min=0), help="Most tries at keeping sensitive layers in FP32.")
@click.option(
    "--batch", multiple=True, type=click.IntRange(min=1), default=(1, 32), help="Rows at which speed is measured."
)
@click.option("--output", default="", help="The output with a score for each class, where that is not clear.")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: default_cache_dir() / "build",
    show_default="~/.cache/kairos/build",
    help="Where calibration is kept, so that an interrupted one goes on.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest, for scripts.")
def build(**values: Any) -> None:  # noqa: ANN401  (click hands over the options by name)
    """Make a new version of a model from an ONNX file: convert, calibrate, measure, and publish if it is good enough.

    **Examples**

    - `kairos build model.onnx --name resnet --repository models --precision fp32`
    - `kairos build model.onnx --name resnet --repository models --calibration rows.npz --labels labels`
    - `kairos build model.onnx --name resnet --repository models --calibration photos --preprocessing resnet.toml`
    """
    console = Console(stderr=values["as_json"], highlight=False)
    errors = Console(stderr=True, highlight=False)
    try:
        with bars(errors) as progress:
            report = build_version(options_of(values), progress)
    except Refused as error:
        errors.print(f"[bold red]Not good enough:[/] {error}", soft_wrap=True)
        sys.exit(2)
    except BuildFailed as error:
        errors.print(f"[bold red]Cannot build:[/] {error}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("Interrupted. Nothing is published; the same command goes on with the calibration where it was.")
        sys.exit(130)
    show(report, console)
    if values["as_json"]:
        click.echo(json.dumps(json.loads((report.published / manifest.MANIFEST_FILE).read_text()), indent=2))


def options_of(values: dict[str, Any]) -> BuildOptions:
    """The options in the shape that the build takes."""
    return BuildOptions(
        model=values["model"],
        name=values["name"],
        repository=values["repository"],
        precision=Precision(values["precision"]),
        target=Target(values["target"]),
        calibration=values["calibration"],
        data=values["data"],
        labels=values["labels"],
        preprocessing=values["preprocessing"],
        max_drop=values["max_drop"],
        method=None if values["method"] == "auto" else Method(values["method"]),
        calibration_rows=values["calibration_rows"],
        tries=values["tries"],
        batches=tuple(values["batch"]),
        output=values["output"],
        state_dir=values["state_dir"],
    )


def show(report: BuildReport, console: Console) -> None:
    """The candidates side by side, what was chosen and why."""
    baseline = next(candidate for candidate in report.candidates if candidate.label == Precision.FP32.value)
    batches = list(baseline.seconds)
    table = Table("candidate", "KiB", *(f"µs at {rows}" for rows in batches), "speed", box=None, pad_edge=False)
    for title in ("accuracy" if baseline.comparison.accuracy else "drop", "verdict"):
        table.add_column(title)
    for candidate in report.candidates:
        compared = candidate.comparison
        ratios = speedups(candidate.seconds, baseline.seconds)
        table.add_row(
            candidate.label,
            f"{candidate.trial.size_bytes / 1024:.1f}",
            *(f"{candidate.seconds[rows] * 1e6:.0f}" for rows in batches),
            " ".join(f"{ratios[rows]:.2f}x" for rows in batches),
            f"{compared.accuracy[1] if compared.accuracy else compared.drop:.2%}",
            report.choice.verdicts.get(candidate.label, "for comparison"),
        )
    console.print(table)
    for note in report.notes:
        console.print(f"- {note}", soft_wrap=True)
    console.print(f"[bold]{report.choice.reason}[/]", soft_wrap=True)
    console.print(f"[bold green]published[/] {report.published}", soft_wrap=True)
