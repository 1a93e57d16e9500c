"""The attacker's checklist, as far as it is about who calls: on both transports, with a policy and without one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec

from server.access.rpcs import RPCS, Group
from server.access.tokens import digest_of
from server.cli import cli
from server.pb import grpc_service_pb2 as pb
from server.transport import doors
from server.transport.certificates import TlsFiles
from server.transport.guard import is_loopback
from server.transport.listen import TransportKind
from tests.server.access.test_rpcs import METHODS
from tests.support.access import POLICY, bearer, connected, guarded, request, stub_of
from tests.support.certificates import Authority
from tests.support.methods import Method

pytestmark = pytest.mark.integration

both_transports = pytest.mark.parametrize("transport", list(TransportKind))

DENIED = grpc.StatusCode.PERMISSION_DENIED
INFER = next(method for method in METHODS if method.path.endswith("/ModelInfer"))
UNKNOWN_CALLER = grpc.StatusCode.UNAUTHENTICATED


async def call(channel: Any, method: Method, message: Any = None, metadata: Any = ()) -> Any:
    """Call any method with one request; its first answer, or the status that refused it."""
    message = method.request_type() if message is None else message
    handler = method.handler
    arity = "_".join(
        "stream" if streams else "unary" for streams in (handler.request_streaming, handler.response_streaming)
    )
    given = _one(message) if handler.request_streaming else message
    begin = getattr(channel, arity)(method.path, type(message).SerializeToString)
    started = begin(given, metadata=metadata, timeout=20)
    try:
        if not handler.response_streaming:
            return await started
        async for answer in started:
            started.cancel()
            return answer
        return await started.code()
    except grpc.aio.AioRpcError as error:
        return error.code()


async def _one(message: Any) -> AsyncIterator[Any]:
    yield message


async def code_of(started: Any) -> tuple[grpc.StatusCode, str]:
    """How a call ended that must not go well."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await started
    return refused.value.code(), refused.value.details() or ""


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


# Unauthenticated


@both_transports
def test_without_a_credential_nothing_but_health_and_reflection_answers(
    tmp_path: Path, transport: TransportKind
) -> None:
    async def main() -> None:
        async with guarded(tmp_path, transport=transport) as (_, url), connected(url) as channel:
            for method in METHODS:
                open_to_all = RPCS[method.path].group in (Group.HEALTH, Group.REFLECTION)
                answer = await call(channel, method)
                assert (answer is UNKNOWN_CALLER) is not open_to_all, method.path

    run(main)


@both_transports
@pytest.mark.parametrize(
    "metadata",
    [
        bearer("mallory"), (("authorization", "Bearer"),), (("authorization", ""),),
        (("authorization", "alice-token"),),
        (("authorization", "Basic YWxpY2U6"),), (*bearer("alice"), *bearer("bob")), (("authorization-bin", b"x"),),
        (("authorization", f"Bearer {digest_of('alice-token').hex()}"),), (("x-user", "root"),),
        (("authorization", "Bearer " + "x" * 8000),), (("authorization", "Bearer eyJhbGciOiJub25lIn0.e30."),),
    ],
)  # fmt: skip
def test_credentials_that_are_none(tmp_path: Path, transport: TransportKind, metadata: Any) -> None:
    async def main() -> None:
        async with guarded(tmp_path, transport=transport) as (_, url), connected(url) as channel:
            code, text = await code_of(stub_of(channel).ModelInfer(request(), metadata=metadata))
            assert code is UNKNOWN_CALLER
            assert "token" not in text or "-token" not in text
            # Where nothing need be shown, it does no harm to show something bad.
            assert (await stub_of(channel).ServerLive(pb.ServerLiveRequest(), metadata=metadata)).live

    run(main)


