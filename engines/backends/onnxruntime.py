"""ONNX Runtime on the CPU, with its own kernels or with OpenVINO's.

All instances of a model share one session, and so one copy of its weights: `InferenceSession.run` may be called by
many threads at once and releases the GIL. Plain `run` is used and not IOBinding: on a CPU binding saves no copy, and
costs more calls than it saves (10.1 against 8.1 microseconds for a 16 x 16 product).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnx import TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from engines.backends.options import Accelerator, EngineOptions, GraphLevel
from engines.backends.processor import PRECISION_KEY, Processor, this_processor
from engines.backends.sweep import Layout
from engines.errors import InvalidRequest, LoadFailed
from engines.spec import ModelSpec
from engines.tensor import Array, DType

log = logging.getLogger(__name__)

_LEVELS: Final = {
    GraphLevel.OFF: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    GraphLevel.BASIC: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    GraphLevel.EXTENDED: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    GraphLevel.ALL: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_ERRORS_ONLY: Final = 3
_CPU: Final = "CPUExecutionProvider"
_OPENVINO: Final = "OpenVINOExecutionProvider"
_IN_BF16: Final = json.dumps({"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}})

_OUT_OF_MEMORY: Final = ("Failed to allocate memory", "bad_alloc", "bad allocation")
"""What ONNX Runtime says when it gets no memory: it has no error class for that."""

CACHED_FROM_BYTES: Final = 4 << 20
CACHED_TO_BYTES: Final = 1 << 30
"""Models between these sizes keep their optimised graph on disk: smaller ones are optimised in milliseconds, larger
ones would not fit into one protobuf message."""


class OnnxRuntimeEngine:
    """One instance: a session, shared with other instances, and the conversions its types need."""

    def __init__(self, spec: ModelSpec, session: ort.InferenceSession) -> None:
        self._spec = spec
        self._session = session
        dtypes = {tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
        self._text = [tensor.name for tensor in spec.inputs if tensor.dtype is DType.BYTES]
        self._bfloat = DType.BF16 in dtypes

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    def execute(self, inputs: Mapping[str, Array], wanted: Collection[str]) -> Mapping[str, Array]:
        """See Engine.execute."""
        feeds = dict(inputs)
        for name in self._text:
            if name in feeds:
                feeds[name] = self._as_text(name, feeds[name])
        names = list(wanted)
        try:
            outputs = self._run_values(names, feeds) if self._bfloat else self._session.run(names, feeds)
        except InvalidArgument as error:
            raise InvalidRequest(f"model '{self._spec.name}' refuses the inputs: {error}") from error
        except Exception as error:
            if any(words in str(error) for words in _OUT_OF_MEMORY):
                raise MemoryError("out of memory") from error
            raise
        return dict(zip(names, outputs, strict=True))

    def close(self) -> None:
        """See Engine.close. The session goes with its last instance."""
        del self._session

    def _as_text(self, name: str, array: Array) -> Array:
        text = np.empty(array.size, object)
        try:
            text[:] = [value.decode() for value in array.ravel()]
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"inference input '{name}' for model '{self._spec.name}' holds bytes that are not UTF-8, "
                f"which ONNX strings must be: {error.reason} at byte {error.start}"
            ) from error
        return text.reshape(array.shape)

    def _run_values(self, names: list[str], feeds: dict[str, Array]) -> list[Array]:
        """Run with bfloat16 among the types, which ONNX Runtime neither takes from nor gives to NumPy."""
        values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)
            if array.dtype == ml_dtypes.bfloat16
            else ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in feeds.items()
        }
        return [_from_value(value) for value in self._session.run_with_ort_values(names, values)]


def _from_value(value: ort.OrtValue) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    shape: list[int] = value.shape()
    halves = (ctypes.c_uint16 * int(np.prod(shape))).from_address(value.data_ptr())
    copied: Array = np.array(halves, np.uint16).view(ml_dtypes.bfloat16).reshape(shape)
    return copied


@dataclass(frozen=True, slots=True)
class SessionSource:
    """Where sessions of one model come from."""

    model_file: Path
    spec: ModelSpec
    options: EngineOptions
    cache_dir: Path | None = None
    """Folder for optimised graphs. None: optimise at each start."""
    processor: Processor = field(default_factory=this_processor)

    def open(self, intra_op_threads: int, streams: int = 1) -> ort.InferenceSession:
        """A new session. Raises LoadFailed, or what ONNX Runtime raises for a model that it cannot run."""
        if self.options.accelerator is not None:
            return self._accelerated(self.options.accelerator, intra_op_threads, streams)
        cached = self._cached_graph()
        if cached is not None and cached.exists():
            settings = self._settings(intra_op_threads)
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            try:
                return _session(cached, settings)
            except Exception as error:  # noqa: BLE001  (whatever is wrong with it, the original is still there)
                log.warning("optimised graph %s is unusable and made anew: %s", cached, error)
                cached.unlink(missing_ok=True)
        if cached is not None:
            try:
                return self._open_and_keep(cached, self._settings(intra_op_threads))
            except Exception as error:  # noqa: BLE001  (a full or read-only disk; a bad model raises again below)
                log.warning("no optimised graph can be kept at %s: %s", cached, error)
        return _session(self.model_file, self._settings(intra_op_threads))

    def _accelerated(self, accelerator: Accelerator, threads: int, streams: int) -> ort.InferenceSession:
        """OpenVINO optimises the graph by itself, so it gets it as it is; what it compiles cannot be kept as ONNX."""
        if _OPENVINO not in ort.get_available_providers():
            raise LoadFailed(
                f"optimization.execution_accelerators: ONNX Runtime {ort.__version__} was installed without OpenVINO; "
                "install onnxruntime-openvino in place of onnxruntime"
            )
        if accelerator is Accelerator.OPENVINO_BF16 and not self.processor.bf16:
            raise LoadFailed("optimization.execution_accelerators: this processor does not multiply BF16")
        settings = self._settings(threads)
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Its threads are those of all streams together. Without a fall-back: the CPU's kernels would answer in silence.
        options = {"device_type": "CPU", "num_of_threads": str(threads * streams), "num_streams": str(streams)}
        if accelerator is Accelerator.OPENVINO_BF16:
            options["load_config"] = _IN_BF16
        providers = [(_OPENVINO, options), _CPU]
        return ort.InferenceSession(str(self.model_file), settings, providers=providers, enable_fallback=0)

    def _open_and_keep(self, cached: Path, settings: ort.SessionOptions) -> ort.InferenceSession:
        with _published(cached) as fresh:
            settings.optimized_model_filepath = str(fresh)
            return _session(self.model_file, settings)

    def _settings(self, intra_op_threads: int) -> ort.SessionOptions:
        options = self.options
        settings = ort.SessionOptions()
        settings.log_severity_level = _ERRORS_ONLY
        settings.intra_op_num_threads = intra_op_threads
        settings.inter_op_num_threads = max(1, options.inter_op_threads)
        if options.inter_op_threads > 1:
            settings.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        settings.graph_optimization_level = _LEVELS[options.graph_level]
        settings.enable_cpu_mem_arena = options.memory_arena
        settings.enable_mem_pattern = options.memory_pattern
        # Threads that spin for work take the core that the event loop and other models run on.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if not self.processor.exact_int8:
            settings.add_session_config_entry(PRECISION_KEY, "1")
        for key, value in options.session_config.items():
            settings.add_session_config_entry(key, value)
        return settings

    def _cached_graph(self) -> Path | None:
        size = self.model_file.stat().st_size
        if self.cache_dir is None or not CACHED_FROM_BYTES <= size <= CACHED_TO_BYTES or not self.spec.digest:
            return None
        parts = (
            self.spec.digest,
            ort.__version__,
            self.options.graph_level.value,
            repr(sorted(self.options.session_config.items())),
            _processor(),
        )
        name = hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
        return self.cache_dir / f"{self.spec.name}-{name}.onnx"


class Sessions:
    """The sessions of one source, made when they are first asked for, and shared by all layouts that can share one."""

    def __init__(self, source: SessionSource) -> None:
        self._source = source
        self._made: dict[tuple[int, int], ort.InferenceSession] = {}

    def get(self, layout: Layout) -> ort.InferenceSession:
        """The session of a layout. Raises what SessionSource.open raises."""
        # ONNX Runtime's own kernels run any number of executions side by side; an accelerator must be told how many.
        streams = 1 if self._source.options.accelerator is None else layout.instances
        key = (layout.threads, streams)
        if key not in self._made:
            self._made[key] = self._source.open(*key)
        return self._made[key]

    def engine(self, layout: Layout) -> OnnxRuntimeEngine:
        """An engine on the session of a layout. Raises what SessionSource.open raises."""
        return OnnxRuntimeEngine(self._source.spec, self.get(layout))


def _session(model_file: Path, settings: ort.SessionOptions) -> ort.InferenceSession:
    return ort.InferenceSession(str(model_file), settings, providers=[_CPU])


def offered(processor: Processor) -> tuple[Accelerator, ...]:
    """The accelerators that the installed ONNX Runtime has for this processor."""
    if _OPENVINO not in ort.get_available_providers():
        return ()
    return tuple(Accelerator) if processor.bf16 else (Accelerator.OPENVINO,)


@contextlib.contextmanager
def _published(target: Path) -> Iterator[Path]:
    """A temporary path whose file appears at `target` in one step, once the block has succeeded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh = Path(folder) / target.name
        yield fresh
        if fresh.exists():
            os.replace(fresh, target)  # noqa: PTH105  (Path.replace does not differ, but hides that it is atomic)


def _processor() -> str:
    """What the optimised graph depends on: its layouts follow the processor's vector instructions."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return line
    return os.uname().machine
