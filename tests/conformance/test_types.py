"""Every element type, raw and typed, as a stock client and as the bare protocol sends it; and unusual shapes."""

from __future__ import annotations

import struct
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.testing import assert_array_equal

from server.pb import grpc_service_pb2 as pb

pytestmark = pytest.mark.integration

VALUES: Final[dict[str, np.ndarray]] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 65535]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-(2**15), 0, 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1]], np.int64),
    "FP16": np.array([[-65504.0, 0.5, np.inf]], np.float16),
    "BF16": np.array([[-0.0, 0.5, np.inf]], ml_dtypes.bfloat16),
    "FP32": np.array([[-1.5, np.nan, 3.4e38]], np.float32),
    "FP64": np.array([[-1.5, -0.0, 1.7e308]], np.float64),
    "BYTES": np.array([["", "plain", "naïve ∑"]], object),
}
"""The edges of each type, and what is not a number."""

CONTENTS: Final = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def framed(values: np.ndarray) -> np.ndarray:
    return np.array([value.encode() for value in values.ravel()], object).reshape(values.shape)


def request(model: str, datatype: str, shape: tuple[int, ...], *, raw: bytes | None = None, **typed: Any) -> Any:
    """A request for `x0` with raw bytes, or with the typed contents given."""
    message = pb.ModelInferRequest(model_name=model)
    given = message.inputs.add(name="x0", datatype=datatype, shape=shape)
    if raw is None:
        for field, values in typed.items():
            getattr(given.contents, field).extend(values)
    else:
        message.raw_input_contents.append(raw)
    return message


@pytest.mark.parametrize("datatype", VALUES)
def test_raw_comes_back_bit_for_bit(client: triton.InferenceServerClient, datatype: str) -> None:
    values = VALUES[datatype]
    given = triton.InferInput("x0", values.shape, datatype).set_data_from_numpy(values)
    result = client.infer(f"identity_{datatype.lower()}", [given])
    assert result.get_output("y0").datatype == datatype
    expected = framed(values) if datatype == "BYTES" else values
    answer = result.as_numpy("y0")
    assert answer.dtype == expected.dtype
    assert_array_equal(answer, expected)


@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_contents_come_back_raw(stub: Any, datatype: str) -> None:
    values = VALUES[datatype]
    typed = framed(values) if datatype == "BYTES" else values
    asked = request(f"identity_{datatype.lower()}", datatype, (1, 3), **{CONTENTS[datatype]: typed.ravel().tolist()})
    response = stub.ModelInfer(asked)
    if datatype == "BYTES":
        expected = b"".join(struct.pack("<I", len(value)) + value for value in typed.ravel())
    else:
        expected = values.tobytes()
    assert list(response.raw_output_contents) == [expected]
    assert [tuple(output.shape) for output in response.outputs] == [(1, 3)]
    assert response.outputs[0].datatype == datatype
    assert not response.outputs[0].HasField("contents")


def test_embedded_nuls_stay(client: triton.InferenceServerClient) -> None:
    values = np.array([[b"\0", b"a\0b", b"\0\0\0\0"]], object)
    given = triton.InferInput("x0", values.shape, "BYTES").set_data_from_numpy(values)
    assert_array_equal(client.infer("identity_bytes", [given]).as_numpy("y0"), values)


def test_a_scalar_has_no_dimensions(stub: Any) -> None:
    response = stub.ModelInfer(request("scalar", "FP32", (), raw=struct.pack("<f", 1.25)))
    assert list(response.outputs[0].shape) == []
    assert list(response.raw_output_contents) == [struct.pack("<f", 1.25)]
    typed = stub.ModelInfer(request("scalar", "FP32", (), fp32_contents=[1.25]))
    assert typed == response


def test_tensors_without_elements(stub: Any) -> None:
    empty = stub.ModelInfer(request("unbatched", "FP32", (0,), raw=b""))
    assert list(empty.outputs[0].shape) == [0]
    assert list(empty.raw_output_contents) == [b""]
    rows = stub.ModelInfer(request("variable", "FP32", (2, 0), raw=b""))
    assert list(rows.outputs[0].shape) == [2, 0]
    assert list(rows.raw_output_contents) == [b""]
    typed = stub.ModelInfer(request("unbatched", "FP32", (0,)))
    assert list(typed.outputs[0].shape) == [0]


def test_rows_of_different_lengths_are_all_answered(client: triton.InferenceServerClient) -> None:
    for length in (1, 2, 3, 1000):
        values = np.arange(2 * length, dtype=np.float32).reshape(2, length)
        given = triton.InferInput("x0", values.shape, "FP32").set_data_from_numpy(values)
        assert_array_equal(client.infer("variable", [given]).as_numpy("y0"), values)


def test_strings_through_a_model_that_reads_them(client: triton.InferenceServerClient) -> None:
    values = np.array([["Is this ONE row?"], ["two words"]], object)
    given = triton.InferInput("text", values.shape, "BYTES").set_data_from_numpy(values)
    result = client.infer("text", [given])
    assert_array_equal(result.as_numpy("lower"), [[b"is this one row?"], [b"two words"]])
    assert_array_equal(result.as_numpy("words"), [[4], [2]])
    assert_array_equal(result.as_numpy("is_question"), [[True], [False]])
