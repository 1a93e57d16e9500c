"""ONNX Runtime on a GPU, as a Runner: memory that is bound once, our stream, its own CUDA graphs.

A session computes on the one stream that it is made with, so each instance has a session of its own, weights
included: one instance with two batches in flight is nearly always the better use of memory.

ONNX Runtime captures graphs by itself (`enable_cuda_graph`): under a number for each slot and shape it runs as usual
first, captures then, and replays from then on, for which addresses must stay the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort
from onnx import TensorProto

from engines.backends.cuda.api import CudaDevice, CudaError
from engines.backends.options import EngineOptions, GpuOptions
from engines.backends.streamed import Shape, Shapes, StreamedEngine
from engines.errors import EngineFailed, LoadFailed
from engines.spec import ModelSpec
from engines.tensor import DType, elements

log = logging.getLogger(__name__)

PROVIDER: Final = "CUDAExecutionProvider"
NO_SYNC: Final = "disable_synchronize_execution_providers"
"""Run option: return once all is queued. Who needs the outputs waits for the stream."""
GRAPH_ID: Final = "gpu_graph_id"
NO_GRAPH: Final = "-1"

ELEMENTS: Final[Mapping[DType, int]] = {
    DType.BOOL: TensorProto.BOOL,
    DType.UINT8: TensorProto.UINT8,
    DType.UINT16: TensorProto.UINT16,
    DType.UINT32: TensorProto.UINT32,
    DType.UINT64: TensorProto.UINT64,
    DType.INT8: TensorProto.INT8,
    DType.INT16: TensorProto.INT16,
    DType.INT32: TensorProto.INT32,
    DType.INT64: TensorProto.INT64,
    DType.FP16: TensorProto.FLOAT16,
    DType.BF16: TensorProto.BFLOAT16,
    DType.FP32: TensorProto.FLOAT,
    DType.FP64: TensorProto.DOUBLE,
}

MAX_GRAPHS: Final = 256
"""Graphs that ONNX Runtime is let to capture; it never gives one up, so further shapes run without."""
MAX_BOUND: Final = 1024
"""Bindings that are kept for shapes that come again."""

_STICKY_WORDS: Final = {
    "an illegal memory access": "CUDA_ERROR_ILLEGAL_ADDRESS",
    "unspecified launch failure": "CUDA_ERROR_LAUNCH_FAILED",
    "misaligned address": "CUDA_ERROR_MISALIGNED_ADDRESS",
    "uncorrectable ECC": "CUDA_ERROR_ECC_UNCORRECTABLE",
}
"""ONNX Runtime passes CUDA's errors on in words."""

OpenSession = Callable[[int, int], Any]
"""Makes a session for a device's index that computes on a stream."""


def session_opener(model_file: Path, options: EngineOptions, gpu: GpuOptions) -> OpenSession:
    """Sessions of one model. Raises LoadFailed where ONNX Runtime has no CUDA."""
    if PROVIDER not in ort.get_available_providers():
        raise LoadFailed(
            "this ONNX Runtime runs on processors only: install onnxruntime-gpu in its place, see docs/gpu.md"
        )
    if hasattr(ort, "preload_dlls"):  # CUDA's libraries may be Python packages, where the linker does not look
        ort.preload_dlls()

    def open_session(device: int, stream: int) -> Any:  # noqa: ANN401  (a class without types)
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = 1
        for key, value in options.session_config.items():
            settings.add_session_config_entry(key, value)
        provider = {
            "device_id": str(device),
            "user_compute_stream": str(stream),
            "enable_cuda_graph": str(int(gpu.stream.graphs)),
            **gpu.provider,
        }
        return ort.InferenceSession(str(model_file), settings, providers=[(PROVIDER, provider), "CPUExecutionProvider"])

    return open_session


@dataclass(slots=True)
class _Bound:
    """A binding, and the addresses that it is for."""

    binding: Any
    addresses: Mapping[str, int]
    graph: str


