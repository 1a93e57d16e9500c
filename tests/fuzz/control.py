"""All other RPCs: repository, shared memory, settings, cache and what there will be, with a real model manager.

The first byte of an input names the method, the rest is its request. Streams are fed one message.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any, Final, NoReturn

from google.protobuf.message import DecodeError

from engines.repository.definition import Definition
from engines.repository.manager import ControlMode, ModelManager, RepositoryOptions
from server.cache.store import StoreOptions, open_store
from server.lifecycle import Lifecycle, Phase
from server.pb import cache_pb2_grpc, grpc_service_pb2_grpc
from server.telemetry.logs import LogOptions, Logs
from server.transport.cache import CacheService
from server.transport.repository import ServedModels
from server.transport.service import InferenceService, ServiceOptions
from server.transport.shared_memory import SystemSharedMemory
from tests.fuzz.mutate import mutate_bytes, mutate_message
from tests.fuzz.target import Target
from tests.support import onnx_models
from tests.support.fakes import quiet_telemetry
from tests.support.methods import Method, methods_of

_WORDS: Final = (
    *("m", "r", "", "1", "config", "file:1/model.onnx", "file:../x", "file:/x", "unload_dependents", "/key", "key"),
    *('{"max_batch_size": 2}', "{", "trace_rate", "log_verbose_level", "trace_level", "TIMESTAMPS", "log_file", "OFF"),
)
_TURNS: Final = 50


class Aborted(Exception):
    """What `context.abort` raises."""


class Context:
    """A caller without a deadline."""

    def time_remaining(self) -> float | None:
        return None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        assert details.isprintable() or "\\" not in details or details, "a status without a text"
        raise Aborted(details)


class _Up:
    """What a fake opener gives; nothing here can answer, so that requests stop at the model."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition

    async def close(self) -> None: ...


class _Faults(logging.Handler):
    """`a call failed in the server` is what the service says of an exception that nobody foresaw."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[BaseException | str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.found.append(error or record.getMessage())


class _Stage:
    """A service over a repository of one model, kept for all inputs; each input leaves it as it was."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.faults = _Faults()
        logging.getLogger("server.transport").addHandler(self.faults)
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
            given = _one(request) if method.handler.request_streaming else request
            answer = method.function(given, Context())
            if method.handler.response_streaming:
                async for reply in answer:
                    method.handler.response_serializer(reply)
            else:
                method.handler.response_serializer(await answer)
        except Aborted:
            pass
        self.regions.unregister_all()


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


async def _one(request: Any) -> AsyncIterator[Any]:
    yield request


_STAGE: Final = _Stage()


def run(data: bytes) -> None:
    """One call."""
    if not data:
        return
    method = _STAGE.methods[data[0] % len(_STAGE.methods)]
    try:
        request = method.handler.request_deserializer(data[1:])
    except DecodeError:
        return
    _STAGE.loop.run_until_complete(_STAGE.play(method, request))
    found, _STAGE.faults.found = _STAGE.faults.found, []
    if found:
        raise AssertionError(f"{method.path}: {found}") from (found[0] if isinstance(found[0], Exception) else None)
    assert (_STAGE.folder / "secret").read_bytes() == b"not for callers"
    assert sorted(path.name for path in _STAGE.folder.iterdir()) == ["models", "secret", "shm"]


def mutate(data: bytes, random: Random) -> bytes:
    """Another method now and then; else another request of the same."""
    if not data or random.random() < 0.1:
        return bytes([random.randrange(len(_STAGE.methods))]) + mutate_bytes(data[1:], random)
    method = _STAGE.methods[data[0] % len(_STAGE.methods)]
    return data[:1] + _mutators[method.path](data[1:], random)


_mutators: Final[dict[str, Callable[[bytes, Random], bytes]]] = {
    method.path: mutate_message(method.request_type, _WORDS) for method in _STAGE.methods
}


def seeds() -> list[bytes]:
    """An empty request of each method, and loads that bring their files."""
    found = [bytes([index]) for index in range(len(_STAGE.methods))]
    for index, method in enumerate(_STAGE.methods):
        request = method.request_type()
        if method.path.endswith("/RepositoryModelLoad"):
            request.model_name = "m"
            request.parameters["config"].string_param = '{"max_batch_size": 2}'
            request.parameters["file:1/model.onnx"].bytes_param = onnx_models.identity().SerializeToString()
        elif method.path.endswith("/SystemSharedMemoryRegister"):
            request.name, request.key, request.byte_size = "r", "/key", 64
        elif method.path.endswith("/RepositoryModelUnload"):
            request.model_name = "m"
        found.append(bytes([index]) + request.SerializeToString())
    return found


TARGET: Final = Target(name="control", run=run, mutate=mutate, seeds=seeds)
