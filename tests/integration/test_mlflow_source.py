"""Models from the registry of a real MLflow server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from engines.errors import LoadFailed
from engines.repository.definition import Definition
from engines.repository.manager import ControlMode, ModelManager, RepositoryOptions
from engines.repository.sources.fetch import Patience
from engines.repository.sources.mlflow import MlflowRegistry, Reference
from engines.repository.sources.opening import SourceOptions, Sources
from server.cli import cli
from tests.support.mlflow_server import MlflowServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()


@pytest.fixture
def tracking(registry: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.url)
    return registry


def sources(tmp_path: Path, *uris: str) -> Sources:
    return Sources(SourceOptions(uris=uris, cache_dir=tmp_path, settle_s=0.0), patience=Patience(attempts=1))


class Session:
    """A version that is up: what ONNX Runtime makes of its files."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self._session = ort.InferenceSession(str(definition.model_file), providers=["CPUExecutionProvider"])

    def of_ones(self) -> float:
        (answer,) = self._session.run(None, {"x": np.ones((1, 1000), np.float32)})
        return float(answer[0, 0])

    async def close(self) -> None:
        pass


def manage(source: Sources) -> ModelManager[Session]:
    async def opened(definition: Definition) -> Session:
        return Session(definition)

    options = RepositoryOptions(roots=source.roots, mode=ControlMode.POLL, poll_interval_s=0.0)
    return ModelManager(options, opened, refresh=source.sync)


def test_an_alias_is_served_and_followed(tracking: MlflowServer, tmp_path: Path) -> None:
    source = sources(tmp_path, "mlflow:models:/scale@champion")

    async def follow() -> None:
        manager = manage(source)
        assert await manager.start() == []
        with manager.borrow("scale") as first:
            assert first.definition.version == 1
            assert first.of_ones() == 2.0
        spec = first.definition.spec
        assert [(tensor.name, tensor.dtype.label, tensor.shape) for tensor in spec.inputs] == [("x", "FP32", (1000,))]
        assert len(first.definition.config.instance_group) == 1, "the config.pbtxt that was logged beside it"
        tracking.set_alias("scale", "champion", "2")
        for _ in range(3):  # two listings agree, then two looks at the copy
            await manager.poll()
        assert manager.versions("scale") == [2]
        with manager.borrow("scale", "2") as second:
            assert second.of_ones() == 3.0
        await manager.close()

    asyncio.run(follow())
    tracking.set_alias("scale", "champion", "1")


def test_two_references_to_a_model_are_two_versions_of_it(tracking: MlflowServer, tmp_path: Path) -> None:
    source = sources(tmp_path, "mlflow:models:/scale@champion", "models:/scale/2")

    async def serve() -> None:
        manager = manage(source)
        assert await manager.start() == []
        assert manager.versions("scale") == [1, 2]
        await manager.close()

    asyncio.run(serve())


def test_a_graph_that_its_signature_denies_is_not_served(tracking: MlflowServer, tmp_path: Path) -> None:
    source = sources(tmp_path, "mlflow:models:/liar/1")

    async def serve() -> str:
        manager = manage(source)
        (failed,) = await manager.start()
        await manager.close()
        return failed.reason

    assert asyncio.run(serve()) == "input 'x': data_type TYPE_FP64 does not fit the model's TYPE_FP32"


def test_the_command_line_lists_a_registry(tracking: MlflowServer) -> None:
    listed = CliRunner().invoke(cli, ["models", "list", "mlflow:models:/scale/2", "--json"])
    assert listed.exit_code == 0, listed.output
    (row,) = json.loads(listed.output)
    assert (row["name"], row["version"]) == ("scale", 2)


def test_what_the_registry_does_not_know_is_said(tracking: MlflowServer, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="alias nobody not found"):
        sources(tmp_path, "mlflow:models:/scale@nobody").sync()


def test_a_download_goes_on_in_the_middle_where_the_server_can(tracking: MlflowServer) -> None:
    source = MlflowRegistry([Reference("scale", version="2")])
    graph = next(file for file in source.list() if file.path.endswith("model.onnx"))
    _, whole = source.read(graph, 0)
    start, rest = source.read(graph, 100)
    assert b"".join(rest) == b"".join(whole)[start:]
