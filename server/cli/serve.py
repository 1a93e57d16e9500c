"""`kairos serve`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import rich_click as click
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from engines.errors import InferError
from engines.repository.manager import ControlMode, RepositoryOptions
from server.app import VERSION, Addresses, Server, ServerOptions, run
from server.cache.connect import connect
from server.cache.lookups import LookupOptions
from server.cache.memory import MemoryOptions
from server.cache.redis import RedisOptions
from server.cache.store import StoreOptions
from server.cli.settings import read_config, setting
from server.loop import new_event_loop
from server.telemetry.logs import FORMATS, LogOptions
from server.telemetry.otel import Environment, read_environment
from server.telemetry.traces import LEVELS, MODES, TraceOptions
from server.transport.listen import ListenOptions, TlsFiles, TransportKind
from server.transport.service import ServiceOptions
from server.transport.status import StatusCodes

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def default_cache_dir() -> Path:
    """Where optimised graphs are kept unless the settings say otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kairos"


def check_redis_url(context: click.Context, parameter: click.Parameter, url: str | None) -> str | None:
    """The URL, if it can be meant; nothing is connected yet."""
    try:
        if url is not None:
            connect(url, timeout_s=1.0)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error
    return url


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
@setting(
    "--model-repository",
    panel="Models",
    type=_FOLDER,
    multiple=True,
    required=True,
    help="Folder of models, as `NAME/VERSION/model.onnx`. May be given more than once.",
)
@setting(
    "--host",
    panel="Listening",
    default="127.0.0.1",
    help="Address to listen on. `0.0.0.0` opens the server to other hosts.",
)
@setting(
    "--grpc-port",
    panel="Listening",
    default=8001,
    type=click.IntRange(0, 65535),
    help="Port for gRPC. 0: any free one.",
)
@setting(
    "--transport",
    panel="Listening",
    type=click.Choice([kind.value for kind in TransportKind]),
    default="http2",
    help="Our own HTTP/2 gRPC server, or grpcio's, which costs several times the CPU.",
)
@setting(
    "--grpc-use-ssl/--no-grpc-use-ssl",
    panel="Listening",
    default=False,
    type=bool,
    help="Encrypt calls (TLS); needs a certificate and its key.",
)
@setting(
    "--grpc-server-cert",
    panel="Listening",
    type=_FILE,
    help="The server's certificate as PEM, followed by the intermediate ones.",
)
@setting("--grpc-server-key", panel="Listening", type=_FILE, help="Its private key as PEM.")
@setting(
    "--grpc-use-ssl-mutual/--no-grpc-use-ssl-mutual",
    panel="Listening",
    default=False,
    type=bool,
    help="Turn away clients without a certificate (mutual TLS).",
)
@setting(
    "--grpc-root-cert",
    panel="Listening",
    type=_FILE,
    help="Who may sign clients' certificates, as PEM; for mutual TLS.",
)
@setting(
    "--reuse-port/--no-reuse-port",
    panel="Listening",
    default=False,
    type=bool,
    help="Share the port with other server processes.",
)
@setting(
    "--metrics-port",
    panel="Metrics, logs and traces",
    default=8002,
    type=click.IntRange(0, 65535),
    help="Port for /metrics. 0: any free one.",
)
@setting(
    "--allow-metrics/--no-allow-metrics",
    panel="Metrics, logs and traces",
    default=True,
    type=bool,
    help="Whether to serve /metrics at all.",
)
@setting(
    "--model-control-mode",
    panel="Models",
    type=click.Choice([mode.value for mode in ControlMode]),
    default="none",
    help="Who decides what is loaded: `none` all models once, `poll` whatever changes, `explicit` callers.",
)
@setting(
    "--load-model", panel="Models", multiple=True, help="Mode explicit: a model to load at the start; `*` for all."
)
@setting(
    "--repository-poll-secs",
    panel="Models",
    default=15.0,
    type=click.FloatRange(min=0.05),
    help="Mode poll: seconds between looks.",
)
@setting(
    "--exit-on-error/--no-exit-on-error",
    panel="Models",
    default=False,
    type=bool,
    help="Leave when a model fails to load.",
)
@setting(
    "--exit-timeout-secs",
    panel="Listening",
    default=30.0,
    type=click.FloatRange(min=0),
    help="Longest drain after SIGTERM.",
)
@setting(
    "--status-codes",
    panel="Protocol",
    type=click.Choice([codes.value for codes in StatusCodes]),
    default="kairos",
    help="Which status codes errors get: our own, which do not invite retry storms, or Triton's.",
)
@setting(
    "--tenant-key",
    panel="Protocol",
    default="",
    help="Metadata key that says which tenant a call is for; in overload tenants get equal shares. Empty: all are one.",
)
@setting(
    "--server-name", panel="Protocol", default="kairos", help="Name in ServerMetadata; some clients insist on `triton`."
)
@setting(
    "--max-message-mb",
    panel="Listening",
    default=256,
    type=click.IntRange(1, 2047),
    help="Largest message taken or sent, in MiB.",
)
@setting(
    "--cache-dir",
    panel="Models",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_cache_dir,
    show_default="~/.cache/kairos",
    help="Folder for optimised graphs, so that the next start is quicker.",
)
@setting(
    "--response-cache-byte-size",
    panel="Response cache",
    default=256 << 20,
    type=click.IntRange(min=0),
    help="Memory for answers of models with `response_cache { enable: true }`. 0: keep none.",
)
@setting(
    "--redis-url",
    panel="Response cache",
    callback=check_redis_url,
    help="Redis to share answers through: `redis://`, `rediss://`, `unix://`, `redis+sentinel://`, `redis+cluster://`.",
)
@setting(
    "--redis-namespace",
    panel="Response cache",
    default="kairos",
    help="Begins all names in Redis. Servers that share answers have the same.",
)
@setting(
    "--redis-secret",
    panel="Response cache",
    show_default=False,
    help="Secret of all who share the Redis: values of others are not believed. Better in the environment or a file.",
)
@setting(
    "--redis-secret-file",
    panel="Response cache",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with that secret.",
)
@setting(
    "--redis-budget-ms",
    panel="Response cache",
    default=2.0,
    type=click.FloatRange(min=0),
    help="Longest wait of a request for Redis; never more than a tenth of the time it has left.",
)
@setting(
    "--log-format",
    panel="Metrics, logs and traces",
    type=click.Choice(FORMATS),
    default="auto",
    help="`auto` is for people on a terminal.",
)
@setting(
    "--log-file",
    panel="Metrics, logs and traces",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where lines go. Default: standard error.",
)
@setting(
    "--log-verbose",
    panel="Metrics, logs and traces",
    default=0,
    type=click.IntRange(min=0),
    help="1 and up: what a developer wants to read.",
)
@setting(
    "--log-info/--no-log-info",
    panel="Metrics, logs and traces",
    default=True,
    type=bool,
    help="Whether to log what is normal.",
)
@setting(
    "--trace-file",
    panel="Metrics, logs and traces",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for request traces, as JSON.",
)
@setting(
    "--access-log",
    panel="Metrics, logs and traces",
    default=0,
    type=click.IntRange(min=0),
    help="Log one in so many requests. 0: none; 1: all.",
)
@setting(
    "--trace-mode",
    panel="Metrics, logs and traces",
    type=click.Choice(MODES),
    show_default="opentelemetry if OTEL_* variables name an exporter, else triton",
    help="Where traces go: `triton` to the trace file, `opentelemetry` to the exporter.",
)
@setting(
    "--trace-level",
    panel="Metrics, logs and traces",
    type=click.Choice(LEVELS),
    show_default="TIMESTAMPS in mode opentelemetry, else OFF",
    help="What is traced; TraceSetting changes it.",
)
@setting(
    "--trace-rate",
    panel="Metrics, logs and traces",
    default=1000,
    type=click.IntRange(min=1),
    help="One in so many requests is traced.",
)
@setting(
    "--trace-count",
    panel="Metrics, logs and traces",
    default=-1,
    type=click.IntRange(min=-1),
    help="How many are traced. -1: without end.",
)
def serve(**values: Any) -> None:  # noqa: ANN401  (click hands over the settings by name)
    """Serve the models of one or more repositories until SIGTERM or Ctrl-C, then drain.

    **Examples**

    - `kairos serve --model-repository examples/models`
    - `kairos serve --model-repository /models --host 0.0.0.0 --model-control-mode poll`
    - `KAIROS_GRPC_PORT=9001 kairos serve --config kairos.toml`
    """
    try:
        options = options_of(values, read_environment(os.environ))
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            if runner.run(run(options, announce)):
                _leave()
    except (InferError, OSError, ValueError) as error:
        Console(stderr=True).print(f"[bold red]kairos cannot start:[/] {error}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _leave() -> NoReturn:
    """End the process though a thread is inside an engine's native code, which Python cannot end without a crash."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def options_of(values: dict[str, Any], otel: Environment) -> ServerOptions:
    """The settings, each in the options of the component that obeys it."""
    return ServerOptions(
        repository=RepositoryOptions(
            roots=tuple(values["model_repository"]),
            mode=ControlMode(values["model_control_mode"]),
            startup_models=tuple(values["load_model"]),
            poll_interval_s=values["repository_poll_secs"],
        ),
        listen=ListenOptions(
            host=values["host"],
            port=values["grpc_port"],
            transport=TransportKind(values["transport"]),
            max_message_bytes=values["max_message_mb"] << 20,
            tls=tls_of(values),
            reuse_port=values["reuse_port"],
        ),
        service=ServiceOptions(
            name=values["server_name"],
            version=VERSION,
            status_codes=StatusCodes(values["status_codes"]),
            tenant_key=values["tenant_key"],
        ),
        logs=LogOptions(
            format=values["log_format"],
            file=values["log_file"],
            info=values["log_info"],
            verbose=values["log_verbose"],
            access_rate=values["access_log"],
        ),
        traces=_trace_options(values, otel),
        otel=otel,
        cache=cache_options_of(values),
        metrics_port=values["metrics_port"] if values["allow_metrics"] else None,
        exit_timeout_s=values["exit_timeout_secs"],
        exit_on_error=values["exit_on_error"],
        cache_dir=values["cache_dir"],
    )


def _trace_options(values: dict[str, Any], otel: Environment) -> TraceOptions:
    mode = values["trace_mode"] or ("opentelemetry" if otel.tracing else "triton")
    if mode == "opentelemetry" and not otel.tracing:
        raise ValueError("trace mode opentelemetry needs an exporter: set OTEL_EXPORTER_OTLP_ENDPOINT")
    return TraceOptions(
        mode=mode,
        file=values["trace_file"],
        level=values["trace_level"] or ("TIMESTAMPS" if mode == "opentelemetry" else "OFF"),
        rate=values["trace_rate"],
        ratio=otel.ratio,
        parent_based=otel.parent_based,
        count=values["trace_count"],
    )


def tls_of(values: dict[str, Any]) -> TlsFiles | None:
    """The files that TLS needs; None where it is off. Raises UsageError where one is missing."""
    mutual = values["grpc_use_ssl_mutual"]
    if not values["grpc_use_ssl"] and not mutual:
        return None
    needed = {"--grpc-server-cert": values["grpc_server_cert"], "--grpc-server-key": values["grpc_server_key"]}
    if mutual:
        needed["--grpc-root-cert"] = values["grpc_root_cert"]
    for flag, path in needed.items():
        if path is None:
            raise click.UsageError(f"TLS needs {flag}")
    return TlsFiles(
        certificate=needed["--grpc-server-cert"],
        key=needed["--grpc-server-key"],
        client_ca=needed.get("--grpc-root-cert"),
    )


def cache_options_of(values: dict[str, Any]) -> StoreOptions:
    """The settings of the response cache."""
    secret = (values["redis_secret"] or "").encode()
    if path := values["redis_secret_file"]:
        if secret:
            raise click.UsageError("--redis-secret and --redis-secret-file exclude each other")
        secret = path.read_bytes().strip()
        if not secret:
            raise click.UsageError(f"--redis-secret-file: {path} is empty")
    redis = None
    if values["redis_url"]:
        lookups = LookupOptions(budget_s=values["redis_budget_ms"] / 1000)
        redis = RedisOptions(url=values["redis_url"], namespace=values["redis_namespace"], lookups=lookups)
    return StoreOptions(memory=MemoryOptions(size_bytes=values["response_cache_byte_size"]), redis=redis, secret=secret)


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
