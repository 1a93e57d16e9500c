"""gRPC's interoperability suite: grpc-go's client against our transport, in the clear and over TLS."""

from __future__ import annotations

import asyncio

import pytest

from server.transport.http2 import Server
from tests.conformance.interop import add_test_service
from tests.conformance.tools import run, tool
from tests.support.certificates import Authority

pytestmark = pytest.mark.integration

CASES = (
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
)


@pytest.mark.parametrize("case", CASES)
def test_grpc_go_client(case: str) -> None:
    async def scenario() -> tuple[int, str]:
        server = Server()
        add_test_service(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            client = tool("grpc-interop-client")
            return await run(client, "-server_host=127.0.0.1", f"-server_port={port}", f"-test_case={case}")
        finally:
            await server.stop(None)

    status, output = asyncio.run(scenario())
    assert status == 0, output


@pytest.mark.parametrize("case", ["large_unary", "ping_pong"])
def test_grpc_go_client_over_tls(case: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    authority = Authority()
    ca_file = tmp_path_factory.mktemp("tls") / "ca.pem"
    ca_file.write_bytes(authority.certificate)

    async def scenario() -> tuple[int, str]:
        server = Server()
        add_test_service(server)
        port = server.add_secure_port("127.0.0.1:0", authority.server_options())
        await server.start()
        try:
            return await run(
                tool("grpc-interop-client"), "-use_tls", "-use_test_ca", f"-ca_file={ca_file}",
                "-server_host=127.0.0.1", "-server_host_override=localhost",
                f"-server_port={port}", f"-test_case={case}",
            )  # fmt: skip
        finally:
            await server.stop(None)

    status, output = asyncio.run(scenario())
    assert status == 0, output
