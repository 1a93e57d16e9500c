"""A receiver of webhooks on loopback that keeps what it got, and fails when it is told to."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """`answers` are given one after the other, then 204; 0 hangs up without one."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    silent: threading.Event = field(default_factory=threading.Event)
    """While set, requests are taken and not answered."""
    go_on: threading.Event = field(default_factory=threading.Event)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The bodies, as JSON."""
        return [json.loads(body) for _, body in self.requests]

    @property
    def ids(self) -> list[str]:
        """Of the events, in their order, repeats included."""
        return [event["id"] for event in self.events]


@contextlib.contextmanager
def receiver(*answers: int) -> Iterator[Receiver]:
    """For the length of the block."""
    found = Receiver(answers=list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = found.answers.pop(0) if found.answers else 204
            found.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            if found.silent.is_set():
                found.go_on.wait(30)
                return
            if answer:
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                if answer == 302:
                    self.send_header("Location", found.url)
                self.end_headers()

        do_GET = do_POST  # noqa: N815  (what a redirected request would become)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        found.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
