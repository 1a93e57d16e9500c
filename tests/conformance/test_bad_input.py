"""Every kind of bad request: its status, its text, the input it names; and neighbours in the same batch are answered.

The texts are Triton's, since clients match them; the codes are those of the table that the server is told to use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import grpc
import numpy as np
import pytest

from engines.backends.fake import FakeEngine
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType
from server.pb import grpc_service_pb2 as pb
from server.transport.listen import TransportKind
from server.transport.status import StatusCodes
from tests.support.fakes import SIMPLE, FakeServer, Gate, add_and_subtract, fake_server, serve_model, until

INVALID: Final = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND: Final = grpc.StatusCode.NOT_FOUND

UNREADABLE: Final = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
"""What gRPC servers say when a message cannot be parsed: before any handler of ours has seen it."""

WORDS: Final = ModelSpec(
    "words", 1, "fake", (TensorSpec("text", DType.BYTES, (2,)),), (TensorSpec("same", DType.BYTES, (2,)),), max_rows=8
)


def good(value: int = 1, **rest: Any) -> pb.ModelInferRequest:
    """A request that `simple` answers: INPUT0 all `value`, INPUT1 all 1."""
    request = pb.ModelInferRequest(model_name="simple", **rest)
    for name, number in (("INPUT0", value), ("INPUT1", 1)):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 4])
        request.raw_input_contents.append(np.full(4, number, np.int32).tobytes())
    return request


def words(raw: bytes) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="words", raw_input_contents=[raw])
    request.inputs.add(name="text", datatype="BYTES", shape=[1, 2])
    return request


Spoil = Callable[[pb.ModelInferRequest], None]


def _typed(request: pb.ModelInferRequest, field: str, values: list[Any], datatype: str = "INT32") -> None:
    """Put typed contents into both inputs in place of the raw ones; INPUT1 is the one that is spoilt."""
    del request.raw_input_contents[:]
    request.inputs[0].contents.int_contents.extend([1] * 4)
    request.inputs[1].datatype = datatype
    getattr(request.inputs[1].contents, field).extend(values)


def _reshape(request: pb.ModelInferRequest, *shape: int) -> None:
    request.inputs[1].shape[:] = shape


def _rows(request: pb.ModelInferRequest, rows: int) -> None:
    for position in range(2):
        request.inputs[position].shape[:] = [rows, 4]
        request.raw_input_contents[position] = bytes(16 * rows)


CASES: Final[dict[str, tuple[Spoil, grpc.StatusCode, str]]] = {
    "unknown model": (
        lambda r: setattr(r, "model_name", "nowhere"), NOT_FOUND,
        "Request for unknown model: 'nowhere' is not found",
    ),
    "unknown version": (
        lambda r: setattr(r, "model_version", "9"), NOT_FOUND,
        "Request for unknown model: 'simple' version 9 is not found",
    ),
    "wrong type": (
        lambda r: setattr(r.inputs[1], "datatype", "FP32"), INVALID,
        "inference input 'INPUT1' data-type is 'FP32', but model 'simple' expects 'INT32'",
    ),
    "no type": (
        lambda r: setattr(r.inputs[1], "datatype", "FLOAT"), INVALID,
        "inference input 'INPUT1' has unknown data-type 'FLOAT'",
    ),
    "wrong shape": (
        lambda r: _reshape(r, 1, 2, 2), INVALID,
        "unexpected shape for input 'INPUT1' for model 'simple'. Expected [-1,4], got [1,2,2]",
    ),
    "no batch dimension": (
        lambda r: _reshape(r, 4), INVALID,
        "unexpected shape for input 'INPUT1' for model 'simple'. Expected [-1,4], got [4]",
    ),
    "no shape": (
        _reshape, INVALID,
        "unexpected shape for input 'INPUT1' for model 'simple'. Expected [-1,4], got []",
    ),
    "negative dimension": (
        lambda r: _reshape(r, -1, 4), INVALID,
        "unexpected shape for input 'INPUT1' for model 'simple'. Expected [-1,4], got [-1,4]",
    ),
    "huge dimension": (
        lambda r: _reshape(r, 2**62, 4), INVALID,
        "inference request batch-size must be <= 8 for 'simple'",
    ),
    "no rows": (
        lambda r: _rows(r, 0), INVALID,
        "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,4], got [0,4]",
    ),
    "rows that differ": (
        lambda r: _reshape(r, 2, 4), INVALID,
        "input 'INPUT1' batch size does not match other inputs for 'simple': 2 instead of 1",
    ),
    "too many rows": (
        lambda r: _rows(r, 9), INVALID, "inference request batch-size must be <= 8 for 'simple'",
    ),
    "too few bytes": (
        lambda r: r.raw_input_contents.__setitem__(1, bytes(15)), INVALID,
        "input byte size mismatch for input 'INPUT1' for model 'simple'. Expected 16, got 15",
    ),
    "too many bytes": (
        lambda r: r.raw_input_contents.__setitem__(1, bytes(20)), INVALID,
        "input byte size mismatch for input 'INPUT1' for model 'simple'. Expected 16, got 20",
    ),
    "missing input": (
        lambda r: (r.inputs.pop(), r.raw_input_contents.pop(), None)[2], INVALID,
        ("expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['INPUT0'], "
         "but missing required input(s) ['INPUT1']. Please provide all required input(s)."),
    ),
    "no inputs": (
        lambda r: (r.ClearField("inputs"), r.ClearField("raw_input_contents"), None)[2], INVALID,
        ("expected 2 inputs but got 0 inputs for model 'simple'. Got input(s) [], "
         "but missing required input(s) ['INPUT0', 'INPUT1']. Please provide all required input(s)."),
    ),
    "extra input": (
        lambda r: (r.inputs.add(name="MORE", datatype="INT32"), r.raw_input_contents.append(b""))[1], INVALID,
        "unexpected inference input 'MORE' for model 'simple'",
    ),
    "input given twice": (
        lambda r: setattr(r.inputs[1], "name", "INPUT0"), INVALID, "input 'INPUT0' already exists in request",
    ),
    "unknown output": (
        lambda r: (r.outputs.add(name="MORE"), None)[1], INVALID,
        "unexpected inference output 'MORE' for model 'simple'",
    ),
    "output asked for twice": (
        lambda r: r.outputs.extend([r.InferRequestedOutputTensor(name="OUTPUT0")] * 2), INVALID,
        "output 'OUTPUT0' already exists in request",
    ),
    "raw and typed mixed": (
        lambda r: r.inputs[1].contents.int_contents.extend([1] * 4), INVALID,
        "contents field must not be specified when using raw_input_contents for 'INPUT1' for model 'simple'",
    ),
    "a raw entry too few": (
        lambda r: (r.raw_input_contents.pop(), None)[1], INVALID,
        "raw_input_contents has 1 entries, but input 'INPUT1' for model 'simple' needs one more",
    ),
    "a raw entry too many": (
        lambda r: r.raw_input_contents.append(b""), INVALID,
        "raw_input_contents has 3 entries for model 'simple', expected 2",
    ),
    "typed contents of another type": (
        lambda r: _typed(r, "fp32_contents", [1.0] * 4), INVALID,
        "inference input 'INPUT1' of type INT32 must come in int_contents, not in fp32_contents",
    ),
    "typed contents of another number": (
        lambda r: _typed(r, "int_contents", [1] * 3), INVALID,
        "unexpected number of elements 3 for inference input 'INPUT1', expecting 4",
    ),
    "typed contents that do not fit": (
        lambda r: _typed(r, "int_contents", [128] * 4, "INT8"), INVALID,
        "inference input 'INPUT1' has a value that does not fit INT8",
    ),
    "half precision as typed contents": (
        lambda r: _typed(r, "fp32_contents", [1.0] * 4, "FP16"), INVALID,
        "inference input 'INPUT1' of type FP16 must use raw_input_contents",
    ),
    "priority that is none": (
        lambda r: setattr(r.parameters["priority"], "string_param", "high"), INVALID,
        "parameter 'priority' must be a whole number, not 'high'",
    ),
    "timeout that is none": (
        lambda r: setattr(r.parameters["timeout"], "int64_param", -5), INVALID,
        "parameter 'timeout' must be a whole number of microseconds, not -5",
    ),
    "parameter without a value": (
        lambda r: (r.parameters["empty"], None)[1], INVALID, "parameter 'empty' has no value",
    ),
    "negative classification": (
        lambda r: setattr(r.outputs.add(name="OUTPUT0").parameters["classification"], "int64_param", -1), INVALID,
        "classification of output 'OUTPUT0' must not be negative",
    ),
    "unknown region": (
        lambda r: setattr(r.inputs[1].parameters["shared_memory_region"], "string_param", "none"), NOT_FOUND,
        "Unable to find shared memory region: 'none'",
    ),
}  # fmt: skip

STRINGS: Final[dict[str, tuple[bytes, str]]] = {
    "half a length": (
        b"\1\0\0\0a\1\0", "incomplete string length indicator for inference input 'text': 2 stray bytes at the end",
    ),
    "half an element": (
        b"\1\0\0\0a\xff\0\0\0b",
        "incomplete string data for inference input 'text': element 1 needs 255 bytes, 1 are left",
    ),
    "an element too few": (
        b"\1\0\0\0a", "unexpected number of string elements 1 for inference input 'text', expecting 2",
    ),
    "an element too many": (
        b"\0\0\0\0" * 3, "unexpected number of string elements 3 for inference input 'text', expecting 2",
    ),
}  # fmt: skip

TRITON: Final = {"unknown model": INVALID}
"""Where Triton's own codes differ."""


