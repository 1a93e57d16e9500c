"""Servers with an access policy, and clients with credentials."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np

from engines.repository.manager import ControlMode, RepositoryOptions
from server.access.tokens import digest_of
from server.app import Server, ServerOptions
from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.transport.doors import AccessOptions
from server.transport.listen import ListenOptions
from server.transport.service import ServiceOptions
from tests.support import onnx_models
from tests.support.repositories import ONE_ENGINE

POLICY: Final = f"""
[callers.alice]
token_sha256 = ["{digest_of("alice-token").hex()}"]
roles = ["red"]

[callers.bob]
token_sha256 = ["{digest_of("bob-token").hex()}"]
certificates = ["client.test"]
roles = ["blue"]

[callers.root]
token_sha256 = ["{digest_of("root-token").hex()}"]
roles = ["everything"]

[roles.red]
allow = ["infer", "read"]
models = ["red*"]

[roles.blue]
allow = ["infer", "read"]
models = ["blue"]

[roles.everything]
allow = ["infer", "read", "control", "shared-memory", "feedback", "watch"]
"""


def bearer(name: str) -> Any:
    """Metadata with that caller's token."""
    return (("authorization", f"Bearer {name}-token"),)


def request(model: str = "red", value: float = 1.0) -> pb.ModelInferRequest:
    """One row for a model that doubles."""
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    message.raw_input_contents.append(np.full(4, value, np.float32).tobytes())
    return message


def repository(folder: Path) -> Path:
    """`red` and `blue`, each of which doubles."""
    for name in ("red", "blue"):
        onnx_models.write(folder / "models", name, proto=onnx_models.scale(2.0), config=ONE_ENGINE)
    return folder / "models"


@contextlib.asynccontextmanager
async def guarded(folder: Path, policy: str | None = POLICY, **listen: Any) -> AsyncIterator[tuple[Server, str]]:
    """A server in this loop; its policy is the file `policy.toml`, read again only when it is asked to look."""
    path = None
    if policy is not None:
        path = folder / "policy.toml"
        path.write_text(policy)
    server = Server(
        ServerOptions(
            repository=RepositoryOptions(
                roots=(repository(folder),), mode=ControlMode.EXPLICIT, startup_models=("red", "blue")
            ),
            listen=ListenOptions(port=0, **listen),
            access=AccessOptions(policy=path, reload_s=0),
            service=ServiceOptions(callers_are_tenants=policy is not None),
            metrics_port=None,
            exit_timeout_s=5.0,
        )
    )
    addresses = await server.start()
    try:
        yield server, f"127.0.0.1:{addresses.grpc_port}"
    finally:
        await server.drain()


@contextlib.asynccontextmanager
async def connected(url: str, credentials: grpc.ChannelCredentials | None = None) -> AsyncIterator[Any]:
    """A connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    open_channel = grpc.aio.insecure_channel(url, options=options)
    if credentials is not None:
        open_channel = grpc.aio.secure_channel(url, credentials, options=options)
    async with open_channel as channel:
        yield channel


def stub_of(channel: Any) -> Any:
    """Of our own generated code."""
    return GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
