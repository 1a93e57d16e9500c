"""Restarts two replicas behind HAProxy, one after the other, under load: `python loadtest/rolling.py --rounds 5`.

HAProxy asks /metrics whether a replica serves, and does by itself only what is always safe: a connection that cannot be
made goes to the other replica. Clients try nothing again except what gRPC does transparently, which is a request that
the server said it never looked at. Each request must be answered.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import signal
import socket
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support import ROOT, machine, write_matmul_model
from traffic import CONFIG, MODEL, WIDTH, Tally, call_until, report

PROXY: Final = """
global
  maxconn 2000
  tune.bufsize 262144
defaults
  mode http
  timeout connect 1s
  timeout client 60s
  timeout server 60s
  timeout check 2s
  retries 3
  retry-on conn-failure
  option redispatch 1
frontend grpc
  bind 127.0.0.1:{port} proto h2
  default_backend replicas
frontend stats
  bind 127.0.0.1:{stats}
  stats enable
  stats uri /
backend replicas
  balance roundrobin
  option httpchk GET /metrics
  http-check expect string "kairos_serving 1.0"
  default-server check inter 100ms fall 1 rise 1
"""
PATIENCE_S: Final = 20.0


def free_port() -> int:
    """A port that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class Replica:
    """A server that is started again on the ports it had."""

    name: str
    port: int
    metrics_port: int
    flags: tuple[str, ...]
    process: asyncio.subprocess.Process | None = None
    reader: asyncio.Future[bytes] | None = None

    async def start(self) -> None:
        """Until it serves."""
        command = ["-m", "server", "serve", *self.flags, "--log-format", "text"]
        command += ["--grpc-port", str(self.port), "--metrics-port", str(self.metrics_port)]
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stderr=asyncio.subprocess.PIPE, cwd=ROOT
        )
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while b"kairos is ready" not in (line := await self.process.stderr.readline()):
                if not line:
                    raise RuntimeError("a replica did not start")
        self.reader = asyncio.ensure_future(self.process.stderr.read())

    async def stop(self) -> int:
        """Ask it to drain; its exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            status = await self.process.wait()
        assert self.reader is not None
        await self.reader
        return status


def seen_up(stats_port: int) -> int:
    """How many replicas HAProxy sends requests to."""
    with urllib.request.urlopen(f"http://127.0.0.1:{stats_port}/;csv", timeout=5) as page:
        lines = page.read().decode().splitlines()
    return sum(1 for line in lines if re.match(r"replicas,r\d,", line) and ",UP," in line)


async def until_up(stats_port: int, count: int) -> None:
    """Wait until HAProxy has noticed."""
    async with asyncio.timeout(PATIENCE_S):
        while await asyncio.to_thread(seen_up, stats_port) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def restart_all(replicas: list[Replica], stats_port: int, rounds: int) -> list[int]:
    """Restart each replica in each round; the exit statuses."""
    statuses = []
    for _ in range(rounds):
        for replica in replicas:
            statuses.append(await replica.stop())
            await replica.start()
            await until_up(stats_port, len(replicas))
    return statuses


async def measure(folder: Path, haproxy: str, transport: str, rounds: int, callers: int) -> tuple[Tally, list[int]]:
    """The whole run."""
    flags = ("--model-repository", str(folder), "--transport", transport, "--exit-timeout-secs", "20")
    flags += ("--drain-delay-secs", "0.5")  # until HAProxy has noticed
    replicas = [Replica(f"r{number}", free_port(), free_port(), flags) for number in range(2)]
    port, stats_port = free_port(), free_port()
    config = folder.parent / "haproxy.cfg"
    servers = "".join(
        f"  server {r.name} 127.0.0.1:{r.port} proto h2 check-proto h1 port {r.metrics_port}\n" for r in replicas
    )
    config.write_text(PROXY.format(port=port, stats=stats_port) + servers)
    await asyncio.gather(*(replica.start() for replica in replicas))
    proxy = await asyncio.create_subprocess_exec(
        haproxy, "-db", "-f", str(config), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    tally, stop = Tally(), asyncio.Event()
    try:
        await asyncio.sleep(0.5)
        await until_up(stats_port, len(replicas))
        url = f"127.0.0.1:{port}"
        load = [asyncio.ensure_future(call_until(url, stop, tally, pause_s=0.005)) for _ in range(callers)]
        statuses = await restart_all(replicas, stats_port, rounds)
        stop.set()
        await asyncio.gather(*load)
    finally:
        proxy.terminate()
        await proxy.wait()
        for replica in replicas:
            if replica.process is not None and replica.process.returncode is None:
                replica.process.kill()
                await replica.process.wait()
            if replica.reader is not None:
                await replica.reader
    return tally, statuses


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="restarts of each replica")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--transport", choices=["http2", "grpcio"], default="http2")
    parser.add_argument("--haproxy", default=shutil.which("haproxy") or "haproxy")
    parser.add_argument("--out", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write_matmul_model(models / MODEL, width=WIDTH, layers=2, config=CONFIG)
        tally, statuses = asyncio.run(
            measure(models, arguments.haproxy, arguments.transport, arguments.rounds, arguments.callers)
        )
    report(
        arguments.out,
        machine=machine(), transport=arguments.transport, restarts=len(statuses), exit_statuses=sorted(set(statuses)),
        lost=tally.lost, **tally.as_dict(),
    )  # fmt: skip
    sys.exit(bool(tally.lost or any(statuses)))


if __name__ == "__main__":
    main()
