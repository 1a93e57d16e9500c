"""The instances of a model on GPUs: what runs them, how much memory they need, what they must know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from engines.backends.canary import read_canary
from engines.backends.gpus import Gpus, OpenOn, Seats
from engines.backends.onnxruntime_cuda import cuda_source
from engines.backends.options import GpuOptions
from engines.backends.tensorrt.library import load
from engines.backends.tensorrt.runtime import PlanSource
from engines.repository.config import is_plan
from engines.repository.definition import Definition
from engines.spec import ModelSpec
from engines.tensor import elements

OVERHEAD: Final = 1.3
"""Weights on the device, by the size of the files, with what libraries keep beside them."""
BASE_BYTES: Final = 64 << 20
"""What an instance needs however small its model: a context's scratch memory, kernels, graphs."""


def seats_of(definition: Definition, gpu: GpuOptions, gpus: Gpus, library: Callable[[], Any] = load) -> Seats:
    """The model's instances, placed but not opened. Raises LoadFailed, saying what is missing."""
    gpus.devices()  # before TensorRT, which ends a process that has no GPU
    spec = definition.spec
    open_on: OpenOn
    if is_plan(definition.config):
        open_on = PlanSource(library(), definition.model_file, spec, gpu.stream).open
    else:
        open_on = cuda_source(spec, definition.model_file, definition.engine, gpu)
    seats = Seats(gpus, gpu, instance_bytes(definition, gpu), open_on)
    seats.canary = read_canary(definition.model_file.parent)
    seats.sizes = rehearsed(spec)
    return seats


def instance_bytes(definition: Definition, gpu: GpuOptions) -> int:
    """About the device memory that an instance needs."""
    spec = definition.spec
    rows = max(1, spec.max_rows)
    batch = sum(
        rows * elements([max(1, size) for size in tensor.shape]) * tensor.dtype.size
        for tensor in (*spec.inputs, *spec.outputs)
    )
    files = sum(path.stat().st_size for path in definition.model_file.parent.iterdir() if path.is_file())
    return int(files * OVERHEAD) + gpu.stream.slots * batch + BASE_BYTES


def rehearsed(spec: ModelSpec) -> tuple[int, ...]:
    """Sizes of batches that are sure to come."""
    return spec.allowed_rows or ((1, spec.max_rows) if spec.max_rows > 1 else (1,))
