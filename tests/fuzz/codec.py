"""ModelInferRequest, as decoded, checked against a model, and answered."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from engines.errors import InferError
from engines.request import InferResponse, Timings
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType, Tensor, to_array
from engines.validation import RequestChecker
from server.pb import grpc_service_pb2 as pb
from server.transport.codec import read_inputs, read_outputs, read_parameters, write_response
from server.transport.model import check_timeout, priority_of
from server.transport.shared_memory import SystemSharedMemory
from tests.fuzz.mutate import mutate_message
from tests.fuzz.target import Target

SPEC: Final = ModelSpec(
    "m",
    1,
    "fake",
    (
        TensorSpec("a", DType.FP32, (2,)),
        TensorSpec("b", DType.BYTES, (-1,), optional=True),
        TensorSpec("c", DType.INT64, (-1, -1), optional=True),
    ),
    (TensorSpec("p", DType.FP32, (2,), labels=("one", "two")), TensorSpec("q", DType.BYTES, (1,))),
    max_rows=4,
)
_CHECKER: Final = RequestChecker(SPEC)
_OUTPUTS: Final = {tensor.name: tensor for tensor in SPEC.outputs}
_WORDS: Final = (
    *("a", "b", "c", "p", "q", "m", "r", ""),
    *("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "classification"),
    *("priority", "timeout", "kairos_cache", "FP32", "BYTES", "INT64", "FP16", "\1\0\0\0x", "\0\0\0\0"),
)


def _regions() -> SystemSharedMemory:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "key").write_bytes(bytes(64))
        regions = SystemSharedMemory(Path(folder))
        regions.register("r", "/key", 0, 64)
    return regions


_REGIONS: Final = _regions()


def run(data: bytes) -> None:
    """As `ModelInfer` treats a message, without an engine."""
    request = pb.ModelInferRequest()
    try:
        request.ParseFromString(data)
    except DecodeError:
        return
    try:
        parameters = read_parameters(request.parameters)
        priority_of(parameters)
        check_timeout(parameters)
        inputs, rows = _CHECKER.inputs(read_inputs(request, _REGIONS))
        names, plans = read_outputs(request, _REGIONS)
        wanted = _CHECKER.wanted(names)
    except InferError:
        return
    assert 1 <= rows <= SPEC.max_rows
    for tensor in inputs:
        assert to_array(tensor).shape == tensor.shape
    answers = {
        "p": Tensor("p", DType.FP32, (rows, 2), bytes(8 * rows)),
        "q": Tensor("q", DType.BYTES, (rows, 1), b"\1\0\0\0x" * rows),
    }
    response = InferResponse(
        id=request.id, model="m", version=1, outputs=tuple(answers[name] for name in wanted), timings=Timings()
    )
    try:
        write_response(response, plans, _OUTPUTS, batched=True).SerializeToString()
    except InferError:
        return


def seeds() -> list[bytes]:
    """Raw, typed, by shared memory, and as classes."""
    tensor = pb.ModelInferRequest.InferInputTensor
    raw = pb.ModelInferRequest(model_name="m", inputs=[tensor(name="a", datatype="FP32", shape=[1, 2])])
    typed = pb.ModelInferRequest()
    typed.CopyFrom(raw)
    typed.inputs[0].contents.fp32_contents.extend([1.0, 2.0])
    typed.inputs.add(name="b", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend([b"x", b""])
    raw.raw_input_contents.append(bytes(8))
    shared = pb.ModelInferRequest(model_name="m", inputs=[tensor(name="a", datatype="FP32", shape=[1, 2])])
    for placed in (shared.inputs[0], shared.outputs.add(name="p")):
        placed.parameters["shared_memory_region"].string_param = "r"
        placed.parameters["shared_memory_byte_size"].int64_param = 8
    typed.outputs.add(name="p").parameters["classification"].int64_param = 1
    return [message.SerializeToString() for message in (raw, typed, shared)]


TARGET: Final = Target(name="codec", run=run, mutate=mutate_message(pb.ModelInferRequest, _WORDS), seeds=seeds)
