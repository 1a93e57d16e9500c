"""Load on a server over gRPC with inputs in shared memory: the most it takes, and how late it is at half of that."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from engines.backends.sweep import sample_inputs
from engines.spec import ModelSpec
from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

SHM = Path("/dev/shm")
TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def server(repository: Path, *, dry_run: bool) -> Iterator[tuple[int, int]]:
    """A server process: its id and its port."""
    command = [sys.executable, "-m", "tests.gpu.serve", str(repository), *(["--dry-run"] if dry_run else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the server did not start: see its messages above")
            yield process.pid, int(line)
        finally:
            process.terminate()
            process.wait(60)


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def measure(port: int, process: int, spec: ModelSpec, rows: int, seconds: float, callers: int) -> dict[str, Any]:
    """Closed loop for the most, then an open loop at half of it."""
    name = f"kairos-gpu-{os.getpid()}"
    request = shared_request(spec, rows, name)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            size = (SHM / name).stat().st_size
            await stub.SystemSharedMemoryRegister(
                pb.SystemSharedMemoryRegisterRequest(name=name, key=name, offset=0, byte_size=size)
            )
            await closed_loop(stub, request, seconds / 4, callers)
            before, began = cpu_seconds(process), time.monotonic()
            answered = await closed_loop(stub, request, seconds, callers)
            took = time.monotonic() - began
            cpu = cpu_seconds(process) - before
            late = await open_loop(stub, request, answered / took / 2, seconds)
    finally:
        (SHM / name).unlink()
    return {
        "rows a request": rows,
        "requests a second": answered / took,
        "rows a second": answered * rows / took,
        "server CPU microseconds a request": cpu / answered * 1e6,
        "half load p50 ms": late[len(late) // 2] * 1e3,
        "half load p99 ms": late[int(len(late) * 0.99)] * 1e3,
    }


def shared_request(spec: ModelSpec, rows: int, name: str) -> pb.ModelInferRequest:
    """A request whose inputs lie one after the other in a shared memory object of that name."""
    request = pb.ModelInferRequest(model_name=spec.name)
    data = b""
    for tensor_name, array in sample_inputs(spec, rows).items():
        label = next(tensor.dtype.label for tensor in spec.inputs if tensor.name == tensor_name)
        given = request.inputs.add(name=tensor_name, datatype=label, shape=array.shape)
        given.parameters["shared_memory_region"].string_param = name
        given.parameters["shared_memory_offset"].int64_param = len(data)
        given.parameters["shared_memory_byte_size"].int64_param = array.nbytes
        data += np.ascontiguousarray(array).tobytes()
    (SHM / name).write_bytes(data)
    return request


async def closed_loop(stub: Any, request: pb.ModelInferRequest, seconds: float, callers: int) -> int:
    """Answers within the time, with so many callers who ask again at once."""
    until, answered = time.monotonic() + seconds, 0

    async def caller() -> None:
        nonlocal answered
        while time.monotonic() < until:
            await stub.ModelInfer(request)
            answered += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return answered


async def open_loop(stub: Any, request: pb.ModelInferRequest, rate: float, seconds: float) -> list[float]:
    """Seconds from when each request was due, ascending: who waits for a slow answer does not ask less."""
    chance, late = random.Random(0), []
    due, until = time.monotonic(), time.monotonic() + seconds
    asking: set[asyncio.Task[None]] = set()

    async def ask(at: float) -> None:
        await stub.ModelInfer(request)
        late.append(time.monotonic() - at)

    while due < until:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.create_task(ask(due))
        asking.add(task)
        task.add_done_callback(asking.discard)
        due += chance.expovariate(rate)
    await asyncio.gather(*asking)
    return sorted(late)
