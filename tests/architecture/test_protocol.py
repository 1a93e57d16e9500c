"""The generated modules are current, and our messages are those of the clients in use."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2 as their_config
from tritonclient.grpc import service_pb2 as their_service

from server.pb import grpc_service_pb2, model_config_pb2

ROOT = Path(__file__).resolve().parents[2]


def _script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_generated_modules_are_current() -> None:
    assert _script(ROOT / "protos" / "generate.py").stale() == [], "run `make protos`"


def _messages(parent: Any) -> dict[str, Descriptor]:
    below = parent.message_types_by_name if hasattr(parent, "message_types_by_name") else parent.nested_types_by_name
    found = {message.full_name: message for message in below.values()}
    for message in list(found.values()):
        found |= _messages(message)
    return found


def _enums(parent: Any) -> dict[str, EnumDescriptor]:
    enums = {enum.full_name: enum for enum in parent.enum_types_by_name.values()}
    for message in _messages(parent).values():
        enums |= {enum.full_name: enum for enum in message.enum_types_by_name.values()}
    return enums


def _wire(field: FieldDescriptor) -> tuple[Any, ...]:
    """All that decides how a field's bytes are read."""
    kind = field.message_type or field.enum_type
    of = field.containing_oneof
    return field.number, field.type, field.is_repeated, kind.full_name if kind else "", of.name if of else ""


PAIRS = [
    (grpc_service_pb2.DESCRIPTOR, their_service.DESCRIPTOR),
    (model_config_pb2.DESCRIPTOR, their_config.DESCRIPTOR),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["service", "config"])
def test_every_field_of_tritons_messages_is_ours_too(ours: Any, theirs: Any) -> None:
    mine = _messages(ours)
    for name, message in _messages(theirs).items():
        assert name in mine
        for field in message.fields:
            assert field.name in mine[name].fields_by_name, f"{name}.{field.name}"
            assert _wire(mine[name].fields_by_name[field.name]) == _wire(field), f"{name}.{field.name}"


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["service", "config"])
def test_every_number_of_tritons_enums_is_ours_too(ours: Any, theirs: Any) -> None:
    mine = _enums(ours)
    for name, enum in _enums(theirs).items():
        assert {value.name: value.number for value in enum.values}.items() <= {
            value.name: value.number for value in mine[name].values
        }.items(), name


def test_every_method_of_triton_is_ours_too() -> None:
    (mine,) = grpc_service_pb2.DESCRIPTOR.services_by_name.values()
    (their,) = their_service.DESCRIPTOR.services_by_name.values()
    assert mine.full_name == their.full_name

    def signature(method: Any) -> tuple[Any, ...]:
        kinds = (method.input_type.full_name, method.output_type.full_name)
        return *kinds, method.client_streaming, method.server_streaming

    assert {method.name: signature(method) for method in their.methods}.items() <= {
        method.name: signature(method) for method in mine.methods
    }.items()


def test_a_message_of_theirs_is_read_as_ours_and_back() -> None:
    theirs = their_service.ModelInferRequest(model_name="m", id="1", raw_input_contents=[b"ab"])
    theirs.inputs.add(name="x", datatype="INT8", shape=[1, 2]).parameters["p"].double_param = 1.5
    ours = grpc_service_pb2.ModelInferRequest.FromString(theirs.SerializeToString())
    assert ours.inputs[0].parameters["p"].double_param == 1.5
    assert their_service.ModelInferRequest.FromString(ours.SerializeToString()) == theirs


def test_what_is_ours_alone_is_known() -> None:
    """OIP's `properties`, and our own settings behind field numbers that nobody else uses."""
    extra = set()
    for ours, theirs in PAIRS:
        their = _messages(theirs)
        for name, message in _messages(ours).items():
            if name in their:
                known = their[name].fields_by_name
                extra |= {(name, field.name, field.number) for field in message.fields if field.name not in known}
    alone = {(name, field) for name, field, _ in extra}
    assert ("inference.ModelMetadataResponse", "properties") in alone
    assert all(number >= 1000 for name, field, number in extra if field != "properties"), extra


@pytest.mark.parametrize("module", [grpc_service_pb2, model_config_pb2])
def test_no_field_says_whether_it_was_given(module: Any) -> None:
    """Load testers' tools parse our .proto files themselves; ghz's parser knows no `optional` in proto3."""
    found = [
        field.full_name
        for message in _messages(module.DESCRIPTOR).values()
        for field in message.fields
        if field.containing_oneof is not None and field.containing_oneof.name.startswith("_")
    ]
    assert found == []
