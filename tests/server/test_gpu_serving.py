"""Models on a GPU through the whole server: real gRPC, real ONNX Runtime for answers, a fake GPU and TensorRT."""

from __future__ import annotations

import asyncio
import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.backends.canary import read_canary
from engines.backends.cuda.api import CudaError
from engines.backends.cuda.fake import FakeCuda, FakeDevice
from engines.build.tensorrt import timings
from engines.build.tensorrt.build import PlanBuilder
from engines.build.tensorrt.network import Report, build_plan
from engines.build.tensorrt.options import PlanJob, PlanOptions
from engines.errors import LoadFailed
from engines.request import InferRequest
from engines.tensor import DeviceMemory, DType, Tensor
from server import app
from server.cache import cached
from server.pb import grpc_service_pb2 as pb
from server.rollout import shadow
from tests.support.fake_tensorrt import VERSIONS, FakeTensorRT
from tests.support.fakes import until
from tests.support.servers import serving, stub_for


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A machine with one GPU."""
    found = FakeCuda(seed=11)
    monkeypatch.setattr(app, "find_cuda", lambda: found)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT("11.4", found.devices[0]))  # type: ignore[arg-type]
    return found


def publish(repository: Path, rows: tuple[int, ...] = (1, 4, 8)) -> Path:
    """A version with a plan of y = x * x."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "x"], ["y"])],
        "squares",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    repository.mkdir(exist_ok=True)
    file = repository.parent / "squares.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)

    def build(job: PlanJob, report: Report) -> None:
        timings.replace(job.plan, build_plan(FakeTensorRT("11.4", FakeDevice()), job, b"", report)[0])

    device = FakeDevice().info
    maker = PlanBuilder(cache_dir=repository.parent / "plans", device=device, tensorrt=VERSIONS["11.4"], build=build)
    return maker.version(file, "squares", repository, PlanOptions(rows=rows)).published


def asking(rows: np.ndarray, **regions: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="squares")
    given = request.inputs.add(name="x", datatype="FP32", shape=rows.shape)
    if "source" in regions:
        place(given, *regions["source"])
    else:
        request.raw_input_contents.append(rows.tobytes())
    if "target" in regions:
        place(request.outputs.add(name="y"), *regions["target"])
    return request


def place(tensor: Any, region: str, offset: int, size: int) -> None:
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_offset"].int64_param = offset
    tensor.parameters["shared_memory_byte_size"].int64_param = size


def test_a_plan_serves_batches_of_many_callers(cuda: FakeCuda, tmp_path: Path) -> None:
    publish(tmp_path / "models")
    device = cuda.devices[0]

    async def main() -> None:
        async with serving(tmp_path / "models") as (server, url), stub_for(url) as stub:
            config = (await stub.ModelConfig(pb.ModelConfigRequest(name="squares"))).config
            assert (config.platform, config.backend, config.max_batch_size) == ("tensorrt_plan", "tensorrt", 8)
            metadata = await stub.ServerMetadata(pb.ServerMetadataRequest())
            assert "cuda_shared_memory" in metadata.extensions
            captured = device.calls["end_capture"]
            assert captured == 6  # three sizes in two slots, before anybody asked
            given = [np.full((1 + number % 3, 4), number, np.float32) for number in range(60)]
            answers = await asyncio.gather(*(stub.ModelInfer(asking(rows)) for rows in given))
            for rows, answer in zip(given, answers, strict=True):
                found = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(rows.shape)
                assert np.array_equal(found, rows * rows)
            assert device.calls["end_capture"] == captured
            assert device.calls["launch"] > 0
            assert server.models.served()[0].engines.statistics().engines.idle == 2

    asyncio.run(main())
    assert device.leaks == {}