def test_a_stranger_is_answered_before_its_message_is_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with guarded(tmp_path) as (server, url), connected(url) as channel:
            endless = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
            more = asyncio.Event()

            async def body() -> AsyncIterator[bytes]:
                yield b"part of a message that never ends"
                await more.wait()

            started = endless(body(), timeout=20)
            assert (await code_of(started))[0] is UNKNOWN_CALLER
            assert server._doors is not None
            assert server._doors.server.statistics().buffered_bytes == 0
            assert server._doors.server.statistics().calls == 0

    run(main)


@both_transports
def test_without_a_policy_other_hosts_change_nothing(
    tmp_path: Path, transport: TransportKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "is_loopback", lambda host: False)

    async def main() -> None:
        async with guarded(tmp_path, None, transport=transport) as (_, url), connected(url) as channel:
            for method in METHODS:
                closed = RPCS[method.path].group in (Group.CONTROL, Group.SHARED_MEMORY)
                assert (await call(channel, method) is DENIED) is closed, method.path
            unload = pb.RepositoryModelUnloadRequest(model_name="red")
            _, text = await code_of(stub_of(channel).RepositoryModelUnload(unload))
            assert text == (
                "RepositoryModelUnload is closed: other hosts can reach this server, "
                "and it has no access policy that opens 'control' (--access-policy)"
            )
            assert (await stub_of(channel).ModelInfer(request())).model_name == "red"

    run(main)


@both_transports
def test_without_a_policy_its_own_host_may_do_everything(tmp_path: Path, transport: TransportKind) -> None:
    async def main() -> None:
        async with guarded(tmp_path, None, transport=transport) as (_, url), connected(url) as channel:
            for method in METHODS:
                assert await call(channel, method) not in (DENIED, UNKNOWN_CALLER), method.path

    run(main)


def test_what_counts_as_this_host() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "unix:/run/kairos"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.example.org"]))


# Wrong tenant


@both_transports
def test_one_tenant_neither_uses_nor_sees_the_models_of_another(tmp_path: Path, transport: TransportKind) -> None:
    async def main() -> None:
        async with guarded(tmp_path, transport=transport) as (_, url), connected(url) as channel:
            stub, alice = stub_of(channel), bearer("alice")
            assert (await stub.ModelInfer(request("red"), metadata=alice)).model_name == "red"
            code, text = await code_of(stub.ModelInfer(request("blue"), metadata=alice))
            assert (code, text) == (DENIED, "'alice' has no role that allows 'infer' of model 'blue'")
            # Whether a model exists is not told either.
            assert (await code_of(stub.ModelInfer(request("none"), metadata=alice)))[0] is DENIED
            for refused in (
                stub.ModelMetadata(pb.ModelMetadataRequest(name="blue"), metadata=alice),
                stub.ModelConfig(pb.ModelConfigRequest(name="blue"), metadata=alice),
                stub.ModelStatistics(pb.ModelStatisticsRequest(name="blue"), metadata=alice),
                stub.ModelStatistics(pb.ModelStatisticsRequest(), metadata=alice),
                stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=alice),
                stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="red"), metadata=alice),
                stub.LogSettings(pb.LogSettingsRequest(), metadata=alice),
            ):
                assert (await code_of(refused))[0] is DENIED
            assert len((await stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=bearer("root"))).models) == 2

    run(main)


@both_transports
def test_a_stream_may_not_turn_to_another_tenants_model(tmp_path: Path, transport: TransportKind) -> None:
    async def main() -> None:
        async with guarded(tmp_path, transport=transport) as (_, url), connected(url) as channel:
            stream = stub_of(channel).ModelStreamInfer(metadata=bearer("alice"))
            await stream.write(request("red"))
            assert (await stream.read()).infer_response.model_name == "red"
            await stream.write(request("blue"))
            assert (await code_of(stream.read()))[0] is DENIED

    run(main)


