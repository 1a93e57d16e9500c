"""Serves /metrics. The hot path pays nothing for it, and a scrape never keeps the event loop for long.

A source is called on the event loop, where it takes a snapshot; what it returns is turned into text in the scrape's
own thread, which lets go of the interpreter after each family of metrics, so that requests are not held up.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import socketserver
import threading
import time
import wsgiref.simple_server
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

Source: TypeAlias = Callable[[], Iterable[Metric]]
"""Takes a snapshot when called; may do the rest of its work while it is iterated, in another thread."""

SCRAPE_S: Final = 5.0
"""How long a scrape waits for a busy event loop: half of Prometheus's default."""
PAUSE_S: Final = 50e-6
"""Long enough for a waiting thread to get hold of the interpreter, short enough not to be felt by a scrape."""

ACCEPT_PAUSE_S: Final = 0.1
"""How long nobody is accepted after that has failed, for want of a file descriptor: at once it would fail again."""
READ_TIMEOUT_S: Final = 10.0
"""How long a connection may be silent in the middle of its request."""


class _Scraped(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    """A thread for each connection."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((host, port), _Scrape)

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(ACCEPT_PAUSE_S)
            raise


class _Scrape(wsgiref.simple_server.WSGIRequestHandler):
    """One connection; none leaves a line on standard error."""

    timeout = READ_TIMEOUT_S

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  (the base class's name)
        """Say nothing."""


class LoopCollector(Collector):
    """Everything that belongs to the event loop it was made on."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._loop = asyncio.get_running_loop()

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: which series exist depends on the models that are loaded."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """See Collector.collect. Called by scrapes, in threads of their own. Raises TimeoutError."""
        found: concurrent.futures.Future[list[Iterable[Metric]]] = concurrent.futures.Future()
        self._loop.call_soon_threadsafe(self._read, found)
        for metrics in found.result(SCRAPE_S):
            for metric in metrics:
                yield metric
                time.sleep(PAUSE_S)

    def _read(self, found: concurrent.futures.Future[list[Iterable[Metric]]]) -> None:
        if not found.set_running_or_notify_cancel():
            return
        try:
            found.set_result([source() for source in self._sources])
        except Exception as error:  # noqa: BLE001  (it belongs to the scrape that asked)
            found.set_exception(error)


def start_exporter(host: str, port: int, sources: Sequence[Source]) -> tuple[int, Callable[[], None]]:
    """Serve /metrics from a thread; the port it got, and how to stop it. Raises OSError when it is taken."""
    registry = CollectorRegistry()
    registry.register(LoopCollector(sources))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    server = _Scraped(host, port)
    server.set_app(make_wsgi_app(registry))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, stop