def test_tensors_stay_in_the_gpus_memory(cuda: FakeCuda, tmp_path: Path) -> None:
    publish(tmp_path / "models")
    client = FakeCuda(seed=5).devices[0]  # another process's view of the GPU
    client.bind()
    rows = np.arange(16, dtype=np.float32).reshape(4, 4)
    given, taken = client.allocate(64), client.allocate(128)
    client.view(given, 64).view(np.float32)[:] = rows.ravel()

    async def main() -> None:
        async with serving(tmp_path / "models") as (_, url), stub_for(url) as stub:
            for name, address, size in (("in", given, 64), ("out", taken, 128)):
                register = pb.CudaSharedMemoryRegisterRequest(
                    name=name, raw_handle=client.export_memory(address), device_id=0, byte_size=size
                )
                await stub.CudaSharedMemoryRegister(register)
            status = await stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest())
            assert {name: line.byte_size for name, line in status.regions.items()} == {"in": 64, "out": 128}
            before = (cuda.devices[0].calls["copy_in"], cuda.devices[0].calls["copy_out"])
            answer = await stub.ModelInfer(asking(rows, source=("in", 0, 64), target=("out", 64, 64)))
            assert answer.raw_output_contents == [b""]
            assert answer.outputs[0].parameters["shared_memory_byte_size"].int64_param == 64
            assert np.array_equal(client.view(taken + 64, 64).view(np.float32), rows.ravel() ** 2)
            assert (cuda.devices[0].calls["copy_in"], cuda.devices[0].calls["copy_out"]) == before
            # From the GPU to the wire, and from the wire to the GPU.
            answer = await stub.ModelInfer(asking(rows, source=("in", 0, 64)))
            assert np.array_equal(np.frombuffer(answer.raw_output_contents[0], np.float32), rows.ravel() ** 2)
            await stub.ModelInfer(asking(rows * 2, target=("out", 0, 64)))
            assert np.array_equal(client.view(taken, 64).view(np.float32), rows.ravel() ** 2 * 4)
            for request, code in (
                (asking(rows, source=("in", 32, 64)), grpc.StatusCode.INVALID_ARGUMENT),
                (asking(rows, target=("out", 0, 32)), grpc.StatusCode.INVALID_ARGUMENT),
                (asking(rows, source=("gone", 0, 64)), grpc.StatusCode.NOT_FOUND),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as failure:
                    await stub.ModelInfer(request)
                assert failure.value.code() == code
            await stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(name="in"))
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ModelInfer(asking(rows, source=("in", 0, 64)))
            await stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())

    asyncio.run(main())

    gc.collect()
    assert cuda.devices[0].leaks == {}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "bad", "raw_handle": b"x" * 64, "byte_size": 8}, "failed to open CUDA IPC handle"),
        ({"name": "bad", "raw_handle": b"x", "byte_size": 8}, "a CUDA handle has 64 bytes"),
        ({"name": "bad", "raw_handle": b"x" * 64, "byte_size": 0}, "must have a byte size > 0"),
        ({"name": "bad", "raw_handle": b"x" * 64, "byte_size": 8, "device_id": 3}, "there is no GPU 3"),
    ],
)
def test_regions_that_cannot_be_opened_are_refused(
    cuda: FakeCuda, changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    publish(tmp_path / "models")

    async def main() -> None:
        async with serving(tmp_path / "models") as (_, url), stub_for(url) as stub:
            with pytest.raises(grpc.aio.AioRpcError, match=text):
                await stub.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest(**changes))

    asyncio.run(main())


def reason_of(repository: Path) -> str:
    """Why the one model of the repository is not served."""

    async def main() -> str:
        async with serving(repository) as (_, url), stub_for(url) as stub:
            index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
            assert index.models[0].state == "UNAVAILABLE", index
            return str(index.models[0].reason)

    return asyncio.run(main())


def test_without_a_gpu_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> FakeCuda:
        raise LoadFailed("a GPU needs cuda-python or pycuda: install kairos[gpu], see docs/gpu.md")

    monkeypatch.setattr(app, "find_cuda", missing)
    publish(tmp_path / "models")
    assert "install kairos[gpu]" in reason_of(tmp_path / "models")


