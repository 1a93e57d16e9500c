"""The attacker's checklist, as far as it is about size, number, time and paths: whole servers, both transports."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest

from server.pb import grpc_service_pb2 as pb
from server.transport.listen import TransportKind
from tests.support import onnx_models
from tests.support.access import connected, guarded, request, stub_of

pytestmark = pytest.mark.integration

both_transports = pytest.mark.parametrize("transport", list(TransportKind))

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


async def refused(started: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await started
    return caught.value


@both_transports
def test_oversized_messages_and_metadata_end_their_call_and_nothing_else(
    tmp_path: Path, transport: TransportKind
) -> None:
    async def main() -> None:
        limits = {"max_message_bytes": 100_000, "max_metadata_bytes": 4096}
        async with guarded(tmp_path, None, transport=transport, **limits) as (_, url), connected(url) as channel:
            stub = stub_of(channel)
            large = request("red")
            large.raw_input_contents[0] = bytes(200_000)
            assert (await refused(stub.ModelInfer(large))).code() is EXHAUSTED
            crowded = (("x-long", "v" * 5000),)
            assert (await refused(stub.ModelInfer(request("red"), metadata=crowded))).code() is EXHAUSTED
            assert (await stub.ModelInfer(request("red"))).model_name == "red"

    asyncio.run(main())


@both_transports
def test_a_message_that_would_grow_when_it_is_read_is_refused(tmp_path: Path, transport: TransportKind) -> None:
    async def main() -> None:
        async with guarded(tmp_path, None, transport=transport) as (_, url), connected(url) as channel:
            raw = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            error = await refused(raw(b"\x2a\x00" * 1_000_000))
            assert "more than 4096 inputs" in (error.details() or "") or transport is TransportKind.GRPCIO
            assert error.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
            assert (await stub_of(channel).ModelInfer(request("red"))).model_name == "red"

    asyncio.run(main())


@both_transports
def test_calls_beyond_the_bound_are_refused_and_room_is_made_again(tmp_path: Path, transport: TransportKind) -> None:
    async def main() -> None:
        async with (
            guarded(tmp_path, None, transport=transport, max_calls=1) as (_, url),
            connected(url) as channel,
            connected(url) as another,
        ):
            stream = stub_of(channel).ModelStreamInfer()
            await stream.write(request("red"))
            await stream.read()
            assert (await refused(stub_of(another).ModelInfer(request("red")))).code() is EXHAUSTED
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            async with asyncio.timeout(20):
                while True:  # the client may hear of the end before the server has counted it
                    try:
                        await stub_of(another).ModelInfer(request("red"))
                    except grpc.aio.AioRpcError:
                        continue
                    break

    asyncio.run(main())


@both_transports
def test_connections_beyond_the_bound_are_closed(tmp_path: Path, transport: TransportKind) -> None:
    async def main() -> None:
        async with (
            guarded(tmp_path, None, transport=transport, max_connections=1) as (_, url),
            connected(url) as first,
            connected(url) as second,
        ):
            assert (await stub_of(first).ServerLive(pb.ServerLiveRequest())).live
            error = await refused(stub_of(second).ServerLive(pb.ServerLiveRequest(), timeout=5))
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            assert (await stub_of(first).ServerLive(pb.ServerLiveRequest())).live

    asyncio.run(main())


PATHS = (
    "../escaped",
    "/tmp/escaped",
    "1/../../escaped",
    "1/..",
    "a\\b",
    "",
    ".",
    "1/\0",
    "..\\escaped",
    "~/x/../../..",
)


@both_transports
def test_files_of_a_load_stay_in_their_folder(tmp_path: Path, transport: TransportKind) -> None:
    async def main() -> None:
        async with guarded(tmp_path, None, transport=transport) as (_, url), connected(url) as channel:
            for path in PATHS:
                load = pb.RepositoryModelLoadRequest(model_name="red")
                load.parameters["config"].string_param = "{}"
                load.parameters[f"file:{path}"].bytes_param = b"x"
                assert "is not a relative path" in (
                    (await refused(stub_of(channel).RepositoryModelLoad(load))).details() or ""
                )
            for name in ("../red", "/etc", "..", ".", "red/1", "red\\x", "a\nb"):
                load = pb.RepositoryModelLoadRequest(model_name=name)
                error = await refused(stub_of(channel).RepositoryModelLoad(load))
                assert "cannot be the name of a model" in (error.details() or "")

    asyncio.run(main())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


@pytest.mark.parametrize("key", ["../etc/passwd", "/../x", "a/b", "..", ".", "/", "", "//", "x\0y", "/./x", "a" * 300])
def test_names_of_shared_memory_lead_nowhere_else(tmp_path: Path, key: str) -> None:
    async def main() -> None:
        async with guarded(tmp_path, None) as (_, url), connected(url) as channel:
            register = pb.SystemSharedMemoryRegisterRequest(name="r", key=key, byte_size=1)
            error = await refused(stub_of(channel).SystemSharedMemoryRegister(register))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(main())


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin", "sub/../../../secret.bin", "folder"])
def test_weights_come_from_the_models_own_folder_only(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4))

    async def main() -> None:
        async with guarded(tmp_path, None) as (_, url), connected(url) as channel:
            folder = tmp_path / "models" / "evil" / "1"
            folder.mkdir(parents=True)
            path = onnx_models.with_external_weights(folder)
            model = onnx.load(path, load_external_data=False)
            for entry in model.graph.initializer[0].external_data:
                if entry.key == "location":
                    entry.value = location
            path.write_bytes(model.SerializeToString())
            (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
            (folder / "folder").mkdir()
            error = await refused(
                stub_of(channel).RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="evil"))
            )
            assert "external data" in (error.details() or "")

    asyncio.run(main())


def test_a_configuration_names_no_library_and_no_folder_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        async with guarded(tmp_path, None) as (_, url), connected(url) as channel:
            for config in (
                '{"model_operations": {"op_library_filename": ["evil.so"]}}',
                '{"parameters": {"session.model_external_initializers_file_folder_path": {"string_value": "/etc"}}}',
                '{"parameters": {"session.load_model_format": {"string_value": "ORT"}}}',
                '{"default_model_filename": "../../blue/1/model.onnx"}',
            ):
                load = pb.RepositoryModelLoadRequest(model_name="red")
                load.parameters["config"].string_param = config
                assert (await refused(stub_of(channel).RepositoryModelLoad(load))).code() is grpc.StatusCode.INTERNAL
            assert (await stub_of(channel).ModelInfer(request("red"))).model_name == "red"

    asyncio.run(main())
