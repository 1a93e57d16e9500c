"""A served model that is asked for all rows of a dataset, several batches in flight."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np

from engines.build.data import Dataset
from engines.build.errors import BuildFailed
from engines.spec import TensorSpec
from engines.tensor import BY_LABEL, Array, DType, Tensor, from_array, to_array
from server.cli.channel import Address
from server.cli.labelling.parts import Job, Parts, join, rows_of
from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 10.0
_AGAIN: Final = frozenset(
    (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
)
"""Statuses that say nothing of the rows; all others end the job."""
_RETRY_AFTER: Final = "retry-after-ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskOptions:
    """How to ask."""

    batch: int = 32
    """Rows of a request; never more than the model takes."""
    in_flight: int = 8
    """Requests under way."""
    deadline_s: float = 10.0
    """Of each request."""
    patience_s: float = 300.0
    """Longest time without a single answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What the teacher says of itself."""

    version: str
    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: Mapping[str, DType]
    max_rows: int
    """0: rows go one by one, without a batch dimension."""


def pause_s(code: grpc.StatusCode, trailers: Iterable[Any], attempt: int, drawn: float) -> float | None:
    """How long to wait before the same request is sent again; None when that is of no use.

    The server's own hint where it gives one, else twice as long with each attempt (the first is 0). `drawn`, between 0
    and 1, spreads those that were refused together: at most half as long again.
    """
    if code not in _AGAIN:
        return None
    hint = next((value for key, value in trailers if key == _RETRY_AFTER), None)
    wanted = FIRST_PAUSE_S * 2.0 ** min(attempt, 20) if hint is None else float(hint) / 1e3
    return min(LONGEST_PAUSE_S, wanted) * (1.0 + drawn / 2)


@dataclass(slots=True)
class Teacher:
    """One model of one server."""

    stub: Any
    model: str
    options: AskOptions
    sleep: Callable[[float], Any] = asyncio.sleep
    paused: int = 0
    """How often a request had to wait for its next attempt."""
    _last_answer: float = field(default=0.0)

    async def describe(self, version: str) -> Description:
        """Its contract; for an empty version, of the one that answers by default. Raises BuildFailed."""
        try:
            config = (await self.stub.ModelConfig(pb.ModelConfigRequest(name=self.model, version=version))).config
            found = await self.stub.ModelMetadata(pb.ModelMetadataRequest(name=self.model, version=version))
            version = version or await self._version_of(found.properties["digest"])
        except grpc.RpcError as error:
            raise BuildFailed(f"the teacher '{self.model}' does not answer: {error.details()}") from error
        first = 1 if config.max_batch_size else 0
        inputs = tuple(
            TensorSpec(each.name, BY_LABEL[each.datatype], tuple(each.shape)[first:]) for each in found.inputs
        )
        return Description(
            version=version,
            digest=found.properties["digest"],
            inputs=inputs,
            outputs={each.name: BY_LABEL[each.datatype] for each in found.outputs},
            max_rows=config.max_batch_size,
        )

    async def _version_of(self, digest: str) -> str:
        """The version with that digest: all rows are put to it, whichever becomes the default meanwhile."""
        counted = await self.stub.ModelStatistics(pb.ModelStatisticsRequest(name=self.model))
        for version in (line.version for line in counted.model_stats):
            found = await self.stub.ModelMetadata(pb.ModelMetadataRequest(name=self.model, version=version))
            if found.properties["digest"] == digest:
                return str(version)
        raise BuildFailed(f"which version of '{self.model}' answers by default cannot be told: give --version")

    async def label(self, data: Dataset, job: Job, parts: Parts, max_rows: int, done: Callable[[int], None]) -> None:
        """Answer what is missing; `done` is called with the rows that have been kept. Raises BuildFailed."""
        missing = parts.begin(job)
        done(job.rows - sum(stop - start for start, stop in missing))
        work = self._batches(missing, min(self.options.batch, max_rows) if max_rows else 1)
        self._last_answer = asyncio.get_running_loop().time()
        waiting: dict[int, dict[int, Mapping[str, Array]]] = {start: {} for start, _ in missing}
        ends = dict(missing)

        async def run() -> None:
            for part, start, stop in work:
                answers = await self._ask(data, job, start, stop, batched=max_rows > 0)
                waiting[part][start] = answers
                held = waiting[part]
                if sum(rows_of(each) for each in held.values()) == ends[part] - part:
                    del waiting[part]
                    await asyncio.to_thread(parts.write, part, join([held[first] for first in sorted(held)]))
                    done(ends[part] - part)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.options.in_flight):
                    group.create_task(run())
        except ExceptionGroup as failures:  # the others were withdrawn for the first one's sake
            raise failures.exceptions[0] from None

    def _batches(self, missing: Sequence[tuple[int, int]], rows: int) -> Iterator[tuple[int, int, int]]:
        """Part, first row and end of each request."""
        for start, stop in missing:
            for first in range(start, stop, rows):
                yield start, first, min(stop, first + rows)

    async def _ask(self, data: Dataset, job: Job, start: int, stop: int, *, batched: bool) -> Mapping[str, Array]:
        arrays = await asyncio.to_thread(data.take, start, stop)
        message = pb.ModelInferRequest(model_name=job.model, model_version=job.version, id=f"rows {start} to {stop}")
        for name, array in arrays.items():
            tensor = from_array(name, _dtype_of(array), array if batched else array[0])
            message.inputs.add(name=name, datatype=tensor.dtype.label, shape=tensor.shape)
            message.raw_input_contents.append(bytes(tensor.data))
        for name in job.outputs:
            message.outputs.add(name=name)
        return _read(await self._answer(message), job, stop - start, batched=batched)

    async def _answer(self, message: pb.ModelInferRequest) -> pb.ModelInferResponse:
        clock = asyncio.get_running_loop().time
        for attempt in range(2**31):
            try:
                response: pb.ModelInferResponse = await self.stub.ModelInfer(message, timeout=self.options.deadline_s)
            except grpc.RpcError as error:
                trailers: Any = error.trailing_metadata()
                pause = pause_s(error.code(), trailers or (), attempt, random.random())  # noqa: S311  (no secret)
                if pause is None or clock() - self._last_answer > self.options.patience_s:
                    raise BuildFailed(f"{message.id}: {error.code().name}: {error.details()}") from error
                self.paused += 1
                await self.sleep(pause)
            else:
                self._last_answer = clock()
                return response
        raise AssertionError


@asynccontextmanager
async def teacher(server: Address, model: str, options: AskOptions) -> AsyncIterator[Teacher]:
    """A teacher on a channel of its own."""
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with server.aio_channel(unlimited) as channel:
        yield Teacher(GRPCInferenceServiceStub(channel), model, options)  # type: ignore[no-untyped-call]


def _dtype_of(array: Array) -> DType:
    return next(dtype for dtype in DType if dtype.numpy == array.dtype)


def _read(response: pb.ModelInferResponse, job: Job, rows: int, *, batched: bool) -> dict[str, Array]:
    found = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        array = to_array(Tensor(output.name, BY_LABEL[output.datatype], tuple(output.shape), raw))
        found[output.name] = array if batched else array[np.newaxis]
    if response.model_version != job.version or any(len(found[name]) != rows for name in job.outputs):
        raise BuildFailed(f"{response.id}: version {response.model_version} gave another number of rows or outputs")
    return found
