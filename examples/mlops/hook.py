"""What a training service has at its door: takes signed webhooks, and each event once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hook:
    """Listens on a free loopback port until it is closed."""

    def __init__(self, secret: str) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        """By id: an event that comes twice is still one."""
        self.arrived = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + body
                digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
                known = hmac.compare_digest(
                    self.headers["webhook-signature"], f"v1,{base64.b64encode(digest).decode()}"
                )
                if known:
                    event = json.loads(body)
                    hook.events[event["id"]] = event
                    hook.arrived.set()
                self.send_response(204 if known else 401)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/retrain"
        self._thread = threading.Thread(target=self._server.serve_forever, name="hook")
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
