"""A real S3 API on a loopback port, which remembers who asked for what and can go away and come back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

REGION: Final = "us-east-1"
SECRET: Final = "not-a-word-of-this-in-any-log"


@dataclass
class ObjectServer:
    """Objects outlive `stop`: they are in this process's memory."""

    port: int = 0
    ranges: list[tuple[str, str]] = field(default_factory=list)
    """Path and `Range` header of each request for contents."""
    _server: BaseWSGIServer | None = None

    def start(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        app = DomainDispatcherApplication(create_backend_app)

        def recording(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            if environ["REQUEST_METHOD"] == "GET" and "HTTP_RANGE" in environ:
                self.ranges.append((environ["PATH_INFO"], environ["HTTP_RANGE"]))
            answer: Iterable[bytes] = app(environ, start_response)
            return answer

        self._server = make_server("127.0.0.1", self.port, recording, threaded=True)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "someone-or-other",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
        }

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="x",
            aws_secret_access_key="y",
            region_name=REGION,
        )

    def bucket(self, name: str) -> Bucket:
        client = self.client()
        client.create_bucket(Bucket=name)
        return Bucket(name, client)


@dataclass
class Bucket:
    """Where tests put models."""

    name: str
    client: Any

    @property
    def uri(self) -> str:
        return f"s3://{self.name}/models"

    def put(self, path: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"models/{path}", Body=content)

    def delete(self, path: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=f"models/{path}")

    def upload(self, folder: Path) -> None:
        """A model's folder, under its own name."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{folder.name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
