"""Kairos servers for tests: real processes, and servers inside the test's own event loop."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from engines.repository.manager import ControlMode, RepositoryOptions
from server.app import Server, ServerOptions
from server.lifecycle import Phase
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.transport.listen import ListenOptions, TransportKind
from server.transport.service import ServiceOptions
from server.transport.status import StatusCodes

READY: Final = re.compile(r"kairos is ready: gRPC (?P<url>\S+?), metrics port (?P<metrics>\w+)")
PATIENCE_S: Final = 60.0
"""Longest wait for a process to start or end; only ever reached by a failing test."""
FAULTS: Final = ("ERROR", "Traceback", "Exception", "was never awaited")
"""What no log of a healthy server holds."""


@dataclass
class RunningServer:
    """A server process, to be ended by `end`. `log` grows while it runs."""

    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)
    url: str = ""
    metrics_url: str = ""
    signalled: bool = False

    def __post_init__(self) -> None:
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._heard:
                self.log.append(line)
                self._heard.notify_all()
        with self._heard:
            self.log.append("")  # the end
            self._heard.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match in a line of the log, past or to come."""
        with self._heard:
            found = self._heard.wait_for(lambda: self._search(pattern) or self.log[-1:] == [""], PATIENCE_S)
            match = self._search(pattern)
        assert found, f"no {pattern!r} within {PATIENCE_S} s:\n{self.text}"
        assert match, f"the server ended without {pattern!r}:\n{self.text}"
        return match

    def _search(self, pattern: str) -> re.Match[str] | None:
        return next((match for line in self.log if (match := re.search(pattern, line))), None)

    @property
    def text(self) -> str:
        """The whole log."""
        return "".join(self.log)

    def wait_ready(self) -> None:
        """Wait until it serves, and learn its addresses."""
        ready = self.wait_for(READY.pattern)
        self.url = ready["url"]
        self.metrics_url = f"http://127.0.0.1:{ready['metrics']}/metrics"

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self.signalled = True
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status; its log is complete then."""
        status = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return status

    def end(self) -> None:
        """Kill the process if it still runs, and free what belongs to it."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


def start_server(*arguments: str | Path, env: dict[str, str] | None = None) -> RunningServer:
    """Start `kairos serve` on free ports; it may not be ready yet, and is the caller's to end."""
    command = [sys.executable, "-m", "server", "serve", "--grpc-port", "0", "--metrics-port", "0"]
    command += ["--log-format", "text", *map(str, arguments)]
    environment = {**os.environ, "PYTHONWARNINGS": "default", **(env or {})}
    return RunningServer(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))


@contextlib.contextmanager
def running_server(
    repository: Path, *arguments: str | Path, faults: bool = False, env: dict[str, str] | None = None
) -> Iterator[RunningServer]:
    """A ready server process; at the end of the block it must drain, exit with 0 and have logged no fault.

    `faults`: the test provokes errors that belong into the log.
    """
    server = start_server("--model-repository", repository, *arguments, env=env)
    try:
        server.wait_ready()
        yield server
        if not server.signalled:
            server.send(signal.SIGTERM)
        status = server.wait()
        assert status == 0, f"exit status {status}:\n{server.text}"
        found = [] if faults else [fault for fault in FAULTS if fault in server.text]
        assert not found, f"{found} in the log:\n{server.text}"
    finally:
        server.end()


@contextlib.asynccontextmanager
async def serving(
    repository: Path,
    *,
    transport: TransportKind = TransportKind.HTTP2,
    mode: ControlMode = ControlMode.NONE,
    startup_models: tuple[str, ...] = (),
    status_codes: StatusCodes = StatusCodes.KAIROS,
    **options: Any,
) -> AsyncIterator[tuple[Server, str]]:
    """A server in this event loop and its address, drained at the end of the block."""
    options.setdefault("metrics_port", None)
    options.setdefault("exit_timeout_s", 10.0)
    server = Server(
        ServerOptions(
            repository=RepositoryOptions(roots=(repository,), mode=mode, startup_models=startup_models),
            listen=ListenOptions(port=0, transport=transport),
            service=ServiceOptions(version="test", status_codes=status_codes),
            **options,
        )
    )
    addresses = await server.start()
    try:
        yield server, f"{addresses.host}:{addresses.grpc_port}"
    finally:
        if server.lifecycle.phase is not Phase.STOPPED:
            await server.drain()


@contextlib.asynccontextmanager
async def stub_for(url: str) -> AsyncIterator[Any]:
    """An asyncio stub of our own generated code."""
    async with grpc.aio.insecure_channel(url) as channel:
        yield GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


def wait_until(condition: Any, what: str, patience_s: float = PATIENCE_S) -> None:
    """Ask again and again, for what a process offers no way to be told of."""
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {patience_s} s"
        threading.Event().wait(0.01)
