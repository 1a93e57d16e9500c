"""`kairos cache`: look into the response cache of a running server, or empty it."""

from __future__ import annotations

import rich_click as click
from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from server.cli.channel import Address, fail, with_server
from server.pb import cache_pb2 as pb
from server.pb.cache_pb2_grpc import CacheStub

_model = click.option("--model", default="", help="Only this model. Default: all.")
_timeout = click.option("--timeout", default=30.0, show_default=True, help="Seconds to wait for it.")


@click.group()
def cache() -> None:
    """Look into the response cache of a running server, or empty it."""


@cache.command()
@with_server
@_model
@_timeout
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def stats(server: Address, model: str, timeout: float, as_json: bool) -> None:
    """How often the cache could help, what it holds, and how Redis does."""
    with server.calling(CacheStub) as stub:
        found = stub.Statistics(pb.CacheStatisticsRequest(model=model), timeout=timeout)
    if as_json:
        click.echo(json_format.MessageToJson(found, always_print_fields_with_no_presence=True))
        return
    console = Console(highlight=False)
    table = Table(
        "model", "version", "hit rate", "memory", "redis", "shared", "misses", "bypassed", "aside", "failed", box=None
    )
    for line in found.models:
        answered = line.memory_hits + line.redis_hits + line.shared + line.misses
        rate = f"{1 - line.misses / answered:.1%}" if answered else ""
        counts = (line.memory_hits, line.redis_hits, line.shared, line.misses, line.bypassed, line.aside, line.failed)
        table.add_row(line.name, line.version, rate, *map(str, counts))
    console.print(table if found.models else "no loaded model has response_cache { enable: true }")
    if found.HasField("memory"):
        level = found.memory
        console.print(
            f"memory   {level.entries} answers, {level.size_bytes / 2**20:.1f} of {level.limit_bytes / 2**20:.1f} MiB, "
            f"{level.evictions} evicted, {level.expirations} expired"
        )
    if found.HasField("redis"):
        _print_redis(console, found.redis)


@cache.command()
@with_server
@_model
@_timeout
def flush(server: Address, model: str, timeout: float) -> None:
    """Forget the answers of one model, or all: in this server's memory and in the Redis it shares with others."""
    with server.calling(CacheStub) as stub:
        flushed = stub.Flush(pb.CacheFlushRequest(model=model), timeout=timeout)
    click.echo(f"forgotten: {flushed.memory} answers in memory, {flushed.redis} in Redis")
    if flushed.redis_error:
        fail(f"Redis was not flushed: {flushed.redis_error}")


def _print_redis(console: Console, level: pb.RedisLevel) -> None:
    state = pb.BreakerState.Name
    console.print(
        f"redis    look-ups {state(level.lookups).lower()}: {level.found} found, {level.absent} absent, "
        f"{level.late} late, {level.failed} failed, {level.skipped} skipped, {level.corrupted} corrupted; "
        f"p50 <= {level.lookup_p50_seconds * 1000:g} ms, p99 <= {level.lookup_p99_seconds * 1000:g} ms\n"
        f"         writes {state(level.writes).lower()}: {level.written} written, {level.write_failed} failed, "
        f"{level.write_dropped} dropped, {level.write_queued_bytes} bytes waiting"
    )
