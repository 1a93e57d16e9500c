"""The 20 RPCs of the KServe v2 service with Triton's extensions, for any gRPC server with asyncio's surface."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn, Protocol, TypeAlias, TypeVar

from google.protobuf import json_format
from grpc import StatusCode

from engines.errors import Draining, EngineFailed, InferError, InvalidRequest, Overloaded, Unsupported
from engines.request import InferRequest, Origin
from server.access.caller import TENANT
from server.cache.key import ORIGIN
from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceServicer
from server.rollout.context import SPLIT
from server.telemetry.context import METHOD
from server.telemetry.meter import UnroutedMeter
from server.transport.codec import OutputPlan, read_inputs, read_outputs, read_parameters, write_response
from server.transport.inflight import RETRY_AFTER_S, TEXT, Inflight
from server.transport.model import ServedModel, priority_of
from server.transport.shared_memory import SystemSharedMemory
from server.transport.status import Metadata, StatusCodes, text_of, trailers_of

log = logging.getLogger(__name__)

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

EXTENSIONS: Final = (
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
"""Only what works is listed: load generators believe it."""

STREAM_WINDOW: Final = 128
"""Most requests of one stream in work at a time; the next is read when the oldest has been answered."""

FINAL_WANTED: Final = "triton_enable_empty_final_response"
GOING_AWAY: Final = "the server is shutting down"
NO_CUDA: Final = "CUDA shared memory needs a server with a GPU"


class Call(Protocol):
    """What the service uses of a gRPC call."""

    def time_remaining(self) -> float | None: ...
    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None: ...
    async def abort(self, code: StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn: ...


class VersionStatus(Protocol):
    """One line of the repository's index."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...


