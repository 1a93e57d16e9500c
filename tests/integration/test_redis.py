"""The cache over a real Redis that dies, hangs, fills up, forgets and lies.

Promise under test: no request fails or misses its deadline because of Redis, and every answer is the model's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import redis

from engines.request import Origin
from server.cache.breaker import BreakerOptions, State
from server.cache.cached import CachedInference
from server.cache.connect import connect
from server.cache.lookups import LookupOptions
from server.cache.memory import MemoryOptions, MemoryStore
from server.cache.redis import RedisOptions, RedisStatistics, RedisStore
from server.cache.store import CacheOptions, Store
from server.cache.writes import WriteOptions
from tests.server.cache.support import SPEC, ControlledInference, data_of, request
from tests.support.certificates import Authority
from tests.support.redis_server import Proxy, RedisServer, binary, free_port, redis_server
from tests.support.servers import wait_until

pytestmark = pytest.mark.integration

DEADLINE_S = 2.0
BREAKER = BreakerOptions(min_pause_s=0.05, max_pause_s=0.2)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as started:
        yield started


class Replica:
    """One server's cache, and traffic for it."""

    def __init__(self, url: str, *, memory: bool = False, budget_s: float = 0.05, secret: bytes = b"secret") -> None:
        # A generous budget: these tests are about faults, and the machine may be busy with other tests.
        options = RedisOptions(
            url=url, timeout_s=0.5, lookups=LookupOptions(budget_s=budget_s, breaker=BREAKER),
            writes=WriteOptions(gather_s=0.001, breaker=BREAKER),
        )  # fmt: skip
        self.redis = RedisStore(connect(url, timeout_s=options.timeout_s), options, secret)
        self.store = Store(MemoryStore(MemoryOptions(size_bytes=1 << 20)) if memory else None, self.redis, secret)
        self.inner = ControlledInference(at_once=True)
        self.cached = CachedInference(self.inner, SPEC, self.store, CacheOptions())
        self.hits = 0
        self._rand = random.Random(5)

    async def ask(self, data: bytes) -> Origin:
        """One request with a deadline, and the proof that it was answered rightly and in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DEADLINE_S
        async with asyncio.timeout_at(deadline):
            response = await self.cached.infer(request(data, deadline=deadline))
        assert data_of(response) == data + data
        self.hits += response.origin is Origin.CACHE
        return response.origin

    async def traffic(self, rounds: int = 40) -> None:
        """Requests in threes for inputs that repeat."""
        for _ in range(rounds):
            await asyncio.gather(*(self.ask(self._rand.randbytes(1) + b"input") for _ in range(3)))
            await self.redis.wait_written()

    async def traffic_until(self, condition: Callable[[RedisStatistics], bool]) -> None:
        """Requests until Redis is seen to be as it should be; pytest's timeout bounds it."""
        while not condition(self.redis.statistics()):
            await self.ask(self._rand.randbytes(1) + b"input")
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def replica(url: str, **options: object) -> AsyncIterator[Replica]:
    made = Replica(url, **options)  # type: ignore[arg-type]
    made.store.start()
    try:
        yield made
    finally:
        await made.store.close()


def closed(statistics: RedisStatistics) -> bool:
    return statistics.lookups.breaker is State.CLOSED and statistics.writes.breaker is State.CLOSED


def not_asked(statistics: RedisStatistics) -> bool:
    return statistics.lookups.breaker is not State.CLOSED


async def hits_again(made: Replica) -> None:
    """Redis serves as if nothing had been."""
    await made.traffic_until(closed)
    for number in itertools.count():
        question = b"again %d" % number
        await made.ask(question)
        await made.redis.wait_written()
        if await made.ask(question) is Origin.CACHE:
            return


def test_two_replicas_share_answers_and_one_without_the_secret_does_not(server: RedisServer) -> None:
    async def main() -> None:
        async with replica(server.url) as one, replica(server.url) as other, replica(server.url, secret=b"x") as thief:
            assert await one.ask(b"question") is Origin.ENGINE
            await one.redis.wait_written()
            assert await other.ask(b"question") is Origin.CACHE
            assert await thief.ask(b"question") is Origin.ENGINE
        assert all(server.client.pttl(name) > 0 for name in server.client.keys("*"))

    asyncio.run(main())


def test_killed_in_mid_traffic_and_back_with_nothing(server: RedisServer) -> None:
    async def main() -> None:
        async with replica(server.url) as made:
            await made.traffic()
            assert made.hits > 0
            traffic = asyncio.create_task(made.traffic(200))
            await asyncio.to_thread(server.kill)
            await traffic
            await made.traffic_until(not_asked)
            await asyncio.to_thread(server.start)
            assert server.client.dbsize() == 0
            await hits_again(made)

    asyncio.run(main())


def test_there_was_never_a_redis() -> None:
    async def main() -> None:
        async with replica(f"redis://127.0.0.1:{free_port()}") as made:
            await made.traffic()
            await made.traffic_until(not_asked)
            assert made.hits == 0

    asyncio.run(main())


