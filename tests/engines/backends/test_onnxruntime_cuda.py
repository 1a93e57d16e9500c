"""ONNX Runtime's CUDA backend, with sessions that compute on the processor in a fake GPU's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from engines.backends.cuda.fake import FakeDevice
from engines.backends.onnxruntime_cuda import ELEMENTS, PROVIDER, OrtCudaRunner, session_opener
from engines.backends.options import EngineOptions, GpuOptions, StreamOptions
from engines.backends.streamed import StreamedEngine
from engines.errors import EngineDied, EngineFailed, LoadFailed
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType
from tests.support.cuda_sessions import Session


def save(path: Path, nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any]) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def squares(tmp_path: Path) -> tuple[Path, ModelSpec]:
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Mul", ["x", "x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    given, made = (TensorSpec("x", DType.FP32, (4,)),), (TensorSpec("y", DType.FP32, (4,)),)
    return path, ModelSpec("squares", 1, "onnxruntime_onnx", given, made, 8)


def opened(
    path: Path, spec: ModelSpec, device: FakeDevice, *, own_graphs: bool = True
) -> tuple[StreamedEngine, list[Session]]:
    sessions: list[Session] = []

    def open_session(index: int, stream: int) -> Session:
        sessions.append(Session(path, device, stream))
        return sessions[-1]

    runner = OrtCudaRunner(spec, device, open_session, own_graphs=own_graphs)
    return StreamedEngine(device, runner, StreamOptions()), sessions


@pytest.mark.parametrize("seed", range(6))
def test_batches_are_answered_from_bound_memory_on_our_stream(seed: int, tmp_path: Path) -> None:
    device = FakeDevice(seed=seed)
    path, spec = squares(tmp_path)
    engine, (session,) = opened(path, spec, device)
    for number in range(12):
        given = np.full((1 + number % 3, 4), number, np.float32)
        assert np.array_equal(engine.execute({"x": given}, ["y"])["y"], given * given)
    # A number for each slot and shape, the same when they come again.
    assert session.graph_ids == [*map(str, range(6))] * 2
    engine.close()
    assert device.leaks == {}


def test_outputs_of_unknown_size_stay_with_onnx_runtime_and_out_of_graphs(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("NonZero", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1, "found"])],
    )
    given, made = (TensorSpec("x", DType.FP32, (8,)),), (TensorSpec("y", DType.INT64, (1, -1)),)
    engine, (session,) = opened(path, ModelSpec("where", 1, "onnxruntime_onnx", given, made), FakeDevice(seed=2))
    for ones in (3, 8, 0):
        array = np.zeros(8, np.float32)
        array[:ones] = 1
        assert np.array_equal(engine.execute({"x": array}, ["y"])["y"], np.arange(ones)[None])
    assert set(session.graph_ids) == {"-1"}


def test_an_error_of_the_device_ends_the_engine_and_another_only_the_batch(tmp_path: Path) -> None:
    path, spec = squares(tmp_path)
    engine, (session,) = opened(path, spec, FakeDevice())
    given = {"x": np.ones((1, 4), np.float32)}
    session.error = RuntimeError("CUDNN failure")
    with pytest.raises(EngineFailed, match="CUDNN failure") as failure:
        engine.execute(given, ["y"])
    assert failure.value.retryable
    session.error = None
    assert engine.execute(given, ["y"])["y"][0, 0] == 1
    session.error = RuntimeError("CUDA failure 700: an illegal memory access was encountered")
    with pytest.raises(EngineDied, match="ILLEGAL_ADDRESS"):
        engine.execute(given, ["y"])


def test_text_has_no_place_on_a_gpu() -> None:
    spec = ModelSpec("text", 1, "onnxruntime_onnx", (TensorSpec("x", DType.BYTES, (1,)),), (), 8)
    with pytest.raises(LoadFailed, match="'x' is BYTES"):
        OrtCudaRunner(spec, FakeDevice(), lambda *_: None, own_graphs=True)
    assert set(ELEMENTS) == set(DType) - {DType.BYTES}


def test_sessions_get_our_stream_and_the_models_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if PROVIDER not in ort.get_available_providers():
        with pytest.raises(LoadFailed, match="onnxruntime-gpu"):
            session_opener(tmp_path / "m.onnx", EngineOptions(), GpuOptions())
    made: list[Any] = []
    monkeypatch.setattr(ort, "get_available_providers", lambda: [PROVIDER])
    monkeypatch.setattr(ort, "preload_dlls", lambda: made.append("libraries"), raising=False)
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, providers: made.append(providers))
    gpu = GpuOptions(provider={"gpu_mem_limit": "1024"}, stream=StreamOptions(graphs=False))
    session_opener(tmp_path / "m.onnx", EngineOptions(), gpu)(1, 77)
    wanted = {"device_id": "1", "user_compute_stream": "77", "enable_cuda_graph": "0", "gpu_mem_limit": "1024"}
    assert made == ["libraries", [(PROVIDER, wanted), "CPUExecutionProvider"]]
