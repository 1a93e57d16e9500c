"""Where answers are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import rich_click as click

from server.cache.connect import connect
from server.cache.lookups import LookupOptions
from server.cache.memory import MemoryOptions
from server.cache.redis import RedisOptions
from server.cache.store import StoreOptions
from server.cli.settings import in_panel, settings

declare: Final = in_panel("Response cache")


def check_redis_url(context: click.Context, parameter: click.Parameter, url: str | None) -> str | None:
    """The URL, if it can be meant; nothing is connected yet."""
    try:
        if url is not None:
            connect(url, timeout_s=1.0)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error
    return url


declared = settings(
    declare(
        "--response-cache-byte-size",
        default=256 << 20,
        type=click.IntRange(min=0),
        help="Memory for answers of models with `response_cache { enable: true }`. 0: keep none.",
    ),
    declare(
        "--redis-url",
        callback=check_redis_url,
        help="Redis to share answers through: `redis://`, `rediss://`, `unix://`, `redis+sentinel://`, `redis+cluster://`.",
    ),
    declare(
        "--redis-namespace",
        default="kairos",
        help="Begins all names in Redis. Servers that share answers have the same.",
    ),
    declare(
        "--redis-secret",
        show_default=False,
        help="Secret of all who share the Redis: others' values are not believed. Better in the environment or a file.",
    ),
    declare(
        "--redis-secret-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="File with that secret.",
    ),
    declare(
        "--redis-budget-ms",
        default=2.0,
        type=click.FloatRange(min=0),
        help="Longest wait of a request for Redis; never more than a tenth of the time it has left.",
    ),
)


def store_options(values: dict[str, Any]) -> StoreOptions:
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