def test_hanging_in_mid_traffic(server: RedisServer) -> None:
    async def main() -> None:
        async with replica(server.url) as made:
            await made.traffic()
            server.kill(signal.SIGSTOP)
            try:
                await made.traffic_until(not_asked)
                await made.traffic(5)
            finally:
                server.kill(signal.SIGCONT)
            await hits_again(made)
            assert made.redis.statistics().lookups.late > 0

    asyncio.run(main())


def test_slower_than_the_budget(server: RedisServer) -> None:
    async def main() -> None:
        async with Proxy(server.port) as proxy, replica(proxy.url) as made:
            await made.traffic()
            proxy.delay_s = 0.2
            await made.traffic_until(not_asked)
            await made.traffic(5)
            proxy.delay_s = 0.0
            await hits_again(made)

    asyncio.run(main())


def test_connections_reset_in_mid_traffic(server: RedisServer) -> None:
    async def main() -> None:
        async with Proxy(server.port) as proxy, replica(proxy.url) as made:
            for _ in range(20):
                traffic = asyncio.create_task(made.traffic(5))
                await asyncio.sleep(0)
                proxy.reset_all()
                await traffic
            await hits_again(made)

    asyncio.run(main())


def test_replies_are_altered_on_the_way(server: RedisServer) -> None:
    async def main() -> None:
        async with Proxy(server.port) as proxy, replica(proxy.url) as made:
            await made.traffic()
            proxy.flips_bytes = True
            await made.traffic(60)
            proxy.flips_bytes = False
            proxy.reset_all()
            await hits_again(made)

    asyncio.run(main())


def test_values_are_overwritten_by_others(server: RedisServer) -> None:
    async def main() -> None:
        async with replica(server.url) as made:
            questions = [b"question %d" % number for number in range(8)]
            for question in questions:
                await made.ask(question)
            await made.redis.wait_written()
            names = server.client.keys("kairos:*")
            values = [server.client.get(name) for name in names]
            assert len(names) == len(questions)
            server.client.mset(dict(zip(names, values[1:] + values[:1], strict=True)))  # each under another's name
            assert {await made.ask(question) for question in questions} == {Origin.ENGINE}
            await made.redis.wait_written()
            for name in names:
                value = bytearray(server.client.get(name))
                value[random.Random(len(value)).randrange(len(value))] ^= 1
                server.client.set(name, bytes(value))
            assert {await made.ask(question) for question in questions} == {Origin.ENGINE}
            await made.redis.wait_written()
            for name in names:
                server.client.delete(name)
                server.client.rpush(name, "not even a string")
            assert {await made.ask(question) for question in questions} == {Origin.ENGINE}
            await made.redis.wait_written()
            assert {await made.ask(question) for question in questions} == {Origin.CACHE}
            assert made.redis.statistics().corrupted == 2 * len(questions)

    asyncio.run(main())


def test_full_and_not_evicting(tmp_path: Path) -> None:
    async def main(server: RedisServer) -> None:
        async with replica(server.url) as made:
            assert await made.ask(b"early") is Origin.ENGINE
            await made.redis.wait_written()
            server.client.config_set("maxmemory", "1mb")
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                fill(server.client)
            await made.traffic_until(lambda statistics: statistics.writes.breaker is not State.CLOSED)
            statistics = made.redis.statistics()
            assert statistics.writes.failed > 0
            assert statistics.lookups.breaker is State.CLOSED
            assert await made.ask(b"early") is Origin.CACHE  # it can still be read
            await made.traffic(5)
            assert made.redis.statistics().writes.dropped > 0
            server.client.config_set("maxmemory", "0")
            await hits_again(made)

    with redis_server(tmp_path, maxmemory_policy="noeviction") as server:
        asyncio.run(main(server))


def test_one_lease_among_replicas(server: RedisServer) -> None:
    async def main() -> None:
        async with replica(server.url) as one, replica(server.url) as other:
            for made in (one, other):
                made.cached = CachedInference(made.inner, SPEC, made.store, CacheOptions(lease_s=1.0))
                made.inner.at_once = False
            calls = [asyncio.create_task(made.ask(b"question")) for made in (one, other)]
            await until(lambda: one.inner.waiting or other.inner.waiting)
            await until(lambda: any(made.redis.statistics().leases_awaited for made in (one, other)))
            (one.inner if one.inner.waiting else other.inner).finish()
            assert sorted([origin.value for origin in await asyncio.gather(*calls)]) == ["cache", "engine"]
            assert len(one.inner.asked) + len(other.inner.asked) == 1

    asyncio.run(main())


def test_flushing_by_model(server: RedisServer) -> None:
    async def main() -> None:
        async with replica(server.url) as made:
            server.client.set("someone:elses", "1")
            for number in range(1200):
                await made.ask(b"%d" % number)
            await made.redis.wait_written()
            assert (await made.store.flush("double")).redis == 1200
            assert server.client.keys() == [b"someone:elses"]

    asyncio.run(main())


