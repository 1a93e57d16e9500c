"""A real MLflow server, in an environment of its own: its pins and ours exclude each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.redis_server import free_port
from tests.support.servers import wait_until

HOME: Final = Path(__file__).resolve().parents[2] / ".tools" / "mlflow"
PACKAGES: Final = ("mlflow==3.17.2", "onnx==1.23.2", "onnxruntime==1.32.0")
PUBLISH: Final = Path(__file__).with_name("publish_to_mlflow.py")
PATIENCE_S: Final = 300.0
QUIET: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def python() -> Path:
    """The interpreter of MLflow's environment, which is made when it is missing; that takes a minute or two."""
    ready, interpreter = HOME / ".ready", HOME / "bin" / "python"
    wanted = "\n".join(PACKAGES)
    if ready.exists() and ready.read_text() == wanted:
        return interpreter
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", HOME], check=True, capture_output=True)
        install = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        subprocess.run(install, check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"MLflow cannot be installed: {error.stderr.decode()[-2000:]}")
        pytest.skip("MLflow cannot be installed")
    ready.write_text(wanted)
    return interpreter


class MlflowServer:
    """One server with SQLite and artefacts in `folder`, and two versions of the model `scale` in its registry."""

    def __init__(self, folder: Path) -> None:
        interpreter = python()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / "server.log"
        command = [interpreter, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/registry.sqlite"]
        command += ["--artifacts-destination", str(folder / "artefacts")]
        environment = {**os.environ, **QUIET}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
            )
        try:
            publish = [interpreter, PUBLISH, self.url]  # imports while the server starts
            made = subprocess.run(
                publish, check=False, capture_output=True, env=environment, cwd=folder, timeout=PATIENCE_S
            )
            assert made.returncode == 0, (made.stderr.decode()[-3000:], self._log.read_text()[-3000:])
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, and the workers that it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            wait_until(lambda: self._process.poll() is not None, "an MLflow server that ends")

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
        self.ask("POST", "registered-models/alias", {"name": model, "alias": alias, "version": version})