def run(main: Callable[[FakeServer, Gate], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Call `main` with a server of `simple` and `words`, whose engine stops at the gate."""

    async def whole() -> None:
        gate = Gate()
        simple = await serve_model(SIMPLE, lambda: FakeEngine(SIMPLE, before=gate, answer=add_and_subtract))
        strings = await serve_model(WORDS, lambda: FakeEngine(WORDS))
        async with fake_server(simple, strings, **options) as server:
            await main(server, gate)
        assert simple.meter.in_flight == 0

    asyncio.run(whole())


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def first_of(response: pb.ModelInferResponse) -> int:
    return int(np.frombuffer(response.raw_output_contents[0], np.int32)[0])


@pytest.mark.parametrize("transport", TransportKind)
@pytest.mark.parametrize("codes", StatusCodes)
def test_each_case_has_its_status_and_text_and_harms_no_neighbour(codes: StatusCodes, transport: TransportKind) -> None:
    async def main(server: FakeServer, gate: Gate) -> None:
        for name, (spoil, code, text) in CASES.items():
            bad = good(2, id="bad one")
            spoil(bad)
            gate.rows.clear()
            gate.shut()
            blocker = asyncio.ensure_future(server.stub.ModelInfer(good(0)))
            await gate.wait_arrival()
            before = asyncio.ensure_future(server.stub.ModelInfer(good(10)))
            spoilt = asyncio.ensure_future(refusal(server.stub.ModelInfer(bad)))
            after = asyncio.ensure_future(server.stub.ModelInfer(good(20)))
            error = await spoilt
            await until(lambda: server.models.models["simple", "1"].engines.statistics().queue.requests == 2)
            gate.open()
            assert error.details() == f"[request id: bad one] {text}", name
            assert error.code() is (TRITON.get(name, code) if codes is StatusCodes.TRITON else code), name
            answers = await asyncio.gather(blocker, before, after)
            assert [first_of(answer) for answer in answers] == [1, 11, 21], name
            assert gate.rows == [1, 2], name  # the neighbours ran together, and the bad one with nobody
            await gate.wait_arrival()

    run(main, transport=transport, status_codes=codes)


@pytest.mark.parametrize("case", STRINGS)
def test_broken_framing_of_strings(case: str) -> None:
    async def main(server: FakeServer, gate: Gate) -> None:
        raw, text = STRINGS[case]
        error = await refusal(server.stub.ModelInfer(words(raw)))
        assert (error.code(), error.details()) == (INVALID, text)
        assert (await server.stub.ModelInfer(words(b"\0\0\0\0\1\0\0\0a"))).model_name == "words"

    run(main)


def test_the_text_of_a_call_without_an_id_is_plain() -> None:
    async def main(server: FakeServer, gate: Gate) -> None:
        error = await refusal(server.stub.ModelInfer(good(model_version="9")))
        assert error.details() == "Request for unknown model: 'simple' version 9 is not found"

    run(main)


def test_a_stream_has_the_same_texts_and_goes_on() -> None:
    async def main(server: FakeServer, gate: Gate) -> None:
        requests = []
        for spoil, _, _ in CASES.values():
            requests.append(good(2, id="bad one"))
            spoil(requests[-1])
            requests.append(good(3))
        answers = [answer async for answer in server.stub.ModelStreamInfer(iter(requests))]
        expected = [f"[request id: bad one] {text}" for _, _, text in CASES.values()]
        assert [answer.error_message for answer in answers[::2]] == expected
        assert {answer.infer_response.id for answer in answers[::2]} == {"bad one"}
        assert {first_of(answer.infer_response) for answer in answers[1::2]} == {4}

    run(main)


@pytest.mark.parametrize("transport", TransportKind)
def test_bytes_that_are_no_message(transport: TransportKind) -> None:
    async def main(server: FakeServer, gate: Gate) -> None:
        async with grpc.aio.insecure_channel(server.url) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            assert (await refusal(call(b"\xff" * 100))).code() in UNREADABLE
            stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            assert (await refusal(stream(iter([b"\xff" * 100])).read())).code() in UNREADABLE
        assert first_of(await server.stub.ModelInfer(good(3))) == 4

    run(main, transport=transport)


def test_mutated_requests_never_break_the_server() -> None:
    """Seeded noise over good requests: each is answered, or refused with a status that blames the request."""

    async def code_of(call: Any) -> grpc.StatusCode:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def main(server: FakeServer, gate: Gate) -> None:
        noise = np.random.default_rng(7)
        whole = good(5, id="noise").SerializeToString()
        async with grpc.aio.insecure_channel(server.url) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            codes = set()
            for _ in range(500):
                mutated = bytearray(whole)
                for position in noise.integers(0, len(whole), noise.integers(1, 6)):
                    mutated[position] = noise.integers(0, 256)
                codes.add(await code_of(call(bytes(mutated))))
        assert {INVALID, NOT_FOUND} < codes <= {grpc.StatusCode.OK, INVALID, NOT_FOUND, *UNREADABLE}
        assert first_of(await server.stub.ModelInfer(good(3))) == 4

    run(main)