@both_transports
def test_an_answer_that_is_remembered_is_still_not_for_everybody(tmp_path: Path, transport: TransportKind) -> None:
    async def main() -> None:
        async with guarded(tmp_path, transport=transport) as (server, url), connected(url) as channel:
            stub = stub_of(channel)
            load = pb.RepositoryModelLoadRequest(model_name="red")
            load.parameters["config"].string_param = '{"responseCache": {"enable": true}}'
            await stub.RepositoryModelLoad(load, metadata=bearer("root"))
            for _ in range(4):
                assert (await stub.ModelInfer(request("red"), metadata=bearer("alice"))).model_name == "red"
            (red,) = [model for model in server.models.served() if model.spec.name == "red"]
            assert red.cache is not None
            assert red.cache.statistics().memory_hits >= 3
            assert (await code_of(stub.ModelInfer(request("red"), metadata=bearer("bob"))))[0] is DENIED
            assert (await code_of(stub.ModelInfer(request("red"))))[0] is UNKNOWN_CALLER

    run(main)


@both_transports
def test_shared_memory_is_for_those_who_may(tmp_path: Path, transport: TransportKind) -> None:
    async def main() -> None:
        async with guarded(tmp_path, transport=transport) as (_, url), connected(url) as channel:
            message = request("red")
            message.ClearField("raw_input_contents")
            message.inputs[0].parameters["shared_memory_region"].string_param = "of-root"
            message.inputs[0].parameters["shared_memory_byte_size"].int64_param = 16
            code, text = await code_of(stub_of(channel).ModelInfer(message, metadata=bearer("alice")))
            assert (code, text) == (DENIED, "'alice' has no role that allows 'shared-memory'")
            code, _ = await code_of(stub_of(channel).ModelInfer(message, metadata=bearer("root")))
            assert code is grpc.StatusCode.NOT_FOUND

    run(main)


# Credentials of other kinds, and their end


@both_transports
def test_a_certificate_is_a_credential(tmp_path: Path, transport: TransportKind) -> None:
    authority = Authority()
    identity = authority.server_options()
    for name, content in {
        "chain": identity.certificate_chain, "key": identity.private_key, "ca": authority.certificate,
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    files = TlsFiles(certificate=tmp_path / "chain", key=tmp_path / "key", client_ca=tmp_path / "ca")
    known = grpc.ssl_channel_credentials(authority.certificate, authority.client_key, authority.client_chain)

    async def main() -> None:
        async with (
            guarded(tmp_path, transport=transport, tls=files) as (_, url),
            connected(url, known) as channel,
        ):
            stub = stub_of(channel)
            assert (await stub.ModelInfer(request("blue"))).model_name == "blue"
            assert (await code_of(stub.ModelInfer(request("red"))))[1].startswith("'bob' has no role")
            # A token, where there is one, says more than the certificate of the channel.
            assert (await stub.ModelInfer(request("red"), metadata=bearer("alice"))).model_name == "red"

    run(main)


@both_transports
def test_tokens_of_an_issuer(tmp_path: Path, transport: TransportKind) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    published = {**jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "k"}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [published]}))
    policy = f'{POLICY}\n[jwt]\nissuer = "i"\naudience = "kairos"\njwks = "{tmp_path}/keys.json"\n'

    def signed(**changes: Any) -> Any:
        claims = {"iss": "i", "aud": "kairos", "sub": "carol", "exp": time.time() + 60, "roles": ["red"], **changes}
        return (("authorization", "Bearer " + jwt.encode(claims, key, "ES256", headers={"kid": "k"})),)

    async def main() -> None:
        async with guarded(tmp_path, policy, transport=transport) as (_, url), connected(url) as channel:
            stub = stub_of(channel)
            for _ in range(2):
                assert (await stub.ModelInfer(request("red"), metadata=signed())).model_name == "red"
            code, text = await code_of(stub.ModelInfer(request("blue"), metadata=signed()))
            assert (code, text) == (DENIED, "'jwt:carol' has no role that allows 'infer' of model 'blue'")
            # Roles that the policy does not have, and a subject that has the name of a caller, give nothing.
            for changes in ({"roles": ["admin"]}, {"sub": "root", "roles": []}):
                assert (await code_of(stub.ModelInfer(request("red"), metadata=signed(**changes))))[0] is DENIED
            for changes in ({"exp": time.time() - 100}, {"aud": "x"}, {"iss": "x"}):
                assert (await code_of(stub.ModelInfer(request("red"), metadata=signed(**changes))))[0] is UNKNOWN_CALLER

    run(main)