class Models(Protocol):
    """The repository as the service uses it. All raise `InferError`s."""

    def borrow(self, name: str, version: str = "") -> contextlib.AbstractContextManager[ServedModel]: ...
    def ready(self, name: str, version: str = "") -> bool: ...
    def versions(self, name: str) -> Sequence[str]: ...
    def served(self) -> Sequence[ServedModel]: ...
    async def index(self, *, ready_only: bool = False) -> Sequence[VersionStatus]: ...
    async def load(
        self, name: str, config_json: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> None: ...
    async def unload(self, name: str, *, dependents: bool = False) -> None: ...


class Settings(Protocol):
    """Settings that RPCs read and change at run time. Raises InvalidRequest for what it does not know."""

    def update(self, changes: Mapping[str, Any], model: str = "") -> None: ...
    def current(self, model: str = "") -> Mapping[str, Any]: ...


class Tracer(Settings, Protocol):
    """Traces requests, with settings of its own."""

    @property
    def sampling(self) -> bool: ...
    def refused(self, request: InferRequest, error: InferError, now: float) -> None: ...


class Telemetry(Protocol):
    """What the service tells, and whose settings RPCs change."""

    @property
    def unrouted(self) -> UnroutedMeter: ...
    @property
    def tracer(self) -> Tracer: ...


class Lifecycle(Protocol):
    """Whether the server wants traffic."""

    @property
    def live(self) -> bool: ...
    @property
    def ready(self) -> bool: ...
    @property
    def draining(self) -> bool: ...
    async def wait_draining(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """What the server says of itself."""

    name: str = "kairos"
    """`ServerMetadata.name`; some clients insist on "triton"."""
    version: str = "0"
    status_codes: StatusCodes = StatusCodes.KAIROS
    tenant_key: str = ""
    """Metadata key that says which tenant a call is for; in overload, tenants get equal shares. Empty: all are one."""
    callers_are_tenants: bool = False
    """Whether authenticated callers are tenants, whatever their metadata says."""


class Answer(NamedTuple):
    """What ModelInfer answers, and how it came about."""

    message: pb.ModelInferResponse
    model: ServedModel
    asked: InferRequest
    origin: Origin


_Answers: TypeAlias = "asyncio.Queue[tuple[pb.ModelInferRequest, asyncio.Task[pb.ModelInferResponse], int] | None]"
"""Of one stream, in the order of its requests, with the bytes that they count for; None at the end."""


class Aborting(Protocol):
    """A service that knows the status of each error."""

    async def abort(self, context: Call, error: Exception, request_id: str = "") -> NoReturn: ...


def answering(handler: Callable[[Any, _Request, Call], Awaitable[_Response]]) -> Any:
    """Let a handler raise, and its caller get the status of what was raised."""

    @functools.wraps(handler)
    async def call(service: Aborting, request: _Request, context: Call) -> _Response:
        try:
            return await handler(service, request, context)
        except Exception as error:  # noqa: BLE001  (as in ModelInfer)
            await service.abort(context, error)

    return call


class InferenceService(GRPCInferenceServiceServicer):
    """Translates between messages and the stack of Inference layers; holds no state of its own."""

    def __init__(
        self,
        models: Models,
        lifecycle: Lifecycle,
        regions: SystemSharedMemory,
        telemetry: Telemetry,
        logs: Settings,
        options: ServiceOptions,
    ) -> None:
        self._models = models
        self._lifecycle = lifecycle
        self._regions = regions
        self._unrouted = telemetry.unrouted
        self._traces = telemetry.tracer
        self._logs = logs
        self._options = options
        self._tenanted = bool(options.tenant_key) or options.callers_are_tenants
        self.inflight: Inflight | None = None
        """Counts the requests of streams; those of unary calls the transport counts itself. None: nothing counts."""

    # ---- inference

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Call) -> pb.ModelInferResponse:
        """Answer one request."""
        try:
            return await self._infer(request, context)
        except Exception as error:  # noqa: BLE001  (whatever it is, the caller gets a status and the log the rest)
            await self.abort(context, error, request.id)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Call
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer the requests of a stream in their order, several of them in work at a time.

        An error is an answer like any other, unless the caller's `triton_grpc_error: true` asks for the status.
        """
        METHOD.set("ModelStreamInfer")
        as_status = ("triton_grpc_error", "true") in (tuple(pair) for pair in context.invocation_metadata() or ())
        answers: _Answers = asyncio.Queue(STREAM_WINDOW)
        reader = asyncio.create_task(self._read_stream(request_iterator, context, answers))
        ending = asyncio.create_task(self._end_stream(reader, answers))
        try:
            while (item := await answers.get()) is not None:
                request, task, held = item
                try:
                    yield await self._stream_answer(request, task, context, as_status)
                finally:
                    self._release(held)
            if reader.cancelled():
                await self.abort(context, Draining(GOING_AWAY))
            await reader
        finally:
            ending.cancel()
            reader.cancel()
            while not answers.empty():
                if (left := answers.get_nowait()) is not None:
                    left[1].cancel()
                    self._release(left[2])

    async def _stream_answer(
        self, request: pb.ModelInferRequest, task: asyncio.Task[pb.ModelInferResponse], context: Call, as_status: bool
    ) -> pb.ModelStreamInferResponse:
        try:
            response = await task
        except Exception as error:  # noqa: BLE001  (as in ModelInfer)
            if as_status:
                await self.abort(context, error, request.id)
            failure = pb.ModelStreamInferResponse(error_message=text_of(_known(error), request.id))
            failure.infer_response.id = request.id
            return failure
        if FINAL_WANTED in request.parameters and request.parameters[FINAL_WANTED].bool_param:
            response.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=response)

    def _take(self, request: pb.ModelInferRequest) -> int | None:
        """Count a stream's request; the bytes to release once its answer is on its way, None where it is too much."""
        if self.inflight is None:
            return 0
        size = request.ByteSize()
        return size if self.inflight.take(size) else None

    def _release(self, held: int) -> None:
        if self.inflight is not None:
            self.inflight.release(held)

    async def _read_stream(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Call, answers: _Answers
    ) -> None:
        try:
            async for request in requests:
                held = self._take(request)
                task = asyncio.create_task(_too_much() if held is None else self._infer(request, context))
                try:
                    await answers.put((request, task, held or 0))
                except asyncio.CancelledError:
                    task.cancel()
                    self._release(held or 0)
                    raise
        except Exception:
            await answers.put(None)
            raise
        await answers.put(None)

    async def _end_stream(self, reader: asyncio.Task[None], answers: _Answers) -> None:
        """Once the server drains, take nothing more from a stream that its client would hold open."""
        await self._lifecycle.wait_draining()
        reader.cancel()
        await asyncio.wait((reader,))
        await answers.put(None)

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._lifecycle.draining

    async def _infer(self, request: pb.ModelInferRequest, context: Call) -> pb.ModelInferResponse:
        return (await self.answer(request, context)).message

    async def answer(self, request: pb.ModelInferRequest, context: Call) -> Answer:
        """Answer one request, or raise what stands in the way."""
        # A server that drains still answers what its transport took: who sent it could not know yet.
        try:
            borrowed = self._models.borrow(request.model_name, request.model_version)
        except InferError as error:
            self._unrouted.refused(error)
            self._trace_refused(request, context, error)
            raise
        with borrowed as model:
            try:
                asked, plans, batched = self._read(request, context, model)
            except InferError as error:
                model.meter.invalid()
                self._trace_refused(request, context, error)
                raise
            if model.split_key:
                SPLIT.set(_metadata(context, model.split_key))
            response = await model.inference.infer(asked)
            message = write_response(response, plans, model.outputs, batched=batched)
            if asked.parameters and asked.parameters.get(ORIGIN):
                message.parameters[ORIGIN].string_param = response.origin.value
            return Answer(message, model, asked, response.origin)

    def _read(
        self, request: pb.ModelInferRequest, context: Call, model: ServedModel
    ) -> tuple[InferRequest, Sequence[OutputPlan], bool]:
        parameters = read_parameters(request.parameters)
        deadline = model.deadline(asyncio.get_running_loop().time(), context.time_remaining(), parameters)
        inputs, rows = model.checker.inputs(read_inputs(request, self._regions))
        names, plans = read_outputs(request, self._regions)
        spec = model.spec
        asked = InferRequest(
            model=spec.name,
            version=spec.version,
            inputs=inputs,
            wanted=model.checker.wanted(names),
            rows=rows,
            deadline=deadline,
            priority=priority_of(parameters) if parameters else 0,
            tenant=_tenant(context, self._options.tenant_key) if self._tenanted else "",
            id=request.id,
            trace=_trace(context),
            parameters=parameters,
        )
        return asked, plans, spec.batched

    def _trace_refused(self, request: pb.ModelInferRequest, context: Call, error: InferError) -> None:
        """Those who never reach a model's stack are traced all the same."""
        if self._traces.sampling:
            version = request.model_version
            self._traces.refused(
                InferRequest(
                    model=request.model_name,
                    version=int(version) if version.isdecimal() else 0,
                    inputs=(),
                    wanted=(),
                    rows=0,
                    id=request.id,
                    trace=_trace(context),
                ),
                error,
                asyncio.get_running_loop().time(),
            )

    # ---- health and metadata

    @answering
    async def ServerLive(self, request: pb.ServerLiveRequest, context: Call) -> pb.ServerLiveResponse:
        """Whether the process answers."""
        return pb.ServerLiveResponse(live=self._lifecycle.live)

    @answering
    async def ServerReady(self, request: pb.ServerReadyRequest, context: Call) -> pb.ServerReadyResponse:
        """Whether the server wants traffic."""
        return pb.ServerReadyResponse(ready=self._lifecycle.ready)

    @answering
    async def ModelReady(self, request: pb.ModelReadyRequest, context: Call) -> pb.ModelReadyResponse:
        """Whether a version, or any version of a model, can answer; an unknown model is not ready."""
        return pb.ModelReadyResponse(ready=self._models.ready(request.name, request.version))

    @answering
    async def ServerMetadata(
        self,
        request: pb.ServerMetadataRequest,
        context: Call,
    ) -> pb.ServerMetadataResponse:
        """Name, version and extensions."""
        return pb.ServerMetadataResponse(name=self._options.name, version=self._options.version, extensions=EXTENSIONS)

    @answering
    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Call) -> pb.ModelMetadataResponse:
        """Inputs and outputs; shapes include the batch dimension."""
        with self._models.borrow(request.name, request.version) as model:
            spec = model.spec
            versions = [str(spec.version)] if request.version else self._models.versions(request.name)
            response = pb.ModelMetadataResponse(name=spec.name, versions=versions, platform=spec.platform)
            for described, tensors in ((response.inputs, spec.inputs), (response.outputs, spec.outputs)):
                for tensor in tensors:
                    shape = (-1, *tensor.shape) if spec.batched else tensor.shape
                    described.add(name=tensor.name, datatype=tensor.dtype.label, shape=shape)
            response.properties["digest"] = spec.digest
            return response

    @answering
    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Call) -> pb.ModelConfigResponse:
        """The configuration in force, with everything that was completed from the model's own file."""
        with self._models.borrow(request.name, request.version) as model:
            return pb.ModelConfigResponse(config=model.config)

    @answering
    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Call) -> pb.ModelStatisticsResponse:
        """Counters of one version, of a model's loaded versions, or of all."""
        if request.name:
            with self._models.borrow(request.name, request.version):
                pass
        return pb.ModelStatisticsResponse(
            model_stats=[
                model.meter.statistics()
                for model in self._models.served()
                if request.name in ("", model.spec.name) and request.version in ("", str(model.spec.version))
            ]
        )

    # ---- repository

    @answering
    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Call) -> pb.RepositoryIndexResponse:
        """Every version that is known, its state and the reason of it."""
        if request.repository_name:
            raise Unsupported("'repository_name' specification is not supported")
        response = pb.RepositoryIndexResponse()
        for line in await self._models.index(ready_only=request.ready):
            response.models.add(name=line.name, version=line.version, state=line.state, reason=line.reason)
        return response

    @answering
    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Call
    ) -> pb.RepositoryModelLoadResponse:
        """Load or reload a model; `config` and `file:` parameters take the place of what the repository holds."""
        # KServe's SDK puts the model's name where Triton has the repository's.
        name = request.model_name or request.repository_name
        if not name:
            raise InvalidRequest("the load request names no model")
        if request.model_name and request.repository_name:
            raise Unsupported("'repository_name' specification is not supported")
        config, files = _overrides(request)
        await self._models.load(name, config, files)
        return pb.RepositoryModelLoadResponse()

    @answering
    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Call
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload all versions of a model once their last request has been answered."""
        name = request.model_name or request.repository_name
        if not name:
            raise InvalidRequest("the unload request names no model")
        unknown = sorted(set(request.parameters) - {"unload_dependents"})
        if unknown:
            raise InvalidRequest(f"unrecognized unload parameter '{unknown[0]}'")
        await self._models.unload(name, dependents=request.parameters["unload_dependents"].bool_param)
        return pb.RepositoryModelUnloadResponse()

    # ---- shared memory

    @answering
    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Call
    ) -> pb.SystemSharedMemoryStatusResponse:
        """The region of that name, or all."""
        found = self._regions.status(request.name)
        response = pb.SystemSharedMemoryStatusResponse()
        for region in found:
            line = response.regions[region.name]
            line.name, line.key, line.offset, line.byte_size = region.name, region.key, region.offset, region.size
        return response

    @answering
    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Call
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Make a shared memory object of this host usable by name."""
        self._regions.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    @answering
    async def SystemSharedMemoryUnregister(
        self,
        request: pb.SystemSharedMemoryUnregisterRequest,
        context: Call,
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Forget the region of that name, or all."""
        if request.name:
            self._regions.unregister(request.name)
        else:
            self._regions.unregister_all()
        return pb.SystemSharedMemoryUnregisterResponse()

    @answering
    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Call
    ) -> pb.CudaSharedMemoryStatusResponse:
        """No region can be registered without a GPU, so there is none."""
        if request.name:
            raise Unsupported(NO_CUDA)
        return pb.CudaSharedMemoryStatusResponse()

    @answering
    async def CudaSharedMemoryRegister(
        self,
        request: pb.CudaSharedMemoryRegisterRequest,
        context: Call,
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Refused without a GPU."""
        raise Unsupported(NO_CUDA)

    @answering
    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Call
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Forgetting all of none succeeds."""
        if request.name:
            raise Unsupported(NO_CUDA)
        return pb.CudaSharedMemoryUnregisterResponse()

    # ---- settings

    @answering
    async def TraceSetting(self, request: pb.TraceSettingRequest, context: Call) -> pb.TraceSettingResponse:
        """Change trace settings, of one model or of all, and return those in force."""
        if request.model_name:
            self._models.versions(request.model_name)
        changes = {name: list(setting.value) for name, setting in request.settings.items()}
        self._traces.update(changes, request.model_name)
        response = pb.TraceSettingResponse()
        for name, values in self._traces.current(request.model_name).items():
            response.settings[name].value.extend(values)
        return response

    @answering
    async def LogSettings(self, request: pb.LogSettingsRequest, context: Call) -> pb.LogSettingsResponse:
        """Change log settings and return those in force."""
        changes = {}
        for name, setting in request.settings.items():
            field = setting.WhichOneof("parameter_choice")
            changes[name] = getattr(setting, field) if field else None
        self._logs.update(changes)
        response = pb.LogSettingsResponse()
        for name, value in self._logs.current().items():
            kind = "bool" if isinstance(value, bool) else "uint32" if isinstance(value, int) else "string"
            setattr(response.settings[name], f"{kind}_param", value)
        return response

    async def abort(self, context: Call, error: Exception, request_id: str = "") -> NoReturn:
        """End the call with the error's status; anything but an InferError is a fault of ours, and logged."""
        await abort_call(context, error, self._options.status_codes, request_id)


async def abort_call(context: Call, error: Exception, codes: StatusCodes, request_id: str = "") -> NoReturn:
    """End a call with an error's status."""
    known = _known(error)
    await context.abort(codes.code(known), text_of(known, request_id), trailers_of(known))


def _known(error: Exception) -> InferError:
    if isinstance(error, InferError):
        return error
    if isinstance(error, MemoryError):
        log.error("out of memory for a request: %s", error)
        return Overloaded("the server has no memory for this request")
    log.error("a call failed in the server", exc_info=error)
    return EngineFailed(f"internal error: {type(error).__name__}")


def _tenant(context: Call, key: str) -> str:
    """Who was authenticated; else what the metadata says, where it is asked."""
    return TENANT.get() or (_metadata(context, key) if key else "")


async def _too_much() -> NoReturn:
    raise Overloaded(TEXT, retry_after_s=RETRY_AFTER_S)


def _metadata(context: Call, key: str) -> str:
    found = next((value for name, value in context.invocation_metadata() or () if name == key), "")
    return found if isinstance(found, str) else found.decode("latin-1")


def _trace(context: Call) -> str:
    """See InferRequest.trace."""
    parent, states = "", []
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent" and isinstance(value, str):
            parent = value
        elif key == "tracestate" and isinstance(value, str):
            states.append(value)
    return f"{parent} {','.join(states)}" if parent and states else parent


def _overrides(request: pb.RepositoryModelLoadRequest) -> tuple[str | None, dict[str, bytes]]:
    """The `config` and `file:` parameters of a load. Raises InvalidRequest for any other."""
    config: str | None = None
    files: dict[str, bytes] = {}
    for name, parameter in request.parameters.items():
        if name == "config":
            config = parameter.string_param
            try:
                json.loads(config)
            except ValueError as error:
                raise InvalidRequest(f"load parameter 'config' is not JSON: {error}") from error
        elif name.startswith("file:"):
            files[name.removeprefix("file:")] = parameter.bytes_param
        else:
            raise InvalidRequest(
                f"unrecognized load parameter '{name}' in {json_format.MessageToJson(parameter, indent=None)}"
            )
    if files and config is None:
        raise InvalidRequest("load parameter 'config' must be given along with 'file:' parameters")
    return config, files
