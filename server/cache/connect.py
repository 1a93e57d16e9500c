"""Redis from a URL: one server, Sentinel or Cluster, with TLS, ACL users or a Unix socket.

    redis://[user:password@]host[:port][/db]                                 one server; rediss:// with TLS
    unix://[user:password@]/path/to/socket[?db=0]                            one server on this machine
    redis+sentinel://[user:password@]host[:port],host[:port]/service[/db]    rediss+sentinel:// with TLS
    redis+cluster://[user:password@]host[:port],host[:port]                  rediss+cluster:// with TLS

With TLS, these may follow as a query: ssl_ca_certs, ssl_certfile and ssl_keyfile (paths), ssl_cert_reqs=none,
ssl_check_hostname=false. Rule: commands are never retried here; a fault is the caller's to count.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from server.cache.connection import Connection, Write
from server.cache.resp import Endpoint, RespConnection

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

_TLS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"})


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL, taken apart."""

    kind: str
    """Empty for one server, `sentinel` or `cluster`."""
    hosts: tuple[tuple[str, int], ...]
    path: str
    user: str
    password: str = field(repr=False)
    tls: bool
    query: dict[str, str]


def connect(url: str, *, timeout_s: float) -> Connection:
    """A connection that is made when first used; `timeout_s` bounds connecting and each command.

    Raises ValueError, naming what is wrong, for a URL that cannot be meant.
    """
    parsed = parse_url(url)
    if parsed.kind == "cluster":
        return _cluster(parsed, timeout_s)
    endpoint = Endpoint(
        user=parsed.user, password=parsed.password, tls=tls_context(parsed.query) if parsed.tls else None
    )
    if parsed.kind == "sentinel":
        return _sentinel(parsed, endpoint, timeout_s)
    if not parsed.hosts:
        endpoint = replace(endpoint, path=parsed.path, db=_number(parsed.query.get("db", "0")))
    else:
        host, port = parsed.hosts[0]
        endpoint = replace(endpoint, host=host, port=port, db=_number(parsed.path or parsed.query.get("db", "0")))

    async def find() -> Endpoint:
        return endpoint

    return RespConnection(find, timeout_s)


def parse_url(url: str) -> RedisUrl:
    """Raises ValueError."""
    scheme, _, rest = url.partition("://")
    base, _, kind = scheme.partition("+")
    if base not in ("redis", "rediss", "unix") or kind not in ("", "sentinel", "cluster") or (kind and base == "unix"):
        raise ValueError(f"'{scheme}' is not a scheme of a Redis URL: redis, rediss, unix, redis+sentinel, ...")
    parts = urlsplit(f"//{rest}")
    credentials, _, addresses = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    query = dict(parse_qsl(parts.query))
    known = (_TLS if base == "rediss" else set()) | (set() if kind else {"db"})
    if unknown := sorted(query.keys() - known):
        raise ValueError(f"'{unknown[0]}' means nothing in a URL of {scheme}")
    user, password, path = unquote(user), unquote(password), unquote(parts.path)
    if base == "unix":
        return RedisUrl("", (), path, user, password, tls=False, query=query)
    default = SENTINEL_PORT if kind == "sentinel" else REDIS_PORT
    hosts = tuple(_host(address, default) for address in addresses.split(","))
    if not kind and len(hosts) > 1:
        raise ValueError("one server has one host; for several say redis+sentinel or redis+cluster")
    return RedisUrl(
        kind, hosts, unquote(parts.path.strip("/")), unquote(user), unquote(password), base == "rediss", query
    )


def tls_context(query: dict[str, str]) -> ssl.SSLContext:
    """As the query of the URL asks. Raises ValueError when files cannot be read."""
    try:
        context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
        if certificate := query.get("ssl_certfile"):
            context.load_cert_chain(certificate, query.get("ssl_keyfile"))
    except OSError as error:
        raise ValueError(f"the files for TLS cannot be used: {error}") from error
    if query.get("ssl_check_hostname") == "false" or query.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
    if query.get("ssl_cert_reqs") == "none":
        context.verify_mode = ssl.CERT_NONE
    return context


class ClusterConnection:
    """Connection to a Redis Cluster, by redis-py."""

    def __init__(self, client: RedisCluster) -> None:
        self._client: Any = client  # its commands are typed as synchronous and asynchronous at once

    async def ping(self) -> None:
        await self._client.ping()

    async def mget(self, names: Sequence[bytes]) -> Sequence[bytes | None]:
        values: Sequence[bytes | None] = await self._client.mget_nonatomic(list(names))
        return values

    async def write(self, writes: Sequence[Write]) -> Sequence[Exception | None]:
        pipeline = self._client.pipeline()
        for write in writes:
            if write.value is None:
                pipeline.execute_command("UNLINK", write.name)  # the pipeline's own `unlink` sends nothing
            else:
                pipeline.set(write.name, write.value, px=write.ttl_ms)
        outcomes = await pipeline.execute(raise_on_error=False)
        return [outcome if isinstance(outcome, Exception) else None for outcome in outcomes]

    async def add(self, name: bytes, value: bytes, ttl_ms: int) -> bool:
        return bool(await self._client.set(name, value, px=ttl_ms, nx=True))

    def scan(self, pattern: bytes) -> AsyncIterator[bytes]:
        names: AsyncIterator[bytes] = self._client.scan_iter(match=pattern, count=1000)
        return names

    async def close(self) -> None:
        await self._client.aclose()


class SentinelConnection(RespConnection):
    """Connection to the primary that the sentinels name, asked again for each connection."""

    def __init__(self, sentinel: Sentinel, service: str, endpoint: Endpoint, timeout_s: float) -> None:
        async def find() -> Endpoint:
            host, port = await sentinel.discover_master(service)
            return replace(endpoint, host=str(host), port=int(port))

        super().__init__(find, timeout_s)
        self._sentinel = sentinel

    async def close(self) -> None:
        await super().close()
        await self._sentinel.aclose()


def _sentinel(parsed: RedisUrl, endpoint: Endpoint, timeout_s: float) -> Connection:
    service, _, db = parsed.path.partition("/")
    if not service:
        raise ValueError("a Sentinel URL names the service after the hosts: redis+sentinel://host:26379/service")
    # Sentinels are met with the same certificates and timeouts, without the data servers' user and password.
    sentinel = Sentinel(parsed.hosts, sentinel_kwargs=_client_options(parsed, timeout_s))  # type: ignore[no-untyped-call]  # redis-py has no types here
    return SentinelConnection(sentinel, service, replace(endpoint, db=_number(db or "0"), primary=True), timeout_s)


def _cluster(parsed: RedisUrl, timeout_s: float) -> Connection:
    if parsed.path:
        raise ValueError("a Redis Cluster has no numbered databases: leave out the path")
    return ClusterConnection(
        RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in parsed.hosts],
            username=parsed.user or None, password=parsed.password or None, **_client_options(parsed, timeout_s),
        )
    )  # fmt: skip


def _client_options(parsed: RedisUrl, timeout_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {name: value for name, value in parsed.query.items() if name in _TLS}
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"] != "false"
    if parsed.tls:
        options["ssl"] = True
    return options | {
        "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
    }  # fmt: skip


def _host(address: str, default_port: int) -> tuple[str, int]:
    one: SplitResult = urlsplit(f"//{address}")
    if not one.hostname:
        raise ValueError(f"no host in '{address}'")
    return one.hostname, one.port or default_port


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"a database is a number, not '{text}'")
    return int(text)
