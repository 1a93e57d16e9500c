"""RPCs about the repository, shared memory, settings and the cache, with a real model manager.

Streams are fed one message.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from engines.repository.definition import Definition
from engines.repository.manager import ControlMode, ModelManager, RepositoryOptions
from server.cache.store import StoreOptions, open_store
from server.lifecycle import Lifecycle, Phase
from server.pb import cache_pb2_grpc, grpc_service_pb2_grpc
from server.pb import grpc_service_pb2 as pb
from server.telemetry.logs import LogOptions, Logs
from server.transport.cache import CacheService
from server.transport.repository import ServedModels
from server.transport.service import InferenceService, ServiceOptions
from server.transport.shared_memory import SystemSharedMemory
from tests.fuzz.rpcs import Aborted, Calls, Context, Faults, one
from tests.fuzz.target import Target
from tests.support import onnx_models
from tests.support.fakes import quiet_telemetry
from tests.support.methods import Method, methods_of

_WORDS: Final = (
    *("m", "r", "", "1", "config", "file:1/model.onnx", "file:../x", "file:/x", "unload_dependents", "/key", "key"),
    *('{"max_batch_size": 2}', "{", "trace_rate", "log_verbose_level", "trace_level", "TIMESTAMPS", "log_file", "OFF"),
)


class _Up:
    """What a fake opener gives; nothing here can answer, so that requests stop at the model."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition

    async def close(self) -> None: ...


class _Stage:
    """A service over a repository of one model, kept for all inputs; each input leaves it as it was."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.faults = Faults("server.transport")
        logging.getLogger("engines.repository").setLevel(logging.CRITICAL)
        self.folder = Path(tempfile.mkdtemp(prefix="kairos-fuzz-"))
        onnx_models.write(self.folder / "models", "m")
        (self.folder / "shm").mkdir()
        (self.folder / "shm" / "key").write_bytes(bytes(256))
        (self.folder / "secret").write_bytes(b"not for callers")
        self.methods: list[Method] = self.loop.run_until_complete(self.set_up())

    async def set_up(self) -> list[Method]:
        async def opener(definition: Definition) -> Any:
            return _Up(definition)

        roots = (self.folder / "models",)
        options = RepositoryOptions(roots=roots, mode=ControlMode.EXPLICIT, startup_models=("m",))
        self.manager: ModelManager[Any] = ModelManager(options, opener)
        await self.manager.start()
        models = ServedModels(self.manager)
        lifecycle = Lifecycle()
        lifecycle.advance(Phase.SERVING)
        self.regions = SystemSharedMemory(self.folder / "shm")
        self.logs = Logs(LogOptions())
        service = InferenceService(models, lifecycle, self.regions, quiet_telemetry(), self.logs, ServiceOptions())
        store = open_store(StoreOptions(), "fuzz")
        return [
            *methods_of(grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server, service),
            *methods_of(cache_pb2_grpc.add_CacheServicer_to_server, CacheService(store, models)),
        ]

    async def play(self, method: Method, request: Any) -> None:
        if method.path.endswith(_NEED_ENGINES) or _writes_a_file(request):
            return
        try:
            given = one(request) if method.handler.request_streaming else request
            answer = method.function(given, Context())
            if method.handler.response_streaming:
                async for reply in answer:
                    method.handler.response_serializer(reply)
            else:
                method.handler.response_serializer(await answer)
        except Aborted:
            pass
        self.regions.unregister_all()

    def close(self) -> None:
        self.loop.run_until_complete(self.manager.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)


_NEED_ENGINES: Final = (
    "/ModelInfer",
    "/ModelStreamInfer",
    "/ModelStatistics",
    "/ModelMetadata",
    "/ModelConfig",
    "/Statistics",
)
"""These reach into what a real opener gives; the codec has a target of its own."""


def _writes_a_file(request: Any) -> bool:
    """Settings that name a log or trace file would write where the fuzzer runs."""
    return any(name in ("log_file", "trace_file") for name in getattr(request, "settings", ()))


_STAGE: Final = _Stage()
_CALLS: Final = Calls(_STAGE.methods, _WORDS)


def run(data: bytes) -> None:
    """One call."""
    call = _CALLS.read(data)
    if call is None:
        return
    _STAGE.loop.run_until_complete(_STAGE.play(*call))
    _STAGE.faults.check(call[0].path)
    assert (_STAGE.folder / "secret").read_bytes() == b"not for callers"
    assert sorted(path.name for path in _STAGE.folder.iterdir()) == ["models", "secret", "shm"]


def seeds() -> list[bytes]:
    """An empty request of each method, and loads that bring their files."""
    load = pb.RepositoryModelLoadRequest(model_name="m")
    load.parameters["config"].string_param = '{"max_batch_size": 2}'
    load.parameters["file:1/model.onnx"].bytes_param = onnx_models.identity().SerializeToString()
    return _CALLS.seeds(
        ("/RepositoryModelLoad", load),
        ("/RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="m")),
        ("/SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="r", key="/key", byte_size=64)),
    )


TARGET: Final = Target(name="control", run=run, mutate=_CALLS.mutate, seeds=seeds, close=_STAGE.close)
