"""tritonclient, blocking: inference and everything that is asked about a server."""

from __future__ import annotations

import queue

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.testing import assert_array_equal
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.integration

ROW = np.arange(16, dtype=np.int32).reshape(1, 16)


def simple_inputs(first: np.ndarray = ROW, second: np.ndarray = ROW) -> list[triton.InferInput]:
    inputs = []
    for name, values in (("INPUT0", first), ("INPUT1", second)):
        inputs.append(triton.InferInput(name, values.shape, "INT32"))
        inputs[-1].set_data_from_numpy(values)
    return inputs


def test_it_is_live_and_ready(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("digits", "9")
    assert not client.is_model_ready("nowhere")


def test_metadata_of_the_server_lists_what_works(client: triton.InferenceServerClient) -> None:
    metadata = client.get_server_metadata(as_json=True)
    assert metadata["name"] == "kairos"
    assert {"statistics", "classification", "system_shared_memory"} <= set(metadata["extensions"])
    assert "cuda_shared_memory" not in metadata["extensions"]
    assert "sequence" not in metadata["extensions"]


def test_metadata_of_a_model_has_the_batch_dimension(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("digits", as_json=True)
    assert metadata["versions"] == ["1", "2"]
    assert metadata["platform"] == "onnxruntime_onnx"
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": ["-1", "1", "8", "8"]}]
    assert client.get_model_metadata("digits", "1", as_json=True)["versions"] == ["1"]
    assert client.get_model_metadata("unbatched", as_json=True)["inputs"][0]["shape"] == ["-1"]


def test_the_configuration_is_complete(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("simple", as_json=True)["config"]
    assert config["name"] == "simple"
    assert config["max_batch_size"] == 8
    assert config["backend"] == "onnxruntime"
    assert {tensor["name"]: tensor["dims"] for tensor in config["input"]} == {"INPUT0": ["16"], "INPUT1": ["16"]}


def test_one_row(client: triton.InferenceServerClient) -> None:
    result = client.infer("simple", simple_inputs(), request_id="seventh")
    assert_array_equal(result.as_numpy("OUTPUT0"), ROW + ROW)
    assert_array_equal(result.as_numpy("OUTPUT1"), ROW - ROW)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("seventh", "simple", "1")


def test_several_rows_in_one_request(client: triton.InferenceServerClient) -> None:
    first = np.arange(5 * 16, dtype=np.int32).reshape(5, 16)
    second = first[::-1].copy()
    result = client.infer("simple", simple_inputs(first, second))
    assert_array_equal(result.as_numpy("OUTPUT0"), first + second)
    assert_array_equal(result.as_numpy("OUTPUT1"), first - second)


def test_only_the_outputs_asked_for_come_in_the_order_asked(client: triton.InferenceServerClient) -> None:
    only = client.infer("simple", simple_inputs(), outputs=[triton.InferRequestedOutput("OUTPUT1")])
    assert [output.name for output in only.get_response().outputs] == ["OUTPUT1"]
    assert only.as_numpy("OUTPUT0") is None
    wanted = [triton.InferRequestedOutput(name) for name in ("OUTPUT1", "OUTPUT0")]
    both = client.infer("simple", simple_inputs(), outputs=wanted)
    assert [output.name for output in both.get_response().outputs] == ["OUTPUT1", "OUTPUT0"]
    assert_array_equal(both.as_numpy("OUTPUT0"), ROW + ROW)


def test_an_optional_input_may_be_left_out(client: triton.InferenceServerClient) -> None:
    rows = triton.InferInput("x", [1, 4], "FP32").set_data_from_numpy(np.ones((1, 4), np.float32))
    factor = triton.InferInput("factor", [1], "FP32").set_data_from_numpy(np.array([3.0], np.float32))
    assert_array_equal(client.infer("optional", [rows]).as_numpy("y"), np.full((1, 4), 2.0))
    assert_array_equal(client.infer("optional", [rows, factor]).as_numpy("y"), np.full((1, 4), 3.0))


def test_inputs_may_come_in_any_order(client: triton.InferenceServerClient) -> None:
    result = client.infer("simple", simple_inputs(ROW * 3, ROW)[::-1])
    assert_array_equal(result.as_numpy("OUTPUT1"), ROW * 2)


def test_concurrent_calls_do_not_get_each_others_rows(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[int, triton.InferResult | None, Exception | None]] = queue.Queue()
    for number in range(64):
        row = np.full((1, 16), number, np.int32)
        client.async_infer(
            "simple", simple_inputs(row, row), lambda result, error, number=number: answers.put((number, result, error))
        )
    for _ in range(64):
        number, result, error = answers.get(timeout=30)
        assert error is None
        assert result is not None
        assert (result.as_numpy("OUTPUT0") == number * 2).all()


def test_request_parameters_are_taken(client: triton.InferenceServerClient) -> None:
    result = client.infer(
        "simple", simple_inputs(), priority=1, timeout=10_000_000, parameters={"own": "text", "number": 3, "yes": True}
    )
    assert_array_equal(result.as_numpy("OUTPUT0"), ROW * 2)


def test_a_gzipped_call_is_answered(client: triton.InferenceServerClient) -> None:
    result = client.infer("simple", simple_inputs(), compression_algorithm="gzip")
    assert_array_equal(result.as_numpy("OUTPUT0"), ROW * 2)


def test_a_large_tensor_goes_through(client: triton.InferenceServerClient) -> None:
    values = np.random.default_rng(0).standard_normal((1, 3_000_000), np.float32)
    rows = triton.InferInput("x0", values.shape, "FP32").set_data_from_numpy(values)
    assert_array_equal(client.infer("variable", [rows]).as_numpy("y0"), values)


def test_classification_gives_scores_indices_and_labels(client: triton.InferenceServerClient) -> None:
    images = triton.InferInput("image", [2, 1, 8, 8], "FP32").set_data_from_numpy(np.ones((2, 1, 8, 8), np.float32))
    outputs = [
        triton.InferRequestedOutput("probabilities", class_count=3),
        triton.InferRequestedOutput("logits"),
    ]
    result = client.infer("digits", [images], outputs=outputs)
    logits, classes = result.as_numpy("logits"), result.as_numpy("probabilities")
    assert classes.shape == (2, 3)
    labels = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for row in range(2):
        parts = [entry.decode().split(":") for entry in classes[row]]
        assert [int(index) for _, index, _ in parts] == np.argsort(-logits[row])[:3].tolist()
        assert [label for *_, label in parts] == [labels[int(index)] for _, index, _ in parts]
        scores = [float(score) for score, *_ in parts]
        assert scores == sorted(scores, reverse=True)


def test_the_index_names_every_version(client: triton.InferenceServerClient) -> None:
    rows = client.get_model_repository_index(as_json=True)["models"]
    states = {(row["name"], row["version"]): row["state"] for row in rows}
    assert states["digits", "1"] == states["digits", "2"] == "READY"
    assert ("simple", "1") in states


def test_control_is_refused_where_the_server_decides(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed") as refusal:
        client.load_model("simple")
    assert refusal.value.status() == "StatusCode.UNAVAILABLE"


def test_cuda_shared_memory_is_refused_honestly(client: triton.InferenceServerClient) -> None:
    assert client.get_cuda_shared_memory_status(as_json=True) == {}
    with pytest.raises(InferenceServerException, match="needs a server with a GPU") as refusal:
        client.register_cuda_shared_memory("region", b"aGFuZGxl", 0, 64)
    assert refusal.value.status() == "StatusCode.UNIMPLEMENTED"
