"""A real MLflow server on loopback, in an environment of its own: its pins and those of Kairos exclude each other."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Final

HOME: Final = Path(__file__).resolve().parents[2] / ".tools" / "mlflow"
PACKAGES: Final = ("mlflow==3.17.2", "onnx==1.23.2", "onnxruntime==1.32.0")
QUIET: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
END_S: Final = 30.0


class NoMlflow(RuntimeError):
    """It cannot be installed; the text says why."""


def environment_ready() -> bool:
    """Whether `python` returns at once."""
    ready = HOME / ".ready"
    return ready.exists() and ready.read_text() == "\n".join(PACKAGES)


def python() -> Path:
    """The interpreter of MLflow's environment, which is made when it is missing; that takes a minute or two.

    Raises NoMlflow.
    """
    interpreter = HOME / "bin" / "python"
    if environment_ready():
        return interpreter
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", HOME], check=True, capture_output=True)
        install = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        subprocess.run(install, check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise NoMlflow(f"MLflow cannot be installed: {error.stderr.decode()[-2000:]}") from error
    (HOME / ".ready").write_text("\n".join(PACKAGES))
    return interpreter


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class MlflowServer:
    """One server with SQLite and artefacts in `folder`. It may not be up yet: those who publish wait for it."""

    def __init__(self, folder: Path) -> None:
        self.python = python()
        self.folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = folder / "server.log"
        self.environment = {**os.environ, **QUIET}
        command = [self.python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", self.url.rsplit(":", 1)[1]]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/registry.sqlite"]
        command += ["--artifacts-destination", str(folder / "artefacts")]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self.environment, cwd=folder, start_new_session=True
            )

    def stop(self) -> None:
        """End it, and the workers that it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(END_S)

    def ask(self, method: str, path: str, body: dict[str, Any]) -> None:
        """One request to the REST API."""
        request = urllib.request.Request(
            f"{self.url}/api/2.0/mlflow/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()

    def set_alias(self, model: str, alias: str, version: str) -> None:
        """Let an alias point to a version."""
        self.ask("POST", "registered-models/alias", {"name": model, "alias": alias, "version": version})
