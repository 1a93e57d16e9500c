"""Protobuf messages to plain requests, and answers back to messages.

Each raw tensor is touched once: protobuf hands out its bytes, and all that follows are views of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from engines.errors import InvalidRequest
from engines.request import NO_PARAMETERS, InferResponse, Parameter, Parameters
from engines.spec import TensorSpec
from engines.tensor import BY_LABEL, Buffer, DType, Tensor, elements, join_bytes, to_array
from server.pb import grpc_service_pb2 as pb
from server.transport.device_memory import DevicePlacement, DeviceRegion
from server.transport.shared_memory import Placement, Region

CONTENTS: Final[Mapping[DType, str]] = {
    DType.BOOL: "bool_contents",
    DType.INT8: "int_contents",
    DType.INT16: "int_contents",
    DType.INT32: "int_contents",
    DType.INT64: "int64_contents",
    DType.UINT8: "uint_contents",
    DType.UINT16: "uint_contents",
    DType.UINT32: "uint_contents",
    DType.UINT64: "uint64_contents",
    DType.FP32: "fp32_contents",
    DType.FP64: "fp64_contents",
    DType.BYTES: "bytes_contents",
}
"""The field of typed contents that each type travels in; FP16 and BF16 travel raw only."""

REGION: Final = "shared_memory_region"


class AnyRegions(Protocol):
    """Where regions are found by name. `get` raises NotFound."""

    def get(self, name: str) -> Region | DeviceRegion: ...


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """What the caller wants done with one output beyond sending it."""

    name: str
    classes: int = 0
    """Return the best so many classes instead of the tensor. 0: the tensor."""
    placement: Placement | DevicePlacement | None = None
    """Write it there instead of sending it."""


def read_parameters(given: Mapping[str, pb.InferParameter]) -> Parameters:
    """Request parameters as plain values."""
    if not given:
        return NO_PARAMETERS
    return {name: _value(name, parameter) for name, parameter in given.items()}


def read_inputs(request: pb.ModelInferRequest, regions: AnyRegions) -> list[Tensor]:
    """All inputs, in the order of the request, not yet checked against the model.

    Raises InvalidRequest for what no model could take, naming the input.
    """
    raw = request.raw_input_contents
    count = len(raw)
    position = 0
    tensors: list[Tensor] = []
    for given in request.inputs:
        dtype = BY_LABEL.get(given.datatype)
        if dtype is None:
            raise InvalidRequest(f"inference input '{given.name}' has unknown data-type '{given.datatype}'")
        data: Buffer
        if given.parameters and (placement := _placement(given.name, given.parameters, regions)) is not None:
            if isinstance(placement, DevicePlacement):
                tensors.append(Tensor(given.name, dtype, tuple(given.shape), b"", placement.memory))
                continue
            data = placement.read()
        elif count:
            if given.HasField("contents"):
                raise InvalidRequest(
                    "contents field must not be specified when using raw_input_contents "
                    f"for '{given.name}' for model '{request.model_name}'"
                )
            if position >= count:
                raise InvalidRequest(
                    f"raw_input_contents has {count} entries, but input '{given.name}' for model "
                    f"'{request.model_name}' needs one more"
                )
            data = raw[position]
            position += 1
        else:
            data = _typed(given, dtype)
        tensors.append(Tensor(given.name, dtype, tuple(given.shape), data))
    if position < count:
        raise InvalidRequest(
            f"raw_input_contents has {count} entries for model '{request.model_name}', expected {position}"
        )
    return tensors


def read_outputs(request: pb.ModelInferRequest, regions: AnyRegions) -> tuple[list[str], list[OutputPlan]]:
    """Names of the outputs asked for, and plans where any of them wants more than to be sent."""
    names: list[str] = []
    plans: list[OutputPlan] = []
    plain = True
    for wanted in request.outputs:
        names.append(wanted.name)
        if not wanted.parameters:
            plans.append(OutputPlan(wanted.name))
            continue
        plain = False
        classes = wanted.parameters.get("classification")
        top = 0 if classes is None else _integer("classification", _value("classification", classes))
        if top < 0:
            raise InvalidRequest(f"classification of output '{wanted.name}' must not be negative")
        plans.append(OutputPlan(wanted.name, top, _placement(wanted.name, wanted.parameters, regions)))
    return names, [] if plain else plans


def write_response(
    response: InferResponse, plans: Sequence[OutputPlan], specs: Mapping[str, TensorSpec], *, batched: bool
) -> pb.ModelInferResponse:
    """The answer as a message; outputs that live in shared memory are written there.

    Raises InvalidRequest when an output does not fit its region or has no classes.
    """
    message = pb.ModelInferResponse(model_name=response.model, model_version=str(response.version), id=response.id)
    outputs = message.outputs
    raw = message.raw_output_contents
    if not plans:
        for tensor in response.outputs:
            outputs.add(name=tensor.name, datatype=tensor.dtype.label, shape=tensor.shape)
            raw.append(bytes(tensor.data))
        return message
    for tensor, plan in zip(response.outputs, plans, strict=True):
        sent = classify(tensor, plan.classes, specs[tensor.name].labels, batched=batched) if plan.classes else tensor
        output = outputs.add(name=sent.name, datatype=sent.dtype.label, shape=sent.shape)
        if plan.placement is None:
            raw.append(bytes(sent.data))
            continue
        if sent.device is None:  # else the engine has put it there
            plan.placement.write(sent.name, sent.data)
        output.parameters[REGION].string_param = plan.placement.region.name
        output.parameters["shared_memory_offset"].int64_param = plan.placement.offset
        output.parameters["shared_memory_byte_size"].int64_param = sent.size_bytes
        raw.append(b"")  # clients count entries by output
    return message


def classify(tensor: Tensor, classes: int, labels: Sequence[str], *, batched: bool) -> Tensor:
    """The best classes of each row as BYTES `score:index[:label]`, best first, at most as many as there are.

    Raises InvalidRequest for tensors of BYTES.
    """
    if tensor.dtype is DType.BYTES:
        raise InvalidRequest(f"class result not available for output '{tensor.name}' due to unsupported type 'BYTES'")
    array = to_array(tensor)
    table = array.reshape(array.shape[0] if batched else 1, -1)
    top = min(classes, table.shape[1])
    whole = table.dtype.kind in "iub"
    scores = table if whole else table.astype(np.float64)
    # The complement turns the order of whole numbers round without ever overflowing.
    best = np.argsort(np.invert(scores) if whole else -scores, axis=1, kind="stable")[:, :top]
    form = "d" if whole else "f"
    lines = [
        f"{scores[row, index]:{form}}:{index}" + (f":{labels[index]}" if index < len(labels) else "")
        for row in range(table.shape[0])
        for index in best[row]
    ]
    shape = (table.shape[0], top) if batched else (top,)
    return Tensor(tensor.name, DType.BYTES, shape, join_bytes(lines))


def _value(name: str, parameter: pb.InferParameter) -> Parameter:
    field = parameter.WhichOneof("parameter_choice")
    if field is None:
        raise InvalidRequest(f"parameter '{name}' has no value")
    value: Parameter = getattr(parameter, field)
    return value


def _integer(name: str, value: Parameter) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"parameter '{name}' must be an integer")
    return value


def _placement(
    name: str, parameters: Mapping[str, pb.InferParameter], regions: AnyRegions
) -> Placement | DevicePlacement | None:
    if REGION not in parameters:
        return None
    values = read_parameters(parameters)
    region = regions.get(str(values[REGION]))
    offset = _integer("shared_memory_offset", values.get("shared_memory_offset", 0))
    if "shared_memory_byte_size" not in values:
        raise InvalidRequest(f"'shared_memory_byte_size' must be given for '{name}' with 'shared_memory_region'")
    size = _integer("shared_memory_byte_size", values["shared_memory_byte_size"])
    region.view(offset, size)
    if isinstance(region, DeviceRegion):
        return DevicePlacement(region, offset, size)
    return Placement(region, offset, size)


def _typed(given: Any, dtype: DType) -> Buffer:  # noqa: ANN401  (nested messages have no importable name in the stubs)
    """Typed contents in wire layout. Raises InvalidRequest when they are absent, of another type or number."""
    field = CONTENTS.get(dtype)
    count = elements(tuple(given.shape))
    if field is None:
        raise InvalidRequest(f"inference input '{given.name}' of type {dtype.label} must use raw_input_contents")
    values = getattr(given.contents, field)
    if len(values) != count:
        others = [descriptor.name for descriptor, _ in given.contents.ListFields() if descriptor.name != field]
        if others:
            raise InvalidRequest(
                f"inference input '{given.name}' of type {dtype.label} must come in {field}, not in {others[0]}"
            )
        raise InvalidRequest(
            f"unexpected number of elements {len(values)} for inference input '{given.name}', expecting {count}"
        )
    if dtype is DType.BYTES:
        return join_bytes(values)
    try:
        return np.array(values, dtype.numpy).tobytes()
    except OverflowError:
        raise InvalidRequest(f"inference input '{given.name}' has a value that does not fit {dtype.label}") from None