def test_a_version_whose_plan_answers_wrongly_is_not_served(cuda: FakeCuda, tmp_path: Path) -> None:
    version = publish(tmp_path / "models")
    canary = read_canary(version)
    assert canary is not None
    canary.outputs["y"][:] += 1  # type: ignore[index]
    canary.save(version)
    assert "not to be trusted" in reason_of(tmp_path / "models")
    assert cuda.devices[0].leaks == {}


def test_a_plan_for_another_gpu_is_not_even_read(cuda: FakeCuda, tmp_path: Path) -> None:
    version = publish(tmp_path / "models")
    card = version / "model.plan.json"
    card.write_text(card.read_text().replace("Fake GPU", "Another GPU"))
    assert "it was built for Another GPU, and this is Fake GPU" in reason_of(tmp_path / "models")


def test_a_model_that_does_not_fit_is_not_admitted(cuda: FakeCuda, tmp_path: Path) -> None:
    version = publish(tmp_path / "models")
    config = version.parent / "config.pbtxt"
    config.write_text(config.read_text() + "gpu { memory_bytes: 9000000000 }")
    assert "an instance needs about 8583 MiB" in reason_of(tmp_path / "models")


def test_plans_of_other_tools_need_their_tensors_listed(cuda: FakeCuda, tmp_path: Path) -> None:
    version = publish(tmp_path / "models", rows=(8,))
    for name in ("model.plan.json", "canary.npz", "build.json"):
        (version / name).unlink()
    assert "the configuration must list its inputs and outputs" in reason_of(tmp_path / "models")
    config = version.parent / "config.pbtxt"
    config.write_text(
        config.read_text()
        + "input { name: 'x' data_type: TYPE_FP32 dims: 4 } output { name: 'y' data_type: TYPE_FP32 dims: 4 }"
    )

    async def main() -> None:
        async with serving(tmp_path / "models") as (_, url), stub_for(url) as stub:
            answer = await stub.ModelInfer(asking(np.full((2, 4), 3, np.float32)))
            assert np.array_equal(np.frombuffer(answer.raw_output_contents[0], np.float32), np.full(8, 9))

    asyncio.run(main())


def test_a_plan_without_configuration_is_known_by_its_card(cuda: FakeCuda, tmp_path: Path) -> None:
    version = publish(tmp_path / "models")
    (version.parent / "config.pbtxt").unlink()

    async def main() -> None:
        async with serving(tmp_path / "models") as (_, url), stub_for(url) as stub:
            config = (await stub.ModelConfig(pb.ModelConfigRequest(name="squares"))).config
            assert config.max_batch_size == 8
            assert list(config.dynamic_batching.allowed_batch_size) == [1, 4, 8]

    asyncio.run(main())


def test_a_lost_device_ends_the_server(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    publish(tmp_path / "models")
    killed: list[int] = []
    monkeypatch.setattr(app.os, "kill", lambda process, signal: killed.append(signal))

    async def main() -> None:
        async with serving(tmp_path / "models") as (_, url), stub_for(url) as stub:
            cuda.devices[0]._lost = CudaError("CUDA_ERROR_ILLEGAL_ADDRESS")
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await stub.ModelInfer(asking(np.ones((1, 4), np.float32)))
            assert ("retryable", "true") in tuple(failure.value.trailing_metadata())
            await until(lambda: killed)

    asyncio.run(main())
    assert killed == [15]


def test_what_is_in_the_callers_memory_is_neither_remembered_nor_copied() -> None:
    memory = DeviceMemory(0, 0x1000, 16, owner=None)  # type: ignore[arg-type]
    plain = InferRequest(model="m", version=1, inputs=(Tensor("x", DType.FP32, (1, 4), bytes(16)),), wanted=("y",))
    resident = replace(plain, inputs=(Tensor("x", DType.FP32, (1, 4), b"", memory),))
    placed = replace(plain, placed={"y": memory})
    for keeps in (cached._cacheable, shadow._lasting):
        assert [keeps(request) for request in (plain, resident, placed)] == [True, False, False]
