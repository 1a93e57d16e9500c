"""A real MLflow server with models in its registry."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

from examples.mlops import mlflow_server

PUBLISH: Final = Path(__file__).with_name("publish_to_mlflow.py")
PATIENCE_S: Final = 300.0


def python() -> Path:
    """The interpreter of MLflow's environment, made when it is missing; skips where that cannot be, fails in CI."""
    try:
        return mlflow_server.python()
    except mlflow_server.NoMlflow as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip("MLflow cannot be installed")


class MlflowServer(mlflow_server.MlflowServer):
    """With two versions of the model `scale`, and one of `liar`."""

    def __init__(self, folder: Path) -> None:
        python()
        super().__init__(folder)
        try:
            publish = [self.python, PUBLISH, self.url]  # imports while the server starts
            made = subprocess.run(
                publish, check=False, capture_output=True, env=self.environment, cwd=folder, timeout=PATIENCE_S
            )
            assert made.returncode == 0, (made.stderr.decode()[-3000:], self.log.read_text()[-3000:])
        except BaseException:
            self.stop()
            raise
