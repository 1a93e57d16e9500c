"""A real S3 API on a loopback port, which remembers who asked for what and can go away and come back."""

from __future__ import annotations

import enum
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


class Mood(enum.Enum):
    """How the server treats those who ask."""

    GOOD = enum.auto()
    SILENT = enum.auto()
    """It takes the question and never answers."""
    CUTTING = enum.auto()
    """Contents end in their middle, and so does the connection."""


@dataclass
class ObjectServer:
    """Objects outlive `stop`: they are in this process's memory."""

    port: int = 0
    mood: Mood = Mood.GOOD
    troubled: int = 0
    """Questions that were not answered as they should be."""
    ranges: list[tuple[str, str]] = field(default_factory=list)
    """Path and `Range` header of each request for contents."""
    _server: BaseWSGIServer | None = None
    _leaving: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        app = DomainDispatcherApplication(create_backend_app)

        def recording(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            contents = environ["REQUEST_METHOD"] == "GET" and "HTTP_RANGE" in environ
            if contents:
                self.ranges.append((environ["PATH_INFO"], environ["HTTP_RANGE"]))
            if self.mood is Mood.SILENT:
                self.troubled += 1
                self._leaving.wait()
            answer: Iterable[bytes] = app(environ, start_response)
            if contents and self.mood is Mood.CUTTING:
                self.troubled += 1
                whole = b"".join(answer)
                return [whole[: len(whole) // 2]]
            return answer

        self._leaving.clear()
        self._server = make_server("127.0.0.1", self.port, recording, threaded=True)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None:
            self._leaving.set()
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
