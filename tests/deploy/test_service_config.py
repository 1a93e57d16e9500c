"""The service configuration that the manual gives to clients."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import grpc
import pytest

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "kubernetes.md"


def given() -> str:
    (text,) = re.findall(r"```json\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    return str(text)


def outcome_with(config: str) -> Any:
    with grpc.insecure_channel("127.0.0.1:1", options=[("grpc.service_config", config)]) as channel:
        stub = GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.ServerReady(pb.ServerReadyRequest(), timeout=20)
    return raised.value.code()


def test_clients_take_it() -> None:
    # Without it, a server that is not there would be UNAVAILABLE at once; it says to wait, and for how long.
    assert outcome_with(given()) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert outcome_with(given().replace('"1s"', '"soon"')) is grpc.StatusCode.INVALID_ARGUMENT


def test_it_names_methods_that_exist_and_are_safe_to_repeat() -> None:
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    names = [name for each in json.loads(given())["methodConfig"] for name in each["name"]]
    assert {name["service"] for name in names} == {service.full_name}
    methods = {name["method"] for name in names}
    assert methods <= set(service.methods_by_name)
    assert not any(word in method for method in methods for word in ("Load", "Unload", "Register", "Setting"))
