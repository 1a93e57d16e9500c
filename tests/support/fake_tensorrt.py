"""A package `tensorrt` made of ONNX Runtime and a fake GPU, with the surface of one real version and nothing more.

Members that the listing of that version (tests/data/tensorrt) does not have raise AttributeError, and enumerations
have the listing's names and numbers. A "plan" is the ONNX file with what the builder was told.
"""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from engines.backends.cuda.fake import FakeDevice

LISTINGS = Path(__file__).parent.parent / "data" / "tensorrt"
VERSIONS = {"8.6": "8.6.0", "10.16": "10.16.1.11", "11.4": "11.4.0.106"}
TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.FLOAT8E4M3FN: "FP8",
}
UNKNOWN_OPERATOR = "NonMaxSuppression"
"""The one that the fake parser refuses."""


@functools.cache
def listing(version: str) -> tuple[Mapping[str, frozenset[str]], Mapping[str, Mapping[str, int]]]:
    """Members of classes, and enumerations, of one version."""
    members: dict[str, frozenset[str]] = {}
    enums: dict[str, dict[str, int]] = {}
    for line in (LISTINGS / f"{version}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        if name.startswith("enum "):
            pairs = (pair.split("=") for pair in rest.strip().split(", "))
            enums[name.removeprefix("enum ")] = {key: int(value) for key, value in pairs}
        else:
            members[name] = frozenset(rest.split())
    return members, enums


class Checked:
    """Base of the fake classes: public names that the listing does not have cannot be read or set."""

    _listed: frozenset[str] = frozenset()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in type(self)._listed:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} in this version")
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name not in type(self)._listed:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} in this version")
        super().__setattr__(name, value)


class Logger(Checked):
    def __init__(self, min_severity: object = None) -> None:
        pass

    def log(self, severity: object, msg: str) -> None:
        pass


class HostMemory(bytes):
    """As the real one, it is read through the buffer protocol."""

    @property
    def nbytes(self) -> int:
        return len(self)


class Profile(Checked):
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:  # noqa: A002
        self._shapes[input] = [tuple(min), tuple(opt), tuple(max)]

    def get_shape(self, input: str) -> list[tuple[int, ...]]:  # noqa: A002
        return self._shapes[input]


class Tensor(Checked):
    def __init__(self, value: onnx.ValueInfoProto, trt: Any) -> None:
        self._value = value
        self._trt = trt

    @property
    def name(self) -> str:
        return self._value.name

    @property
    def shape(self) -> tuple[int, ...]:
        return dims_of(self._value)

    @property
    def dtype(self) -> object:
        return self._trt.DataType[TYPES[self._value.type.tensor_type.elem_type]]


class Network(Checked):
    def __init__(self, trt: Any, flags: int) -> None:
        self._trt = trt
        self._flags = flags
        self._model: onnx.ModelProto | None = None

    @property
    def num_inputs(self) -> int:
        assert self._model is not None
        return len(self._model.graph.input)

    @property
    def num_outputs(self) -> int:
        assert self._model is not None
        return len(self._model.graph.output)

    @property
    def num_layers(self) -> int:
        assert self._model is not None
        return len(self._model.graph.node)

    def get_input(self, index: int) -> Tensor:
        assert self._model is not None
        return self._trt._ITensor(self._model.graph.input[index], self._trt)

    def get_output(self, index: int) -> Tensor:
        assert self._model is not None
        return self._trt._ITensor(self._model.graph.output[index], self._trt)


class ParserError(Checked):
    def __init__(self, node: int, name: str, operator: str, desc: str) -> None:
        self._facts = (node, name, operator, desc)

    def node(self) -> int:
        return self._facts[0]

    def node_name(self) -> str:
        return self._facts[1]

    def node_operator(self) -> str:
        return self._facts[2]

    def desc(self) -> str:
        return self._facts[3]

    def code(self) -> object:
        return SimpleNamespace(name="UNSUPPORTED_NODE")


class OnnxParser(Checked):
    def __init__(self, network: Network, logger: object) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        loaded = onnx.load(model)
        for number, node in enumerate(loaded.graph.node):
            if node.op_type == UNKNOWN_OPERATOR:
                error = self._network._trt.ParserError(number, node.name, node.op_type, "no importer for this operator")
                self._errors.append(error)
        self._network._model = loaded
        return not self._errors


