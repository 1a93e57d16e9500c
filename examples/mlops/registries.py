"""Where the loop publishes its versions: a real MLflow registry, or a folder."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from examples.mlops.mlflow_server import MlflowServer

MODEL = "digits"
ALIASES = ("champion", "challenger")


class Registry(Protocol):
    """What the loop asks of either. A version is a folder with a model, its baseline, its configuration and labels."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def repositories(self) -> Sequence[str]:
        """What `kairos serve` is told."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that `kairos serve` needs."""
        ...

    def register(self, folder: Path) -> str:
        """Make it known, and serve it only if it is the first: its version."""
        ...

    def offer(self, version: str) -> None:
        """Let the server bring it up beside the one that answers."""
        ...

    def crown(self, version: str) -> None:
        """It is the one to serve, and the former goes."""
        ...

    def close(self) -> None: ...


class MlflowRegistry:
    """The server follows the aliases `champion` and `challenger`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._server = MlflowServer(folder)
        with (folder / "publish.log").open("wb") as log:
            self._publisher = subprocess.Popen(
                [self._server.python, Path(__file__).with_name("publish.py"), self._server.url],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=self._server.environment, cwd=folder,
            )  # fmt: skip
        self._log = folder / "publish.log"
        self.name = f"MLflow at {self._server.url}"

    @property
    def repositories(self) -> Sequence[str]:
        return [f"mlflow:models:/{MODEL}@{alias}" for alias in ALIASES]

    @property
    def environment(self) -> Mapping[str, str]:
        return {"MLFLOW_TRACKING_URI": self._server.url}

    def register(self, folder: Path) -> str:
        assert self._publisher.stdin is not None
        assert self._publisher.stdout is not None
        self._publisher.stdin.write(f"{folder}\n")
        self._publisher.stdin.flush()
        version = self._publisher.stdout.readline().strip()
        if not version:
            raise RuntimeError(f"nothing was published:\n{self._log.read_text()[-2000:]}")
        if version == "1":
            for alias in ALIASES:
                self._server.set_alias(MODEL, alias, version)
        return version

    def offer(self, version: str) -> None:
        self._server.set_alias(MODEL, "challenger", version)

    def crown(self, version: str) -> None:
        self._server.set_alias(MODEL, "champion", version)

    def close(self) -> None:
        assert self._publisher.stdin is not None
        assert self._publisher.stdout is not None
        self._publisher.stdin.close()
        self._publisher.terminate()
        self._publisher.wait()
        self._publisher.stdout.close()
        self._server.stop()


class FolderRegistry:
    """A folder that the server polls. Versions wait under a hidden name, and appear by one rename."""

    def __init__(self, folder: Path) -> None:
        self._root = folder
        self._model = folder / MODEL
        self._model.mkdir(parents=True)
        self._versions = 0
        self.name = str(folder)

    @property
    def repositories(self) -> Sequence[str]:
        return [str(self._root)]

    @property
    def environment(self) -> Mapping[str, str]:
        return {}

    def register(self, folder: Path) -> str:
        self._versions += 1
        version = str(self._versions)
        files = [folder / "model.onnx", *folder.glob("baseline.*")]
        self._waiting(version).mkdir()
        for file in files:
            shutil.copy2(file, self._waiting(version) / file.name)
        if self._versions == 1:
            for name in ("config.pbtxt", "labels.txt"):
                shutil.copy2(folder / name, self._model / name)
            self.offer(version)
        return version

    def offer(self, version: str) -> None:
        self._waiting(version).rename(self._model / version)

    def crown(self, version: str) -> None:
        for other in self._model.iterdir():
            if other.name.isdigit() and other.name != version:
                shutil.rmtree(other)

    def close(self) -> None:
        """Nothing runs."""

    def _waiting(self, version: str) -> Path:
        return self._model / f".{version}"
