"""URLs: what they stand for, and what is wrong with them."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import RedisCluster

from server.cache.connect import ClusterConnection, RedisUrl, SentinelConnection, connect, parse_url, tls_context
from server.cache.resp import Endpoint, RespConnection
from tests.support.certificates import Authority


def made(url: str) -> Any:
    """The connection; nothing connects before it is used."""

    async def make() -> Any:
        return connect(url, timeout_s=0.7)

    return asyncio.run(make())


def endpoint(url: str) -> Endpoint:
    connection = made(url)
    assert type(connection) is RespConnection
    found: Endpoint = asyncio.run(connection._reads._find())
    return found


def test_one_server() -> None:
    assert endpoint("redis://user:p%40ss@127.0.0.1:7000/3") == Endpoint(
        host="127.0.0.1", port=7000, db=3, user="user", password="p@ss"
    )
    assert endpoint("redis://[::1]") == Endpoint(host="::1", port=6379)
    assert endpoint("redis://:pw@host?db=2") == Endpoint(host="host", password="pw", db=2)
    assert endpoint("unix://user:pw@/run/redis.sock?db=2") == Endpoint(
        path="/run/redis.sock", db=2, user="user", password="pw"
    )


def test_what_is_said_first() -> None:
    assert Endpoint().greeting == []
    words = b" ".join(Endpoint(user="u", password="p", db=4, primary=True).greeting).split()
    assert [word for word in words if word.isalnum() and not word.startswith(b"$")] == [
        b"AUTH", b"u", b"p", b"SELECT", b"4", b"ROLE",
    ]  # fmt: skip


def test_tls(tmp_path: Path) -> None:
    authority = Authority()
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.certificate)
    context = endpoint(f"rediss://host?ssl_ca_certs={ca}").tls
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) == 1
    assert tls_context({"ssl_check_hostname": "false"}).check_hostname is False
    assert tls_context({"ssl_cert_reqs": "none"}).verify_mode is ssl.CERT_NONE
    mutual, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    mutual.write_bytes(authority.client_chain)
    key.write_bytes(authority.client_key)
    tls_context({"ssl_certfile": str(mutual), "ssl_keyfile": str(key)})


def test_sentinel() -> None:
    connection = made("rediss+sentinel://user:pw@one:1,two/mymaster/4?ssl_cert_reqs=none")
    assert isinstance(connection, SentinelConnection)
    met = [sentinel.connection_pool.connection_kwargs for sentinel in connection._sentinel.sentinels]
    assert [(kwargs["host"], kwargs["port"]) for kwargs in met] == [("one", 1), ("two", 26379)]
    assert {kwargs["ssl_cert_reqs"] for kwargs in met} == {"none"}
    assert {kwargs.get("password") for kwargs in met} == {None}
    assert {kwargs["socket_timeout"] for kwargs in met} == {0.7}


def test_cluster() -> None:
    connection = made("redis+cluster://user:pw@one:7001,two")
    assert isinstance(connection, ClusterConnection)
    client: RedisCluster = connection._client
    assert [(node.host, node.port) for node in client.nodes_manager.startup_nodes.values()] == [
        ("one", 7001), ("two", 6379),
    ]  # fmt: skip
    assert client.connection_kwargs["password"] == "pw"
    assert client.connection_kwargs["socket_timeout"] == 0.7


def test_a_url_is_taken_apart_without_losing_anything() -> None:
    assert parse_url("rediss+cluster://u:p@a:1,b:2?ssl_check_hostname=false") == RedisUrl(
        "cluster", (("a", 1), ("b", 2)), "", "u", "p", True, {"ssl_check_hostname": "false"}
    )


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://localhost", "'http' is not a scheme"),
        ("localhost:6379", "is not a scheme"),
        ("unix+cluster:///x", "is not a scheme"),
        ("redis://one,two", "one server has one host"),
        ("redis://one/zero", "a database is a number"),
        ("redis://one?ssl_ca_certs=x", "'ssl_ca_certs' means nothing"),
        ("rediss://one?socket_timeout=1", "'socket_timeout' means nothing"),
        ("rediss://one?ssl_ca_certs=/nowhere/ca.pem", "the files for TLS cannot be used"),
        ("redis+sentinel://one:1", "names the service"),
        ("redis+cluster://one:1/2", "no numbered databases"),
        ("redis+cluster://one,,two", "no host in ''"),
    ],
)
def test_what_cannot_be_meant_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        connect(url, timeout_s=1.0)
