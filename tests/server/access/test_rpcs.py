"""Every RPC that is served is in a group; an RPC that nobody sorted in is closed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

from server.access.rpcs import EVERY_MODEL, RPCS, Group
from server.pb import (
    cache_pb2_grpc,
    feedback_pb2_grpc,
    grpc_service_pb2_grpc,
    rollout_pb2_grpc,
    traffic_pb2_grpc,
    watch_pb2_grpc,
)
from tests.support.methods import Method, methods_of

ADDED = {
    "inference": grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server,
    "cache": cache_pb2_grpc.add_CacheServicer_to_server,
    "traffic": traffic_pb2_grpc.add_TrafficServicer_to_server,
    "rollout": rollout_pb2_grpc.add_RolloutServicer_to_server,
    "watch": watch_pb2_grpc.add_WatchServicer_to_server,
    "feedback": feedback_pb2_grpc.add_FeedbackServicer_to_server,
    "health": health_pb2_grpc.add_HealthServicer_to_server,
    "reflection": reflection_pb2_grpc.add_ServerReflectionServicer_to_server,
}


class Anything:
    """A servicer of everything."""

    def __getattr__(self, name: str) -> object:
        return name


METHODS: list[Method] = [method for add in ADDED.values() for method in methods_of(add, Anything())]


def test_every_method_has_a_group() -> None:
    assert {method.path for method in METHODS} == set(RPCS)


def test_all_services_that_the_server_registers_are_looked_at_here() -> None:
    source = Path("server/app.py").read_text()
    assert set(re.findall(r"\w+\.(add_\w+_to_server)", source)) == {add.__name__ for add in ADDED.values()}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.path)
def test_fields_that_name_the_model_exist_and_none_was_forgotten(method: Method) -> None:
    rpc = RPCS[method.path]
    request = method.request_type()
    for field in rpc.fields:
        setattr(request, field, "m")
        assert rpc.model(request) == "m"
        request.Clear()
    if rpc.group not in (Group.HEALTH, Group.SHARED_MEMORY):
        names = {field.name for field in request.DESCRIPTOR.fields}
        assert {"model_name", "model"} & names <= set(rpc.fields)
    if rpc.about_models:
        assert rpc.model(request) == EVERY_MODEL