class TimingCache(Checked):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> HostMemory:
        return HostMemory(self._data + b"t")

    def combine(self, input_cache: TimingCache, ignore_mismatch: bool) -> bool:
        self._data = max(self._data, input_cache._data)
        return True


class BuilderConfig(Checked):
    def __init__(self) -> None:
        self._said: dict[str, Any] = {"flags": [], "pools": {}, "preview": []}
        self._profiles: list[Profile] = []
        self._monitor: Any = None
        self._cache: TimingCache | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not name.startswith("_") and name != "progress_monitor":
            self._said[name] = getattr(value, "name", value)
        if name == "progress_monitor":
            self._monitor = value

    progress_monitor = None
    max_aux_streams = -1
    builder_optimization_level = 3
    hardware_compatibility_level = None
    profiling_verbosity = None

    def set_flag(self, flag: Any) -> None:
        self._said["flags"].append(flag.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._said["pools"][pool.name] = pool_size

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        self._said["preview"].append(feature.name)

    def add_optimization_profile(self, profile: Profile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        cache = TimingCache.__new__(type(self)._cache_class)  # type: ignore[attr-defined]
        cache._data = bytes(serialized_timing_cache)
        return cache

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self._cache


class Builder(Checked):
    def __init__(self, logger: object) -> None:
        self._trt: Any = type(self)._module  # type: ignore[attr-defined]
        self._trt._need_device()

    def create_network(self, flags: int = 0) -> Network:
        return self._trt.INetworkDefinition(self._trt, flags)

    def create_builder_config(self) -> BuilderConfig:
        return self._trt.IBuilderConfig()

    def create_optimization_profile(self) -> Profile:
        return self._trt.IOptimizationProfile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> HostMemory | None:
        monitor = config._monitor
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 2)
            for step in range(2):
                if not monitor.step_complete("Building Engine", step):
                    return None
            monitor.phase_finish("Building Engine")
        assert network._model is not None
        said = {
            **config._said,
            "network_flags": network._flags,
            "version": self._trt.__version__,
            "profiles": [profile._shapes for profile in config._profiles],
        }
        if self._trt._fault("build"):
            return None
        return HostMemory(json.dumps(said).encode() + b"\0" + network._model.SerializeToString())


class Engine(Checked):
    def __init__(self, trt: Any, plan: bytes) -> None:
        head, _, model = plan.partition(b"\0")
        self._trt = trt
        self._said = json.loads(head)
        self._model = onnx.load_from_string(model)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = self._model.graph
        self._values = {value.name: value for value in (*graph.input, *graph.output)}

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    @property
    def num_optimization_profiles(self) -> int:
        return max(1, len(self._said["profiles"]))

    weight_streaming_budget_v2 = 0

    @property
    def streamable_weights_size(self) -> int:
        return 100 if "WEIGHT_STREAMING" in self._said["flags"] else 0

    def get_weight_streaming_automatic_budget(self) -> int:
        return 50

    def get_tensor_name(self, index: int) -> str:
        return list(self._values)[index]

    def get_tensor_mode(self, name: str) -> object:
        given = any(value.name == name for value in self._model.graph.input)
        return self._trt.TensorIOMode.INPUT if given else self._trt.TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> object:
        return self._trt.TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> object:
        return self._trt.DataType[TYPES[self._values[name].type.tensor_type.elem_type]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return dims_of(self._values[name])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        if not self._said["profiles"]:
            return [dims_of(self._values[name])] * 3
        shapes = self._said["profiles"][profile_index].get(name)
        return [tuple(shape) for shape in shapes] if shapes else [dims_of(self._values[name])] * 3

    def create_execution_context(self, *arguments: object) -> Context | None:
        return None if self._trt._fault("context") else self._trt.IExecutionContext(self)


class Context(Checked):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._trt = engine._trt
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._consumed = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        if self._trt._fault("shape"):
            return False
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        fits = all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
        self._shapes[name] = tuple(shape)
        return fits

    def infer_shapes(self) -> list[str]:
        names = {value.name for value in self._engine._model.graph.input}
        return sorted(names - set(self._shapes))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name) or inferred(self._engine._model, self._shapes)[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        self._allocators[name] = output_allocator
        self._addresses.pop(name, None)
        return True

    def set_input_consumed_event(self, event: int) -> bool:
        self._consumed = event
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        device: FakeDevice = self._trt._device
        assert stream_handle, "the default stream"
        if self._trt._fault("execute"):
            return False
        if self._trt._capture_fault and stream_handle in device._captures:
            device._captures[stream_handle].broken = True
            return True
        engine, addresses, allocators = self._engine, dict(self._addresses), dict(self._allocators)
        shapes = dict(self._shapes)
        scratch: dict[str, Any] = {}
        targets = {name: self._target(name, allocators) for name in allocators}

        def read() -> None:
            for name, shape in shapes.items():
                dtype = numpy_of(engine._values[name])
                size = int(np.prod(shape)) * dtype.itemsize
                scratch[name] = device.view(addresses[name], size).copy().view(dtype).reshape(shape)

        def write() -> None:
            names = [value.name for value in engine._model.graph.output]
            for name, array in zip(names, engine._session.run(names, scratch), strict=True):
                address = addresses.get(name) or targets[name]
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                device.view(address, data.size)[:] = data
                if name in allocators:
                    allocators[name].notify_shape(name, array.shape)

        device.run(stream_handle, read)
        if self._consumed:
            device.record(self._consumed, stream_handle)
        device.run(stream_handle, write)
        return True

    def _target(self, name: str, allocators: Mapping[str, Any]) -> int:
        most = 64 * max(int(np.prod(shape)) for shape in self._shapes.values()) + 64
        if self._trt.__version__.startswith("8."):
            return allocators[name].reallocate_output(name, 0, most, 256)
        return allocators[name].reallocate_output_async(name, 0, most, 256, 0)


class Runtime(Checked):
    def __init__(self, logger: object) -> None:
        self._trt: Any = type(self)._module  # type: ignore[attr-defined]
        self._trt._need_device()

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        head, _, _ = bytes(serialized_engine).partition(b"\0")
        try:
            fits = json.loads(head)["version"] == self._trt.__version__
        except ValueError:
            return None
        return self._trt.ICudaEngine(self._trt, serialized_engine) if fits and not self._trt._fault("read") else None


class OutputAllocator:
    def __init__(self) -> None:
        pass


class ProgressMonitor:
    def __init__(self) -> None:
        pass


CLASSES: Mapping[str, type] = {
    "Builder": Builder,
    "IBuilderConfig": BuilderConfig,
    "INetworkDefinition": Network,
    "OnnxParser": OnnxParser,
    "ParserError": ParserError,
    "IOptimizationProfile": Profile,
    "ITimingCache": TimingCache,
    "ITensor": Tensor,
    "ICudaEngine": Engine,
    "IExecutionContext": Context,
    "Runtime": Runtime,
    "Logger": Logger,
    "ILogger": Logger,
}


class FakeTensorRT:
    """What `import tensorrt` gives. `fail` lets one later step fail: build, read, context, shape or execute."""

    def __init__(self, version: str = "11.4", device: FakeDevice | None = None, *, capture_fault: bool = False) -> None:
        members, enums = listing(version)
        self.__version__ = VERSIONS[version]
        self._device = device
        self._capture_fault = capture_fault
        self._faults: dict[str, int] = {}
        for name, names in enums.items():
            if "." not in name:
                setattr(self, name, enum.IntEnum(name, names))
        made: dict[str, Any] = {}
        for name, cls in CLASSES.items():
            made[name] = type(name, (cls,), {"_listed": members[name], "_module": self})
        made["IBuilderConfig"]._cache_class = made["ITimingCache"]
        self._ITensor = made.pop("ITensor")
        for name, cls in made.items():
            setattr(self, name, cls)
        self.ILogger.Severity = enum.IntEnum("Severity", enums["ILogger.Severity"])
        self.IOutputAllocator = OutputAllocator
        if "IProgressMonitor" in members:
            self.IProgressMonitor = ProgressMonitor

    def fail(self, step: str, after: int = 0) -> None:
        self._faults[step] = after

    def _fault(self, step: str) -> bool:
        left = self._faults.get(step)
        if left is None:
            return False
        if left == 0:
            del self._faults[step]
            return True
        self._faults[step] = left - 1
        return False

    def _need_device(self) -> None:
        # The real one ends the process.
        assert self._device is not None, "TensorRT was used before the driver was asked for a device"


def dims_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)


def numpy_of(value: onnx.ValueInfoProto) -> np.dtype[Any]:
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


def inferred(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the outputs for these inputs; -1 where they depend on the data."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            dim.Clear()
            dim.dim_value = size
    for value in fixed.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    found = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    return {value.name: dims_of(value) for value in found.graph.output}
