"""The ONNX Runtime backend: types, strings, bfloat16, refusals, and the graph cache on disk."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from engines.backends import onnxruntime as backend
from engines.backends.onnxruntime import OnnxRuntimeEngine, Sessions, SessionSource
from engines.backends.options import Accelerator, EngineOptions, GraphLevel
from engines.backends.processor import Processor
from engines.backends.sweep import Layout
from engines.errors import InvalidRequest, LoadFailed
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import BY_LABEL, DType
from tests.support import onnx_models
from tests.support.openvino import PretendOpenVino
from tests.support.repositories import ONNX_TYPES


def spec_of(dtype: DType, digest: str = "d") -> ModelSpec:
    return ModelSpec(
        "identity", 1, "onnxruntime_onnx", (TensorSpec("x0", dtype, (3,)),), (TensorSpec("y0", dtype, (3,)),), 8,
        digest=digest,
    )  # fmt: skip


def engine_for(tmp_path: Path, dtype: DType) -> OnnxRuntimeEngine:
    folder = onnx_models.write(tmp_path, "identity", proto=onnx_models.identity(("batch", 3), ONNX_TYPES[dtype.label]))
    spec = spec_of(dtype)
    return OnnxRuntimeEngine(spec, SessionSource(folder / "1" / "model.onnx", spec, EngineOptions()).open(1))


@pytest.mark.parametrize("label", [label for label in ONNX_TYPES if label != "BYTES"])
@pytest.mark.parametrize("rows", [1, 2, 0])
def test_every_type_comes_back_bit_for_bit(tmp_path: Path, label: str, rows: int) -> None:
    dtype = BY_LABEL[label]
    values = np.array([[0, 1, 2], [3, 4, 5]])[:rows].astype(dtype.numpy)
    outputs = engine_for(tmp_path, dtype).execute({"x0": values}, ["y0"])
    assert outputs["y0"].dtype == dtype.numpy
    assert outputs["y0"].shape == values.shape
    assert outputs["y0"].tobytes() == values.tobytes()


def test_strings(tmp_path: Path) -> None:
    values = np.array([[b"a\0b", "é".encode(), b""]], object)
    outputs = engine_for(tmp_path, DType.BYTES).execute({"x0": values}, ["y0"])
    assert outputs["y0"].tolist() == [["a\0b", "é", ""]]


def test_strings_that_are_not_utf8_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="input 'x0' for model 'identity' holds bytes that are not UTF-8"):
        engine_for(tmp_path, DType.BYTES).execute({"x0": np.array([[b"\xff", b"", b""]], object)}, ["y0"])


def test_bfloat16_answers_outlive_their_session(tmp_path: Path) -> None:
    engine = engine_for(tmp_path, DType.BF16)
    values = np.arange(3 * 1000).reshape(1000, 3).astype(ml_dtypes.bfloat16)
    outputs = engine.execute({"x0": values}, ["y0"])
    expected = values.copy()
    values[:] = 0
    engine.close()
    assert (outputs["y0"] == expected).all()


def test_outputs_do_not_alias_the_inputs(tmp_path: Path) -> None:
    """Staging buffers are overwritten by the next batch."""
    values = np.ones((1, 3), np.float32)
    outputs = engine_for(tmp_path, DType.FP32).execute({"x0": values}, ["y0"])
    values[:] = 7
    assert outputs["y0"].tolist() == [[1, 1, 1]]


def test_what_the_runtime_refuses_is_the_requests_fault(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="model 'identity' refuses the inputs"):
        engine_for(tmp_path, DType.FP32).execute({"x0": np.ones((1, 5), np.float32)}, ["y0"])


def test_indices_out_of_range_are_the_requests_fault_too(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["data", "i"], ["y"])]
    inputs = [
        helper.make_tensor_value_info("data", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("i", TensorProto.INT64, [1]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    folder = onnx_models.write(tmp_path, "gather", proto=onnx_models.model(graph))
    tensors = (TensorSpec("data", DType.FP32, (2,)), TensorSpec("i", DType.INT64, (1,)))
    spec = replace(spec_of(DType.FP32), inputs=tensors)
    engine = OnnxRuntimeEngine(spec, SessionSource(folder / "1" / "model.onnx", spec, EngineOptions()).open(1))
    with pytest.raises(InvalidRequest, match="indices element out of data bounds"):
        engine.execute({"data": np.zeros(2, np.float32), "i": np.array([9])}, ["y"])


class TestGraphCache:
    """Models of some size keep their optimised graph on disk."""

    @pytest.fixture
    def source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SessionSource:
        monkeypatch.setattr(backend, "CACHED_FROM_BYTES", 0)
        folder = onnx_models.write(tmp_path, "identity", proto=onnx_models.identity(("batch", 3)))
        return SessionSource(
            folder / "1" / "model.onnx", spec_of(DType.FP32), EngineOptions(), cache_dir=tmp_path / "cache"
        )

    def cached(self, source: SessionSource) -> list[Path]:
        assert source.cache_dir is not None
        return sorted(source.cache_dir.iterdir()) if source.cache_dir.exists() else []

    def test_the_second_start_reads_what_the_first_has_written(self, source: SessionSource) -> None:
        source.open(1)
        (graph,) = self.cached(source)
        written = graph.stat().st_mtime_ns
        source.model_file.write_bytes(b"never read again" * 100)
        session = source.open(2)
        assert session.run(None, {"x0": np.ones((1, 3), np.float32)})[0].tolist() == [[1, 1, 1]]
        assert self.cached(source) == [graph]
        assert graph.stat().st_mtime_ns == written

    def test_other_models_and_options_have_other_graphs(self, source: SessionSource) -> None:
        source.open(1)
        replace(source, spec=spec_of(DType.FP32, digest="another")).open(1)
        replace(source, options=EngineOptions(graph_level=GraphLevel.BASIC)).open(1)
        assert len(self.cached(source)) == 3

    def test_a_spoilt_graph_is_made_anew(self, source: SessionSource, caplog: pytest.LogCaptureFixture) -> None:
        source.open(1)
        (graph,) = self.cached(source)
        graph.write_bytes(b"spoilt")
        with caplog.at_level(logging.WARNING):
            source.open(1)
        assert "is unusable and made anew" in caplog.text
        assert graph.read_bytes() != b"spoilt"
        assert self.cached(source) == [graph]

    def test_small_models_and_those_without_a_digest_are_not_kept(
        self, source: SessionSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replace(source, spec=spec_of(DType.FP32, digest="")).open(1)
        replace(source, cache_dir=None).open(1)
        monkeypatch.setattr(backend, "CACHED_FROM_BYTES", 10**6)
        source.open(1)
        assert self.cached(source) == []

    def test_a_cache_that_cannot_be_written_does_not_stop_the_server(
        self, source: SessionSource, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert source.cache_dir is not None
        source.cache_dir.write_text("a file where the folder should be")
        assert source.open(1).run(None, {"x0": np.ones((1, 3), np.float32)})[0].tolist() == [[1, 1, 1]]
        assert "no optimised graph can be kept" in caplog.text

    def test_a_model_that_cannot_be_opened_says_so(self, source: SessionSource) -> None:
        source.model_file.write_bytes(b"no model")
        with pytest.raises(Exception, match="Protobuf parsing failed"):
            source.open(1)
        assert self.cached(source) == []


class TestOpenVino:
    """What ONNX Runtime is asked for where the configuration names OpenVINO."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> SessionSource:
        folder = onnx_models.write(tmp_path, "identity", proto=onnx_models.identity(("batch", 3)))
        options = EngineOptions(accelerator=Accelerator.OPENVINO)
        return SessionSource(folder / "1" / "model.onnx", spec_of(DType.FP32), options, cache_dir=tmp_path / "cache")

    def test_a_runtime_without_it_is_refused_with_the_way_out(self, source: SessionSource) -> None:
        with pytest.raises(LoadFailed, match="without OpenVINO; install onnxruntime-openvino in place of onnxruntime"):
            source.open(1)

    def test_it_is_told_threads_and_streams_and_may_not_fall_back(
        self, source: SessionSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretended = PretendOpenVino.install(monkeypatch)
        monkeypatch.setattr(backend, "CACHED_FROM_BYTES", 0)
        session = source.open(2, streams=3)
        assert session.run(None, {"x0": np.ones((1, 3), np.float32)})[0].tolist() == [[1, 1, 1]]
        assert pretended.opened == [{"device_type": "CPU", "num_of_threads": "6", "num_streams": "3"}]
        assert source.cache_dir is not None
        assert not source.cache_dir.exists()

    def test_bf16_needs_a_processor_that_multiplies_it(
        self, source: SessionSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretended = PretendOpenVino.install(monkeypatch)
        able, unable = Processor("able", exact_int8=True, bf16=True), Processor("unable", exact_int8=True)
        in_bf16 = replace(source, options=EngineOptions(accelerator=Accelerator.OPENVINO_BF16))
        with pytest.raises(LoadFailed, match="does not multiply BF16"):
            replace(in_bf16, processor=unable).open(1)
        replace(in_bf16, processor=able).open(1)
        assert "bf16" in pretended.opened[0]["load_config"]
        assert backend.offered(able) == tuple(Accelerator)
        assert backend.offered(unable) == (Accelerator.OPENVINO,)

    def test_layouts_share_a_session_only_where_it_takes_any_number_of_executions(
        self, source: SessionSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        PretendOpenVino.install(monkeypatch)
        one, two = Layout(1, 1), Layout(2, 1)
        accelerated = Sessions(source)
        assert accelerated.get(one) is not accelerated.get(two)
        assert accelerated.get(two) is accelerated.get(two)
        own = Sessions(replace(source, options=EngineOptions()))
        assert own.get(one) is own.get(two)
        assert own.get(one) is not own.get(Layout(1, 2))
