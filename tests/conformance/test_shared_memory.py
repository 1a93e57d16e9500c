"""Tensors through POSIX shared memory, with tritonclient's own tools."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.testing import assert_array_equal
from tritonclient.utils import InferenceServerException, shared_memory

pytestmark = pytest.mark.integration

ROW: Final = np.arange(16, dtype=np.int32).reshape(1, 16)
REST: Final = ROW[::-1] * 3

Create = Callable[[str, int], Any]


@pytest.fixture
def create(client: triton.InferenceServerClient) -> Iterator[Create]:
    """Makes and registers a region; takes all of them away at the end."""
    with contextlib.ExitStack() as regions:

        def make(name: str, size: int) -> Any:
            key = f"/kairos-test-{os.getpid()}-{name}"
            handle = shared_memory.create_shared_memory_region(name, key, size)
            regions.callback(shared_memory.destroy_shared_memory_region, handle)
            client.register_system_shared_memory(name, key, size)
            regions.callback(client.unregister_system_shared_memory, name)
            return handle

        yield make


def placed(name: str, region: str, offset: int = 0) -> triton.InferInput:
    given = triton.InferInput(name, [1, 16], "INT32")
    given.set_shared_memory(region, 64, offset=offset)
    return given


def sent(name: str, values: np.ndarray) -> triton.InferInput:
    return triton.InferInput(name, [1, 16], "INT32").set_data_from_numpy(values)


def test_inputs_and_outputs(client: triton.InferenceServerClient, create: Create) -> None:
    given, answered = create("given", 128), create("answered", 128)
    shared_memory.set_shared_memory_region(given, [ROW, REST])
    outputs = []
    for offset, name in ((0, "OUTPUT0"), (64, "OUTPUT1")):
        outputs.append(triton.InferRequestedOutput(name))
        outputs[-1].set_shared_memory("answered", 64, offset=offset)
    result = client.infer("simple", [placed("INPUT0", "given"), placed("INPUT1", "given", 64)], outputs=outputs)
    assert_array_equal(shared_memory.get_contents_as_numpy(answered, np.int32, [1, 16]), ROW + REST)
    assert_array_equal(shared_memory.get_contents_as_numpy(answered, np.int32, [1, 16], offset=64), ROW - REST)
    parameters = result.get_output("OUTPUT1").parameters
    assert parameters["shared_memory_region"].string_param == "answered"
    assert parameters["shared_memory_offset"].int64_param == 64
    assert parameters["shared_memory_byte_size"].int64_param == 64


@pytest.mark.parametrize("shared", ["INPUT0", "INPUT1"])
def test_one_input_of_two(client: triton.InferenceServerClient, create: Create, shared: str) -> None:
    shared_memory.set_shared_memory_region(create("given", 64), [ROW])
    inputs = [placed(name, "given") if name == shared else sent(name, REST) for name in ("INPUT0", "INPUT1")]
    result = client.infer("simple", inputs)
    assert_array_equal(result.as_numpy("OUTPUT0"), ROW + REST)
    assert_array_equal(result.as_numpy("OUTPUT1"), ROW - REST if shared == "INPUT0" else REST - ROW)


def test_one_output_of_two(client: triton.InferenceServerClient, create: Create) -> None:
    answered = create("answered", 64)
    outputs = [triton.InferRequestedOutput("OUTPUT0"), triton.InferRequestedOutput("OUTPUT1")]
    outputs[0].set_shared_memory("answered", 64)
    result = client.infer("simple", [sent("INPUT0", ROW), sent("INPUT1", REST)], outputs=outputs)
    assert_array_equal(shared_memory.get_contents_as_numpy(answered, np.int32, [1, 16]), ROW + REST)
    assert_array_equal(result.as_numpy("OUTPUT1"), ROW - REST)


def test_strings(client: triton.InferenceServerClient, create: Create) -> None:
    values = np.array([[b"shared\0string", b"", b"third"]], object)
    framed = b"".join(len(value).to_bytes(4, "little") + value for value in values.ravel())
    given = create("given", len(framed))
    given._mpsm_handle.buf[: len(framed)] = framed
    words = triton.InferInput("x0", [1, 3], "BYTES")
    words.set_shared_memory("given", len(framed))
    assert_array_equal(client.infer("identity_bytes", [words]).as_numpy("y0"), values)


def test_status_and_unregister(client: triton.InferenceServerClient, create: Create) -> None:
    create("first", 64)
    create("second", 128)
    regions = client.get_system_shared_memory_status(as_json=True)["regions"]
    assert set(regions) == {"first", "second"}
    assert regions["second"]["byte_size"] == "128"
    only = client.get_system_shared_memory_status("first", as_json=True)["regions"]
    assert set(only) == {"first"}
    client.unregister_system_shared_memory("first")
    assert set(client.get_system_shared_memory_status(as_json=True)["regions"]) == {"second"}
    client.unregister_system_shared_memory()
    assert client.get_system_shared_memory_status(as_json=True) == {}


def test_a_name_in_use_is_refused(client: triton.InferenceServerClient, create: Create) -> None:
    create("taken", 64)
    with pytest.raises(InferenceServerException, match="shared memory region 'taken' already in manager") as refusal:
        client.register_system_shared_memory("taken", "/anything", 64)
    assert refusal.value.status() == "StatusCode.ALREADY_EXISTS"


def test_a_region_that_is_not_registered_is_named(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'nowhere'"):
        client.infer("simple", [placed("INPUT0", "nowhere"), sent("INPUT1", REST)])


def test_a_tensor_beyond_its_region_is_refused(client: triton.InferenceServerClient, create: Create) -> None:
    create("given", 64)
    with pytest.raises(InferenceServerException, match=r"Invalid offset .* 'given'") as refusal:
        client.infer("simple", [placed("INPUT0", "given", 4), sent("INPUT1", REST)])
    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_an_output_that_does_not_fit_is_refused_and_nothing_is_written(
    client: triton.InferenceServerClient, create: Create
) -> None:
    answered = create("answered", 64)
    shared_memory.set_shared_memory_region(answered, [np.full(16, 7, np.int32)])
    wanted = triton.InferRequestedOutput("OUTPUT0")
    wanted.set_shared_memory("answered", 60)
    with pytest.raises(InferenceServerException, match=r"output 'OUTPUT0'.*should be at least 64 bytes"):
        client.infer("simple", [sent("INPUT0", ROW), sent("INPUT1", REST)], outputs=[wanted])
    assert (shared_memory.get_contents_as_numpy(answered, np.int32, [16]) == 7).all()
