"""`kairos plan`: from an ONNX file to a TensorRT plan for the GPU of this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import rich_click as click
from rich.console import Console

from engines.backends.cuda.find import Way, find_cuda
from engines.backends.tensorrt.library import load
from engines.build.errors import BuildFailed
from engines.build.graphs import file_digest
from engines.build.manifest import TABLE_FILE
from engines.build.tensorrt.build import PlanBuilder, PlanReport
from engines.build.tensorrt.options import PlanOptions, Portability
from engines.build.tensorrt.process import build_apart
from engines.errors import LoadFailed
from server.cli.options.models import default_cache_dir
from server.cli.progress import bars

MIB = 1 << 20


@click.command(context_settings={"show_default": True})
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="The model's name in the repository.")
@click.option(
    "--repository",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of models; made if new.",
)
@click.option(
    "--rows",
    multiple=True,
    type=click.IntRange(min=1),
    default=(1, 8, 32),
    help="Sizes that batches are padded up to; each is tuned by itself. The last is the largest.",
)
@click.option("--any-rows", is_flag=True, help="Any size up to the largest: less padding, slower kernels.")
@click.option(
    "--shape",
    multiple=True,
    metavar="INPUT=LEAST:BEST:MOST",
    help="For inputs with free dimensions besides the batch: `tokens=1:64:512`, `image=3x64x64:3x224x224:3x512x512`.",
)
@click.option("--workspace-mib", default=4096, type=click.IntRange(min=1), help="GPU memory that one kernel may use.")
@click.option("--memory-mib", default=0, type=click.IntRange(min=0), help="Host memory at which building ends. 0: 3/4.")
@click.option("--level", default=3, type=click.IntRange(0, 5), help="How long TensorRT searches for fast kernels.")
@click.option("--version-compatible", is_flag=True, help="Later minor versions of TensorRT run the plan, too.")
@click.option(
    "--portable",
    type=click.Choice([kind.value for kind in Portability]),
    default="none",
    help="Other GPUs that run the plan, too; slower.",
)
@click.option("--weight-streaming", is_flag=True, help="Weights may stay on the host: for models larger than the GPU.")
@click.option("--refit", is_flag=True, help="Weights can be replaced in the plan without building it again.")
@click.option("--gpu", default=0, type=click.IntRange(min=0), help="The GPU to build on, as this process counts them.")
@click.option(
    "--cuda", type=click.Choice([way.value for way in Way]), default="auto", help="The library that calls CUDA."
)
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: default_cache_dir() / "plans",
    show_default="~/.cache/kairos/plans",
    help="Where plans and timings are kept.",
)
def plan(**values: Any) -> None:  # noqa: ANN401  (click hands over the options by name)
    """Build a TensorRT plan of an ONNX file, on the GPU that will run it, and publish it as a version.

    INT8 and FP16 come from the file: make it with `kairos build --target tensorrt` first.

    **Examples**

    - `kairos plan model.onnx --name resnet --repository models`
    - `kairos plan model.onnx --name bert --repository models --shape tokens=1:64:512 --rows 1 --rows 16`
    """
    console = Console(stderr=True, highlight=False)
    try:
        with bars(console) as progress:
            device = find_cuda(Way(values["cuda"])).device(values["gpu"]).info  # the driver before TensorRT
            maker = PlanBuilder(
                cache_dir=values["cache_dir"],
                device=device,
                tensorrt=str(load().__version__),
                build=lambda job, report: build_apart(job, report, gpu=values["gpu"]),
                report=progress,
            )
            made = maker.version(values["model"], values["name"], values["repository"], options_of(values))
    except (BuildFailed, LoadFailed) as error:
        console.print(f"[bold red]Cannot build:[/] {error}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("Interrupted. Nothing is published.")
        sys.exit(130)
    show(made, console)


def options_of(values: dict[str, Any]) -> PlanOptions:
    """The options in the shape that the builder takes. Raises BuildFailed for a shape that cannot be read."""
    return PlanOptions(
        rows=tuple(sorted(set(values["rows"]))),
        fixed_rows=not values["any_rows"],
        shapes=dict(map(shape_of, values["shape"])),
        workspace_bytes=values["workspace_mib"] * MIB,
        memory_bytes=values["memory_mib"] * MIB,
        optimization_level=values["level"],
        version_compatible=values["version_compatible"],
        portability=Portability(values["portable"]),
        weight_streaming=values["weight_streaming"],
        refit=values["refit"],
        calibration_digest=file_digest(table) if (table := values["model"].parent / TABLE_FILE).exists() else "",
    )


def shape_of(text: str) -> tuple[str, list[tuple[int, ...]]]:
    """An input's name, and the least, best and most of its shape. Raises BuildFailed."""
    name, equals, sizes = text.rpartition("=")
    try:
        shapes = [tuple(int(size) for size in shape.split("x")) for shape in sizes.split(":")]
    except ValueError:
        shapes = []
    if not equals or len(shapes) != 3:
        raise BuildFailed(f"--shape '{text}' is not INPUT=LEAST:BEST:MOST, as in tokens=1:64:512")
    return name, shapes


def show(made: PlanReport, console: Console) -> None:
    """What came of it, and what next."""
    key = made.key
    how = "found in the cache" if made.cached else "built"
    console.print(f"{made.size_bytes / MIB:.1f} MiB, {how}, for {key.gpu} (SM {key.sm}) with TensorRT {key.tensorrt}")
    console.print(f"[green]Published[/] {made.published}")