class OrtCudaRunner:
    """A Runner."""

    graphs = False  # ONNX Runtime captures by itself

    def __init__(self, spec: ModelSpec, device: CudaDevice, open_session: OpenSession, *, own_graphs: bool) -> None:
        self.spec = spec
        self.capacity = _capacity(spec)
        self._device = device
        self._open_session = open_session
        self._own_graphs = own_graphs
        self._graphs = 0
        self._session: Any = None
        self._bound: dict[object, _Bound] = {}
        self._last: dict[int, Any] = {}
        self._outputs = [tensor.name for tensor in spec.outputs]
        for tensor in (*spec.inputs, *spec.outputs):
            if tensor.dtype not in ELEMENTS:
                raise LoadFailed(f"'{tensor.name}' is {tensor.dtype.label}, which has no place on a GPU")

    def open(self, stream: int) -> None:
        """See Runner.open."""
        self._session = self._open_session(self._device.info.index, stream)

    def prepare(self, shapes: Shapes) -> Mapping[str, Shape | None]:
        """See Runner.prepare."""
        lead: Shape = (next(iter(shapes.values()))[0],) if self.spec.batched else ()
        return {tensor.name: (*lead, *tensor.shape) if tensor.fixed else None for tensor in self.spec.outputs}

    def enqueue(self, slot: int, shapes: Shapes, addresses: Mapping[str, int], stream: int, consumed: int) -> bool:  # noqa: ARG002
        """See Runner.enqueue; the session computes on the stream that it was opened with."""
        key = (slot, tuple(sorted(shapes.items())))
        bound = self._bound.get(key)
        if bound is None or bound.addresses != addresses:
            if len(self._bound) >= MAX_BOUND:
                self._bound.clear()
            bound = self._bound[key] = self._bind(shapes, addresses)
        options = ort.RunOptions()
        options.add_run_config_entry(NO_SYNC, "1")
        if self._own_graphs:
            options.add_run_config_entry(GRAPH_ID, bound.graph)
        try:
            self._session.run_with_iobinding(bound.binding, options)
        except Exception as error:
            raise _failure(error) from error
        self._last[slot] = bound.binding
        return False

    def found(self, slot: int, name: str) -> tuple[int, Shape]:
        """See Runner.found."""
        value = self._last[slot].get_outputs()[self._outputs.index(name)]
        return int(value.data_ptr()), tuple(value.shape())

    def close(self) -> None:
        """See Runner.close."""
        self._bound.clear()
        self._last.clear()
        self._session = None

    def _bind(self, shapes: Shapes, addresses: Mapping[str, int]) -> _Bound:
        device = self._device.info.index
        binding = self._session.io_binding()
        for tensor in self.spec.inputs:
            if tensor.name in shapes:
                kind = ELEMENTS[tensor.dtype]
                binding.bind_input(tensor.name, "cuda", device, kind, shapes[tensor.name], addresses[tensor.name])
        outputs = self.prepare(shapes)
        for tensor in self.spec.outputs:
            shape = outputs[tensor.name]
            if shape is None:
                binding.bind_output(tensor.name, "cuda", device)
            else:
                kind = ELEMENTS[tensor.dtype]
                binding.bind_output(tensor.name, "cuda", device, kind, shape, addresses[tensor.name])
        # Memory that ONNX Runtime finds anew each time cannot be in a graph.
        fixed = None not in outputs.values()
        if not fixed or self._graphs >= MAX_GRAPHS:
            return _Bound(binding, dict(addresses), NO_GRAPH)
        self._graphs += 1
        return _Bound(binding, dict(addresses), str(self._graphs - 1))


def _capacity(spec: ModelSpec) -> Mapping[str, int]:
    return {
        tensor.name: max(1, spec.max_rows) * elements(tensor.shape) * tensor.dtype.size
        for tensor in (*spec.inputs, *spec.outputs)
        if tensor.fixed
    }


def _failure(error: Exception) -> Exception:
    for words, name in _STICKY_WORDS.items():
        if words in str(error):
            return CudaError(name, str(error))
    return EngineFailed(f"ONNX Runtime failed on the GPU: {error}", retryable=True)


def cuda_source(
    spec: ModelSpec, model_file: Path, options: EngineOptions, gpu: GpuOptions
) -> Callable[[CudaDevice], StreamedEngine]:
    """Opens instances of a model on any of the devices. Raises LoadFailed where ONNX Runtime has no CUDA."""
    open_session = session_opener(model_file, options, gpu)

    def open_on(device: CudaDevice) -> StreamedEngine:
        runner = OrtCudaRunner(spec, device, open_session, own_graphs=gpu.stream.graphs)
        return StreamedEngine(device, runner, gpu.stream)

    return open_on
