"""Certificates that are replaced while the server runs: connections keep theirs, new ones get the new one."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from engines.repository.manager import RepositoryOptions
from server.app import Server, ServerOptions
from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.transport.certificates import Certificates, TlsFiles
from server.transport.doors import AccessOptions
from server.transport.listen import ListenOptions, TransportKind
from tests.support.certificates import Authority

both_transports = pytest.mark.parametrize("transport", list(TransportKind))


def install(folder: Path, authority: Authority, *, ca: bool = False) -> TlsFiles:
    identity = authority.server_options()
    (folder / "chain.pem").write_bytes(identity.certificate_chain)
    (folder / "key.pem").write_bytes(identity.private_key)
    (folder / "ca.pem").write_bytes(authority.certificate)
    return TlsFiles(
        certificate=folder / "chain.pem", key=folder / "key.pem", client_ca=folder / "ca.pem" if ca else None
    )


def channel(port: int, trusted: Authority, *, known_to: Authority | None = None) -> grpc.aio.Channel:
    """A connection of its own to the server, for clients that trust one authority."""
    credentials = grpc.ssl_channel_credentials(
        trusted.certificate,
        *((known_to.client_key, known_to.client_chain) if known_to is not None else (None, None)),
    )
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=[("grpc.use_local_subchannel_pool", 1)])


async def live(opened: grpc.aio.Channel) -> bool:
    stub: Any = GRPCInferenceServiceStub(opened)  # type: ignore[no-untyped-call]
    return bool((await stub.ServerLive(pb.ServerLiveRequest(), timeout=20)).live)


def run(folder: Path, files: TlsFiles, transport: TransportKind, main: Callable[[Server, int], Any]) -> None:
    """Run `main` beside a server without models, whose certificates are followed only when it is asked to look."""
    (folder / "models").mkdir()

    async def whole() -> None:
        server = Server(
            ServerOptions(
                repository=RepositoryOptions(roots=(folder / "models",)),
                listen=ListenOptions(port=0, transport=transport, tls=files),
                access=AccessOptions(reload_s=0),
                metrics_port=None,
            )
        )
        addresses = await server.start()
        try:
            await main(server, addresses.grpc_port)
        finally:
            await server.drain()

    asyncio.run(whole())


async def until_served(port: int, trusted: Authority, *, known_to: Authority | None = None) -> None:
    """The files are read by a thread; a connection a moment too early is tried again."""
    async with asyncio.timeout(30):
        while True:
            async with channel(port, trusted, known_to=known_to) as opened:
                try:
                    assert await live(opened)
                except grpc.aio.AioRpcError:
                    continue
                return


@both_transports
def test_old_connections_stay_and_new_ones_see_the_new_certificate(tmp_path: Path, transport: TransportKind) -> None:
    before, after = Authority(), Authority()

    async def main(server: Server, port: int) -> None:
        async with channel(port, before) as old:
            assert await live(old)
            install(tmp_path, after)
            server.look()
            await until_served(port, after)
            assert await live(old)
        async with channel(port, before) as late:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await live(late)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

    run(tmp_path, install(tmp_path, before), transport, main)


@both_transports
def test_clients_are_known_by_the_new_authority(tmp_path: Path, transport: TransportKind) -> None:
    before, after = Authority(), Authority()

    async def main(server: Server, port: int) -> None:
        async with channel(port, before, known_to=before) as old:
            assert await live(old)
        install(tmp_path, after, ca=True)
        server.look()
        await until_served(port, after, known_to=after)
        async with channel(port, after, known_to=before) as stale:
            with pytest.raises(grpc.aio.AioRpcError):
                await live(stale)

    run(tmp_path, install(tmp_path, before, ca=True), transport, main)


def test_half_a_pair_changes_nothing_until_the_other_half_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = Authority(), Authority()
    followed = Certificates(install(tmp_path, before))
    good = followed.context
    (tmp_path / "chain.pem").write_bytes(after.server_options().certificate_chain)
    followed.refresh()
    assert followed.context is good
    assert "the certificate stays as it was" in caplog.text
    followed.refresh()
    assert len(caplog.records) == 1  # it is said once
    (tmp_path / "key.pem").write_bytes(after.server_options().private_key)
    followed.refresh()
    assert followed.context is not good
    (tmp_path / "key.pem").unlink()
    followed.refresh()
    assert followed.identity == after.server_options()


def test_files_that_make_no_sense_are_refused_at_the_start(tmp_path: Path) -> None:
    files = install(tmp_path, Authority())
    (tmp_path / "key.pem").write_bytes(b"no key")
    with pytest.raises(ssl.SSLError):
        Certificates(files)
