"""`kairos serve`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

import rich_click as click
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from engines.errors import InferError
from server.app import VERSION, Addresses, Server, ServerOptions, run
from server.cli.options import access, cache, listening, models, protocol, telemetry, watching
from server.cli.settings import read_config
from server.loop import new_event_loop
from server.telemetry.otel import Environment, read_environment

HOPELESS: Final = 3
"""Exit status of a server that gave itself up, so that whatever started it knows to start it again."""


@click.command(context_settings={"show_default": True})
@click.option(
    "--config",
    panel="Models",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=read_config,
    envvar="KAIROS_CONFIG",
    help="TOML file with settings under the names of the flags: `grpc-port = 9001`. Flags and environment win.",
)
@models.declared
@listening.declared
@access.declared
@telemetry.declared
@protocol.declared
@cache.declared
@watching.declared
def serve(**values: Any) -> None:  # noqa: ANN401  (click hands over the settings by name)
    """Serve the models of one or more repositories until SIGTERM or Ctrl-C, then drain.

    **Examples**

    - `kairos serve --model-repository examples/models`
    - `kairos serve --model-repository /models --host 0.0.0.0 --model-control-mode poll`
    - `kairos serve --model-repository s3://bucket/models --model-control-mode poll`
    - `KAIROS_GRPC_PORT=9001 kairos serve --config kairos.toml`
    """
    try:
        options = options_of(values, read_environment(os.environ))
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            ending = runner.run(run(options, announce))
            if ending.threads_left:
                _leave(HOPELESS if ending.hopeless else 0)
        if ending.hopeless:
            sys.exit(HOPELESS)
    except (InferError, OSError, ValueError) as error:
        Console(stderr=True).print(f"[bold red]kairos cannot start:[/] {error}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _leave(status: int) -> NoReturn:
    """End the process though a thread is inside an engine's native code, which Python cannot end without a crash."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def options_of(values: dict[str, Any], otel: Environment) -> ServerOptions:
    """The settings, each in the options of the component that obeys it."""
    return ServerOptions(
        repository=models.repository_options(values),
        sources=models.source_options(values),
        listen=listening.listen_options(values),
        access=access.access_options(values),
        requests=access.request_limits(values),
        service=protocol.service_options(values, VERSION),
        logs=telemetry.log_options(values),
        traces=telemetry.trace_options(values, otel),
        otel=otel,
        cache=cache.store_options(values),
        metrics_port=values["metrics_port"] if values["allow_metrics"] else None,
        drain_delay_s=values["drain_delay_secs"],
        exit_timeout_s=values["exit_timeout_secs"],
        patience=models.patience(values),
        exit_on_error=values["exit_on_error"],
        cache_dir=values["cache_dir"],
        triggers=watching.trigger_options(values),
        state_dir=values["state_dir"],
    )


def announce(addresses: Addresses, server: Server) -> None:
    """Say what is served, and how to call it; on standard error, where log lines go."""
    console = Console(stderr=True, highlight=False)
    models = Table("model", "version", "inputs", "outputs", "rows", box=None, pad_edge=False)
    for model in server.models.served():
        spec = model.spec
        models.add_row(
            spec.name,
            str(spec.version),
            ", ".join(f"{tensor.name} {tensor.dtype.label}{list(tensor.shape)}" for tensor in spec.inputs),
            ", ".join(f"{tensor.name} {tensor.dtype.label}{list(tensor.shape)}" for tensor in spec.outputs),
            f"up to {spec.max_rows}" if spec.batched else "no batches",
        )
    url = f"{addresses.host}:{addresses.grpc_port}"
    lines = [
        f"gRPC     {url}   (KServe v2, health, reflection)",
        f"metrics  http://{addresses.host}:{addresses.metrics_port}/metrics"
        if addresses.metrics_port is not None
        else "metrics  off",
        f"Python   tritonclient.grpc.InferenceServerClient('{url}')",
        f"shell    grpcurl -plaintext {url} inference.GRPCInferenceService/RepositoryIndex",
    ]
    if not console.is_terminal:
        console.print(f"kairos is ready: gRPC {url}, metrics port {addresses.metrics_port}", soft_wrap=True)
        return
    console.print(models)
    console.print(Panel("\n".join(lines), title=f"kairos {VERSION} is ready", expand=False))
