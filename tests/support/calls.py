"""Requests to the models of `tests.support.onnx_models`, and what became of calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import grpc
import numpy as np

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub


def steps(number: int, model: str = "counter") -> pb.ModelInferRequest:
    """A request to `counter`: it counts that far."""
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[np.int64(number).tobytes()])
    request.inputs.add(name="n", datatype="INT64", shape=[1])
    return request


def row(values: Sequence[float] = (1, 2, 3, 4), model: str = "scale") -> pb.ModelInferRequest:
    """A request to a model with an input `x` of rows of four."""
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[np.array(values, np.float32).tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[len(values) // 4, 4])
    return request


def floats(response: pb.ModelInferResponse) -> list[float]:
    """The first output's numbers."""
    return np.frombuffer(response.raw_output_contents[0], np.float32).tolist()


@contextlib.contextmanager
def blocking_stub(url: str) -> Iterator[GRPCInferenceServiceStub]:
    """A stub of our own generated code, on a connection of its own."""
    with grpc.insecure_channel(url, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


def failure(call: grpc.Future, patience_s: float = 60) -> tuple[str, str, dict[str, str]]:
    """Code, text and trailing metadata of a call that must fail."""
    error = call.exception(timeout=patience_s)
    assert isinstance(error, grpc.RpcError), error
    assert isinstance(error, grpc.Call)
    return error.code().name, error.details() or "", {str(k): str(v) for k, v in error.trailing_metadata() or ()}