def test_with_tls_and_an_acl_user_and_over_a_unix_socket(tmp_path: Path) -> None:
    authority = Authority()
    issued = authority.server_options()
    certificate, key, socket = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "redis.sock"
    certificate.write_bytes(issued.certificate_chain + authority.certificate)
    key.write_bytes(issued.private_key)
    tls_port = free_port()
    options: dict[str, object] = {
        "tls_port": tls_port, "tls_cert_file": certificate, "tls_key_file": key, "tls_ca_cert_file": certificate,
        "tls_auth_clients": "no", "unixsocket": socket,
    }  # fmt: skip

    async def share(first: str, second: str) -> None:
        async with replica(first) as one, replica(second) as other:
            await one.ask(b"question")
            await one.redis.wait_written()
            assert await other.ask(b"question") is Origin.CACHE

    with redis_server(tmp_path, **options) as server:
        server.client.acl_setuser(
            "kairos", enabled=True, passwords=["+p@ss"], keys=["kairos:*"],
            commands=["+mget", "+set", "+unlink", "+scan", "+ping", "+select", "+role"],
        )  # fmt: skip
        asyncio.run(
            share(
                f"rediss://kairos:p%40ss@127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}",
                f"unix://kairos:p%40ss@{socket}",
            )
        )


def test_sentinel_fails_over(tmp_path: Path) -> None:
    async def main(url: str, primary: RedisServer, standby: RedisServer) -> None:
        async with replica(url) as made:
            await made.traffic()
            assert made.hits > 0
            traffic = asyncio.create_task(made.traffic(100))
            await asyncio.to_thread(primary.kill)
            await traffic
            promotion = asyncio.to_thread(wait_until, lambda: role(standby) == b"master", "a promotion")
            promoted = asyncio.create_task(promotion)
            while not promoted.done():
                await made.traffic(1)
                await asyncio.sleep(0.01)
            await promoted
            await hits_again(made)
            assert standby.client.dbsize() > 0

    sentinel_port = free_port()
    with redis_server(tmp_path) as primary, redis_server(tmp_path, replicaof=f"127.0.0.1 {primary.port}") as standby:
        configuration = tmp_path / "sentinel.conf"
        configuration.write_text(
            f"port {sentinel_port}\nbind 127.0.0.1\ndir {tmp_path}\n"
            f"sentinel monitor mymaster 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds mymaster 300\nsentinel failover-timeout mymaster 1500\n"
        )
        wait_until(lambda: online(primary), "a standby")
        sentinel = subprocess.Popen(
            [binary(), str(configuration), "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            watcher = redis.Redis(port=sentinel_port)
            wait_until(lambda: knows_standby(watcher), "a sentinel that knows the standby")
            asyncio.run(main(f"redis+sentinel://127.0.0.1:{sentinel_port}/mymaster", primary, standby))
        finally:
            sentinel.kill()
            sentinel.wait()


def test_a_cluster_of_three_loses_one(tmp_path: Path) -> None:
    async def main(url: str, servers: list[RedisServer]) -> None:
        async with replica(url) as made:
            await made.traffic(60)
            assert made.hits > 0
            assert all(server.client.dbsize() > 0 for server in servers)
            flushed = await made.store.flush("double")
            assert flushed.redis > 0
            assert not flushed.error
            assert sum(server.client.dbsize() for server in servers) == 0
            traffic = asyncio.create_task(made.traffic(60))
            await asyncio.to_thread(servers[0].kill)
            await traffic

    options = {"cluster_enabled": "yes", "cluster_node_timeout": 2000}
    with contextlib.ExitStack() as stack:
        servers = []
        for number in range(3):
            folder = tmp_path / str(number)
            folder.mkdir()
            servers.append(stack.enter_context(redis_server(folder, cluster_port=free_port(), **options)))
        cli = binary("redis-cli")
        subprocess.run(
            [cli, "--cluster", "create", *(f"127.0.0.1:{server.port}" for server in servers), "--cluster-yes"],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        wait_until(lambda: all(healthy(server) for server in servers), "a cluster")
        asyncio.run(main(f"redis+cluster://127.0.0.1:{servers[1].port},127.0.0.1:{servers[2].port}", servers))


def fill(client: redis.Redis) -> None:
    for number in itertools.count():
        client.set(f"foreign:{number}", b"x" * 50_000)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  (what is waited for has no event; pytest's timeout bounds it)
        await asyncio.sleep(0.001)


def role(server: RedisServer) -> bytes:
    return server.client.role()[0]  # type: ignore[no-any-return]


def online(primary: RedisServer) -> bool:
    return primary.client.info("replication").get("slave0", {}).get("state") == "online"


def healthy(server: RedisServer) -> bool:
    return server.client.cluster("info")["cluster_state"] == "ok"


def knows_standby(watcher: redis.Redis) -> bool:
    with contextlib.suppress(redis.exceptions.ConnectionError):
        return bool(watcher.sentinel_slaves("mymaster"))
    return False
