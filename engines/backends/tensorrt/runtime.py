"""Runs plans: the engine is shared by all instances on a device, contexts are each instance's own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from engines.backends.cuda.api import CudaDevice, Feature
from engines.backends.options import StreamOptions
from engines.backends.streamed import Shape, Shapes, StreamedEngine
from engines.backends.tensorrt.library import dtype_of, make_logger
from engines.backends.tensorrt.plan import read_plan
from engines.errors import EngineFailed, InvalidRequest, LoadFailed
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType, elements

log = logging.getLogger(__name__)

MAX_SHAPES: Final = 4096
"""Shapes of inputs whose outputs' shapes are remembered."""


@dataclass(frozen=True, slots=True)
class Profile:
    """An optimisation profile: the least and most of each input's shape."""

    number: int
    least: Mapping[str, Shape]
    most: Mapping[str, Shape]

    def takes(self, shapes: Shapes) -> bool:
        """Whether inputs of these shapes can run in it."""
        return all(
            len(shape) == len(self.most[name])
            and all(
                low <= size <= high for low, size, high in zip(self.least[name], shape, self.most[name], strict=True)
            )
            for name, shape in shapes.items()
        )


class LoadedPlan:
    """A plan on one device. Made by a thread that has bound it; afterwards only read."""

    def __init__(self, trt: Any, device: CudaDevice, plan: bytes, spec: ModelSpec) -> None:  # noqa: ANN401  (no types)
        self.trt = trt
        self.device = device
        self._logger = make_logger(trt)
        runtime = trt.Runtime(self._logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise LoadFailed(f"TensorRT {trt.__version__} cannot read the plan of '{spec.name}'; the log says why")
        self._runtime, self.engine = runtime, engine
        _stream_weights(engine)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self.inputs = tuple(name for name in names if modes[name] == trt.TensorIOMode.INPUT)
        self.outputs = tuple(name for name in names if modes[name] == trt.TensorIOMode.OUTPUT)
        _check(trt, engine, self.inputs, self.outputs, spec)
        self.profiles = sorted(
            (self._profile(number) for number in range(engine.num_optimization_profiles)),
            key=lambda profile: sum(elements(shape) for shape in profile.most.values()),
        )

    def _profile(self, number: int) -> Profile:
        shapes = {name: self.engine.get_tensor_profile_shape(name, number) for name in self.inputs}
        return Profile(
            number,
            {name: tuple(least) for name, (least, _, _) in shapes.items()},
            {name: tuple(most) for name, (_, _, most) in shapes.items()},
        )


def _stream_weights(engine: Any) -> None:  # noqa: ANN401  (no types)
    """Leave to TensorRT how much of a plan's streamable weights stays on the device; before any context is made."""
    names = ("streamable_weights_size", "get_weight_streaming_automatic_budget", "weight_streaming_budget_v2")
    if not all(hasattr(engine, name) for name in names) or not engine.streamable_weights_size:
        return
    engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()


def _check(trt: Any, engine: Any, inputs: Sequence[str], outputs: Sequence[str], spec: ModelSpec) -> None:  # noqa: ANN401
    """Raise LoadFailed unless the plan takes and gives what the specification says."""
    for name in inputs:
        if engine.get_tensor_location(name) == trt.TensorLocation.HOST:
            raise LoadFailed(f"input '{name}' of the plan is a shape tensor, which is not supported")
    for kind, names, tensors in (("input", inputs, spec.inputs), ("output", outputs, spec.outputs)):
        if kind == "input" and {t.name for t in tensors} != set(names):
            raise LoadFailed(f"the plan's inputs are {', '.join(names)}, not {', '.join(t.name for t in tensors)}")
        for tensor in tensors:
            if tensor.name not in names:
                raise LoadFailed(f"the plan has no {kind} '{tensor.name}': it has {', '.join(names)}")
            _check_tensor(engine, tensor, batched=spec.batched)


def _check_tensor(engine: Any, tensor: TensorSpec, *, batched: bool) -> None:  # noqa: ANN401  (no types)
    dtype = dtype_of(engine.get_tensor_dtype(tensor.name), tensor.name)
    if dtype is not tensor.dtype:
        raise LoadFailed(f"'{tensor.name}' is {dtype.label} in the plan, not {tensor.dtype.label}")
    dims = tuple(engine.get_tensor_shape(tensor.name))
    wanted = (-1, *tensor.shape) if batched else tensor.shape
    fits = len(dims) == len(wanted) and all(mine in (-1, theirs) for mine, theirs in zip(dims, wanted, strict=True))
    if not fits:
        raise LoadFailed(f"'{tensor.name}' is {list(dims)} in the plan, which does not fit {list(wanted)}")


class TensorRTRunner:
    """A Runner: one context for each profile. Outputs that nobody is served go to memory that nobody reads."""

    def __init__(self, plan: LoadedPlan, spec: ModelSpec) -> None:
        self.spec = spec
        self._plan = plan
        self._device = plan.device
        self._contexts: dict[int, Any] = {}
        self._allocators: dict[tuple[int, str], Any] = {}
        self._shaped: dict[int, Shapes] = {}
        """What each profile's context was told last."""
        self._outputs: dict[object, Mapping[str, Shape | None]] = {}
        self._handles = Feature.EVENT_HANDLES in plan.device.features
        self._wanted = {tensor.name for tensor in spec.outputs}
        self.capacity: Mapping[str, int] = {}
        self.graphs = False

    def open(self, stream: int) -> None:
        """See Runner.open."""
        for profile in self._plan.profiles:
            self._contexts[profile.number] = self._context(profile, stream)
        self.capacity = self._capacity()
        # Memory must not be allocated while a graph is recorded.
        known = all(shape is not None for outputs in self._outputs.values() for shape in outputs.values())
        self.graphs = known and self._wanted == set(self._plan.outputs)

    def prepare(self, shapes: Shapes) -> Mapping[str, Shape | None]:
        """See Runner.prepare."""
        profile = self._profile_for(shapes)
        key = (profile.number, tuple(sorted(shapes.items())))
        found = self._outputs.get(key)
        if found is None:
            self._shape(profile, shapes)
            if len(self._outputs) > MAX_SHAPES:
                self._outputs.clear()
            found = self._outputs[key] = self._output_shapes(profile)
        return found

    def enqueue(self, slot: int, shapes: Shapes, addresses: Mapping[str, int], stream: int, consumed: int) -> bool:
        """See Runner.enqueue."""
        profile = self._profile_for(shapes)
        self._shape(profile, shapes)
        context = self._contexts[profile.number]
        for name in (*shapes, *self._plan.outputs):
            if name in addresses:
                _must(context.set_tensor_address(name, addresses[name]), f"the address of '{name}'")
            else:
                _must(context.set_output_allocator(name, self._allocator(slot, name)), f"the allocator of '{name}'")
        signals = bool(consumed) and self._handles
        context.set_input_consumed_event(consumed if signals else 0)
        _must(context.execute_async_v3(stream), "the execution")
        return signals

    def found(self, slot: int, name: str) -> tuple[int, Shape]:
        """See Runner.found."""
        allocator = self._allocators[slot, name]
        return allocator.address, allocator.shape

    def close(self) -> None:
        """See Runner.close."""
        self._contexts.clear()
        for allocator in self._allocators.values():
            allocator.free()
        self._allocators.clear()

    def _context(self, profile: Profile, stream: int) -> Any:  # noqa: ANN401  (no types)
        context = self._plan.engine.create_execution_context()
        if context is None:
            raise EngineFailed(f"TensorRT has no memory for a context of '{self.spec.name}'; the log says more")
        _must(context.set_optimization_profile_async(profile.number, stream), f"profile {profile.number}")
        self._device.synchronize(stream)
        return context

    def _profile_for(self, shapes: Shapes) -> Profile:
        profile = next((one for one in self._plan.profiles if one.takes(shapes)), None)
        if profile is None:
            limits = "; ".join(f"{dict(one.least)} to {dict(one.most)}" for one in self._plan.profiles)
            raise InvalidRequest(f"model '{self.spec.name}' takes no inputs of {dict(shapes)}, only {limits}")
        return profile

    def _shape(self, profile: Profile, shapes: Shapes) -> None:
        """Tell the profile's context the shapes, unless it has them."""
        if self._shaped.get(profile.number) == shapes:
            return
        self._shaped.pop(profile.number, None)
        context = self._contexts[profile.number]
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise InvalidRequest(f"TensorRT refuses input '{name}' of {list(shape)} for model '{self.spec.name}'")
        missing = context.infer_shapes()
        if missing:
            raise InvalidRequest(f"model '{self.spec.name}' cannot run without the shapes of {', '.join(missing)}")
        self._shaped[profile.number] = dict(shapes)

    def _output_shapes(self, profile: Profile) -> Mapping[str, Shape | None]:
        context = self._contexts[profile.number]
        shapes = {name: tuple(context.get_tensor_shape(name)) for name in self._plan.outputs if name in self._wanted}
        return {name: None if -1 in shape else shape for name, shape in shapes.items()}

    def _capacity(self) -> Mapping[str, int]:
        dtypes: dict[str, DType] = {
            name: dtype_of(self._plan.engine.get_tensor_dtype(name), name)
            for name in (*self._plan.inputs, *self._plan.outputs)
        }
        most: dict[str, int] = {}
        for profile in self._plan.profiles:
            shapes = {**profile.most, **{n: s for n, s in self.prepare(profile.most).items() if s is not None}}
            for name, shape in shapes.items():
                most[name] = max(most.get(name, 0), elements(shape) * dtypes[name].size)
        return most

    def _allocator(self, slot: int, name: str) -> Any:  # noqa: ANN401  (no types)
        key = (slot, name)
        if key not in self._allocators:
            self._allocators[key] = make_allocator(self._plan.trt, self._device)
        return self._allocators[key]


def _must(succeeded: bool, what: str) -> None:
    if not succeeded:
        raise EngineFailed(f"TensorRT refused {what}; the log says why", retryable=True)


def make_allocator(trt: Any, device: CudaDevice) -> Any:  # noqa: ANN401  (no types)
    """Memory for one output whose size TensorRT learns only while it runs; it grows and is used again."""

    class Growing(trt.IOutputAllocator):  # type: ignore[misc]  # a base without types
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.address = 0
            self.size = 0
            self.shape: Shape = ()
            self._outgrown: list[int] = []

        def reallocate_output(self, tensor_name: str, memory: Any, size: int, alignment: int) -> int:  # noqa: ANN401, ARG002
            if size > self.size:
                if self.address:  # what is queued may still write there
                    self._outgrown.append(self.address)
                self.size = max(size, 2 * self.size)
                self.address = device.allocate(self.size)
            return self.address

        def reallocate_output_async(
            self,
            tensor_name: str,
            memory: Any,  # noqa: ANN401
            size: int,
            alignment: int,
            stream: int,  # noqa: ARG002
        ) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:  # noqa: ANN401, ARG002
            self.shape = tuple(shape)

        def free(self) -> None:
            for address in (*self._outgrown, self.address):
                if address:
                    device.free(address)
            self._outgrown.clear()
            self.address = self.size = 0

    return Growing()


class PlanSource:
    """Engines of one model version from its plan, on any of the devices. Used by many threads."""

    def __init__(self, trt: Any, plan_file: Path, spec: ModelSpec, options: StreamOptions) -> None:  # noqa: ANN401
        self._trt = trt
        self._plan_file = plan_file
        self._spec = spec
        self._options = options
        self._lock = threading.Lock()
        self._loaded: dict[int, tuple[LoadedPlan, int]] = {}

    def open(self, device: CudaDevice) -> StreamedEngine:
        """An instance on that device. The plan is read for the first one; raises LoadFailed or CudaError."""
        device.bind()
        try:
            plan = self._borrow(device)
            try:
                instance = StreamedEngine(device, TensorRTRunner(plan, self._spec), self._options)
            except BaseException:
                self._give_back(device)
                raise
        finally:
            device.unbind()
        instance.closed = partial(self._give_back, device)
        return instance

    def _give_back(self, device: CudaDevice) -> None:
        """An instance is closed; the last one takes the plan with it."""
        with self._lock:
            plan, users = self._loaded.pop(device.info.index)
            if users > 1:
                self._loaded[device.info.index] = (plan, users - 1)
                return
        device.bind()
        try:
            del plan
        finally:
            device.unbind()

    def _borrow(self, device: CudaDevice) -> LoadedPlan:
        index = device.info.index
        with self._lock:
            plan, users = self._loaded.get(index, (None, 0))
            if plan is None:
                plan = LoadedPlan(
                    self._trt, device, read_plan(self._plan_file, self._trt.__version__, device.info), self._spec
                )
            self._loaded[index] = (plan, users + 1)
        return plan