@both_transports
def test_a_caller_who_is_struck_off_is_out_in_running_streams_too(tmp_path: Path, transport: TransportKind) -> None:
    async def main() -> None:
        async with guarded(tmp_path, transport=transport) as (server, url), connected(url) as channel:
            stub, alice = stub_of(channel), bearer("alice")
            stream = stub.ModelStreamInfer(metadata=alice)
            await stream.write(request("red"))
            await stream.read()
            (tmp_path / "policy.toml").write_text("[callers")  # half of it: what was in force stays so
            server.look()
            assert (await stub.ModelInfer(request("red"), metadata=alice)).model_name == "red"
            (tmp_path / "policy.toml").write_text(POLICY.replace(digest_of("alice-token").hex(), "0" * 64))
            server.look()
            async with asyncio.timeout(20):
                while await call(channel, INFER, request("red"), alice) is not UNKNOWN_CALLER:
                    pass
            await stream.write(request("red"))
            assert (await code_of(stream.read()))[0] is UNKNOWN_CALLER

    run(main)


# Too often


@both_transports
def test_a_caller_has_its_rate_and_is_told_when_to_come_back(tmp_path: Path, transport: TransportKind) -> None:
    policy = POLICY.replace('models = ["red*"]', 'models = ["red*"]\nrate_per_s = 0.001\nburst = 3')

    async def main() -> None:
        async with guarded(tmp_path, policy, transport=transport) as (_, url), connected(url) as channel:
            stub, alice = stub_of(channel), bearer("alice")
            stream = stub.ModelStreamInfer(metadata=alice)
            for _ in range(2):
                await stream.write(request("red"))
                await stream.read()
            await stub.ModelInfer(request("red"), metadata=alice)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ModelInfer(request("red"), metadata=alice)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.value.details() == "'alice' may send 0.001 requests a second"
            hints = dict(refused.value.trailing_metadata() or ())
            assert 0 < int(hints["retry-after-ms"]) <= 1_000_000
            await stream.write(request("red"))
            assert (await code_of(stream.read()))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
            # Others, and health, are not touched.
            await stub.ModelInfer(request("blue"), metadata=bearer("bob"))
            assert (await stub.ServerLive(pb.ServerLiveRequest(), metadata=alice)).live

    run(main)


@both_transports
def test_a_caller_has_so_many_calls_at_a_time(tmp_path: Path, transport: TransportKind) -> None:
    policy = POLICY.replace('models = ["red*"]', 'models = ["red*"]\nconcurrency = 1')

    async def main() -> None:
        async with guarded(tmp_path, policy, transport=transport) as (_, url), connected(url) as channel:
            stub, alice = stub_of(channel), bearer("alice")
            stream = stub.ModelStreamInfer(metadata=alice)
            await stream.write(request("red"))
            await stream.read()
            code, text = await code_of(stub.ModelInfer(request("red"), metadata=alice))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert text == "'alice' has 1 calls running, and may have 1"
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            for _ in range(3):  # a call that has ended, well or not, is not counted any more
                await stub.ModelInfer(request("red"), metadata=alice)
                assert (await code_of(stub.ModelInfer(request("blue"), metadata=alice)))[0] is DENIED

    run(main)


# The command line


def test_commands_bring_a_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("root-token\n")

    async def main() -> None:
        async with guarded(tmp_path) as (_, url):
            for given, status in ((["--token-file", str(tmp_path / "token")], 0), ([], 1)):
                ran = await asyncio.to_thread(CliRunner().invoke, cli, ["cache", "flush", "--url", url, *given])
                assert ran.exit_code == status, ran.output
                assert ("needs a credential" in ran.output) is bool(status)

    run(main)
