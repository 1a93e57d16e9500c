"""`kairos models`: what a running server has."""

from __future__ import annotations

import json
import sys

import grpc
import rich_click as click
from rich.console import Console
from rich.table import Table

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

_COLOURS = {"READY": "green", "LOADING": "yellow", "UNLOADING": "yellow", "UNAVAILABLE": "red"}


@click.command()
@click.option("--url", default="127.0.0.1:8001", show_default=True, envvar="KAIROS_URL", help="The server's address.")
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def models(url: str, timeout: float, as_json: bool) -> None:
    """List the models of a running server: versions, states, and how much each has answered."""
    with grpc.insecure_channel(url) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            index = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=timeout)
            counted = stub.ModelStatistics(pb.ModelStatisticsRequest(), timeout=timeout)
        except grpc.RpcError as error:
            Console(stderr=True).print(f"[bold red]{url} does not answer:[/] {error.details()}", highlight=False)
            sys.exit(1)
    answered = {(model.name, model.version): model for model in counted.model_stats}
    if as_json:
        rows = [
            {"name": m.name, "version": m.version, "state": m.state, "reason": m.reason}
            | {"inferences": answered[m.name, m.version].inference_count if (m.name, m.version) in answered else 0}
            for m in index.models
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("model", "version", "state", "rows answered", "rows a batch", "ms in the engine", "reason", box=None)
    for model in index.models:
        colour = _COLOURS.get(model.state, "dim")
        table.add_row(
            model.name,
            model.version,
            f"[{colour}]{model.state}[/]",
            *_figures(answered.get((model.name, model.version))),
            model.reason,
        )
    Console().print(table)


def _figures(model: pb.ModelStatistics | None) -> tuple[str, str, str]:
    if model is None:
        return "", "", ""
    batches = sum(batch.compute_infer.count for batch in model.batch_stats)
    spent_ns = sum(batch.compute_infer.ns for batch in model.batch_stats)
    if not batches:
        return str(model.inference_count), "", ""
    return str(model.inference_count), f"{model.inference_count / batches:.1f}", f"{spent_ns / batches / 1e6:.2f}"
