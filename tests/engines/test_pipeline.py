"""A pool of engines that take the next batch while they run one, down to a fake GPU."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines import pool as pool_module
from engines.backends.cuda.fake import FakeCuda, FakeDevice
from engines.backends.fake import fake_spec
from engines.backends.options import StreamOptions
from engines.backends.streamed import StreamedEngine
from engines.errors import EngineFailed
from engines.local import LocalInference
from engines.pool import EnginePool, PoolStatistics
from engines.request import InferRequest
from engines.scheduling.policy import Limits
from engines.scheduling.queue import DeadlineQueue
from engines.tensor import DeviceMemory, DType, Tensor, to_array
from tests.support.fakes import until
from tests.support.runners import DoubleRunner

SPEC = fake_spec()


class Owner:
    """Reads and writes a fake device from the host."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device

    def read(self, address: int, size: int) -> bytes:
        return self._device.view(address, size).tobytes()

    def write(self, address: int, data: bytes | memoryview) -> None:
        self._device.view(address, len(data))[:] = np.frombuffer(data, np.uint8)


def asking(rows: np.ndarray, **rest: Any) -> InferRequest:
    tensor = Tensor("x", DType.FP32, rows.shape, rows.tobytes())
    return InferRequest(model="fake", version=1, inputs=(tensor,), wanted=("y",), rows=len(rows), **rest)


def serve(
    device: FakeDevice, body: Callable[[LocalInference, EnginePool], Any], *, engines: int = 1, depth: int = 2
) -> None:
    """Run `body` with a model on the device, and see that nothing is left of it afterwards."""

    async def main() -> None:
        options = StreamOptions(in_flight=depth)
        pool = EnginePool(lambda: StreamedEngine(device, DoubleRunner(device), options), engines, "fake:1", depth=depth)
        await pool.open()
        limits = Limits(max_rows=8)
        local = LocalInference(SPEC, pool, DeadlineQueue(limits), limits)
        await body(local, pool)
        await local.close()

    before = set(threading.enumerate())
    asyncio.run(main())
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("engines", [1, 2])
@pytest.mark.parametrize("depth", [2, 3])
def test_many_callers_get_their_own_answers(engines: int, depth: int) -> None:
    device = FakeDevice(seed=engines)

    async def body(local: LocalInference, pool: EnginePool) -> None:
        assert pool.statistics() == PoolStatistics(0, engines * depth, 0, 0)
        given = [np.full((1 + number % 3, 4), number, np.float32) for number in range(200)]
        answers = await asyncio.gather(*(local.infer(asking(rows)) for rows in given))
        for rows, answer in zip(given, answers, strict=True):
            assert np.array_equal(to_array(answer.outputs[0]), rows * 2)
        assert pool.statistics() == PoolStatistics(0, engines * depth, 0, 0)

    serve(device, body, engines=engines, depth=depth)
    assert device.leaks == {}


def test_an_engine_that_loses_its_device_fails_its_callers_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "FIRST_RETRY_S", 0.001)
    device = FakeDevice()

    async def body(local: LocalInference, pool: EnginePool) -> None:
        device.fail("copy_out", "CUDA_ERROR_ILLEGAL_ADDRESS", after=0)
        rows = np.ones((8, 4), np.float32)
        answers = await asyncio.gather(*(local.infer(asking(rows)) for _ in range(2)), return_exceptions=True)
        failures = [answer for answer in answers if isinstance(answer, EngineFailed)]
        assert failures
        assert all(failure.retryable for failure in failures)
        device._lost = None  # as after a new process
        await until(lambda: pool.statistics().idle == 2)
        assert pool.statistics().replaced == 1
        assert np.array_equal(to_array((await local.infer(asking(rows))).outputs[0]), rows * 2)

    serve(device, body)


def test_memory_of_the_device_is_read_and_written_in_place() -> None:
    device, client = FakeDevice(), FakeCuda(seed=2).devices[0]
    client.bind()
    owner = Owner(client)
    lent, taken = client.allocate(64), client.allocate(64)
    client.view(lent, 64).view(np.float32)[:] = np.arange(16)
    device.bind()
    source = DeviceMemory(0, device.open_memory(client.export_memory(lent)), 64, owner)
    target = DeviceMemory(0, device.open_memory(client.export_memory(taken)), 64, owner)

    async def body(local: LocalInference, pool: EnginePool) -> None:
        calls = [
            InferRequest(
                model="fake",
                version=1,
                inputs=(Tensor("x", DType.FP32, (2, 4), b"", source.part(32 * half, 32)),),
                wanted=("y",),
                rows=2,
                placed={"y": target.part(32 * half, 32)},
            )
            for half in (0, 1)
        ]
        first, second = await asyncio.gather(*(local.infer(call) for call in calls))
        assert [answer.outputs[0].data for answer in (first, second)] == [b"", b""]
        assert second.outputs[0].shape == (2, 4)
        assert second.outputs[0].device == target.part(32, 32)
        assert np.array_equal(client.view(taken, 64).view(np.float32), np.arange(16) * 2)
        assert "copy_in" not in device.calls
        assert "copy_out" not in device.calls

    serve(device, body)


def test_a_batch_of_host_and_device_rows_answers_both() -> None:
    device = FakeDevice()
    device.bind()
    lent = device.allocate(16)
    device.view(lent, 16).view(np.float32)[:] = 7
    memory = DeviceMemory(0, lent, 16, Owner(device))

    async def body(local: LocalInference, pool: EnginePool) -> None:
        resident = InferRequest(
            model="fake",
            version=1,
            inputs=(Tensor("x", DType.FP32, (1, 4), b"", memory),),
            wanted=("y",),
            placed={"y": memory},
        )
        busy = [local.infer(asking(np.ones((8, 4), np.float32))) for _ in range(2)]
        there, here, *_ = await asyncio.gather(
            local.infer(resident), local.infer(asking(np.full((3, 4), 3, np.float32))), *busy
        )
        assert there.outputs[0].device == memory
        assert np.array_equal(device.view(lent, 16).view(np.float32), np.full(4, 14))
        assert np.array_equal(to_array(here.outputs[0]), np.full((3, 4), 6))

    serve(device, body)
