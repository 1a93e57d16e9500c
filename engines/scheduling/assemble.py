"""Rows of many requests into one batch, and the batch's answers back into rows.

Rule: no clock, no await, no lock. Rows are joined and cut along the first dimension only, so that both are plain
copies or views of contiguous bytes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from engines.engine import StagingMemory
from engines.errors import EngineFailed
from engines.request import InferRequest
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import Array, Buffer, DType, Tensor, array_of_bytes, elements, from_array, split_bytes, to_array


class Staging:
    """Memory that one engine's batches are gathered into, again and again; it grows to the largest batch seen."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def array(self, name: str, dtype: DType, shape: Sequence[int]) -> Array:
        """An uninitialised array; it lives until the next one of the same name is asked for."""
        size = elements(shape) * dtype.size
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, np.uint8)
        return buffer[:size].view(dtype.numpy).reshape(tuple(shape))


def signature(request: InferRequest) -> object:
    """Equal for requests that may share a batch: the same inputs are present, with equal shapes of a row."""
    return tuple((tensor.name, tensor.shape[1:]) for tensor in request.inputs)


def gather(
    requests: Sequence[InferRequest], spec: ModelSpec, padded_rows: int, staging: StagingMemory
) -> dict[str, Array]:
    """The engine's inputs by name: rows in the order of the requests, then copies of the last row as padding.

    A request that runs alone and unpadded is not copied. All requests must have the same signature.
    """
    first = requests[0]
    if len(requests) == 1 and (not spec.batched or padded_rows == first.rows):
        return {
            tensor.name: _aligned(to_array(tensor if tensor.device is None else tensor.on_host()))
            for tensor in first.inputs
        }
    return {
        tensor.name: join([request.inputs[position] for request in requests], padded_rows, staging)
        for position, tensor in enumerate(first.inputs)
    }


def _aligned(array: Array) -> Array:
    """Engines read with aligned vector instructions; shared memory regions may start anywhere."""
    return array if array.flags.aligned else array.copy()


def join(parts: Sequence[Tensor], padded_rows: int, staging: StagingMemory) -> Array:
    """The rows of one input, padded with copies of the last one; those on a GPU are fetched."""
    first = parts[0]
    rows = sum(part.shape[0] for part in parts)
    shape = (padded_rows, *first.shape[1:])
    if first.dtype is DType.BYTES:
        values = [value for part in parts for value in split_bytes(part.data, elements(part.shape), part.name)]
        row = len(values) // rows
        return array_of_bytes(values + values[len(values) - row :] * (padded_rows - rows), shape)
    array = staging.array(first.name, first.dtype, shape)
    target = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
    offset = 0
    for part in parts:
        data = part.data if part.device is None else part.device.read()
        size = len(data)
        target[offset : offset + size] = data
        offset += size
    if padded_rows > rows:
        array[rows:] = array[rows - 1]
    return array


class Scatter:
    """Cuts one batch's outputs into the answers of its members; nothing but BYTES is copied.

    Raises EngineFailed when an output is missing or does not have the batch's rows.
    """

    def __init__(self, outputs: Mapping[str, Array], spec: ModelSpec, padded_rows: int) -> None:
        self._batched = spec.batched
        self._spec = spec
        self._outputs = {
            tensor.name: _Output(tensor, outputs[tensor.name], padded_rows if spec.batched else 0)
            for tensor in spec.outputs
            if tensor.name in outputs
        }

    def rows(self, start: int, rows: int, wanted: Sequence[str]) -> tuple[Tensor, ...]:
        """The wanted outputs of the member whose rows begin at `start`."""
        try:
            found = [self._outputs[name] for name in wanted]
        except KeyError as missing:
            raise EngineFailed(f"the engine returned no output {missing}") from None
        if not self._batched:
            return tuple(output.whole() for output in found)
        return tuple(output.cut(start, rows) for output in found)

    def rows_of(self, request: InferRequest, start: int, placed: Collection[str]) -> tuple[Tensor, ...]:
        """The same for a request; outputs among `placed` that it wants on the device are there already."""
        if request.placed is None or not placed:
            return self.rows(start, request.rows, request.wanted)
        there = {name: memory for name, memory in request.placed.items() if name in placed}
        specs = {tensor.name: tensor for tensor in self._spec.outputs}
        lead = (request.rows,) if self._batched else ()
        return tuple(
            Tensor(name, specs[name].dtype, (*lead, *specs[name].shape), b"", there[name])
            if name in there
            else self.rows(start, request.rows, (name,))[0]
            for name in request.wanted
        )


class _Output:
    __slots__ = ("_array", "_data", "_dtype", "_name", "_row_bytes", "_row_shape")

    def __init__(self, spec: TensorSpec, array: Array, rows: int) -> None:
        if rows and (array.ndim == 0 or array.shape[0] != rows):
            raise EngineFailed(f"the engine returned output '{spec.name}' of shape {array.shape} for {rows} rows")
        if array.dtype != spec.dtype.numpy:
            raise EngineFailed(f"the engine returned output '{spec.name}' as {array.dtype}, not {spec.dtype.label}")
        self._name = spec.name
        self._dtype = spec.dtype
        self._array = array
        self._row_shape = array.shape[1:]
        self._row_bytes = math.prod(self._row_shape) * spec.dtype.size
        self._data: Buffer = b"" if spec.dtype is DType.BYTES else from_array(spec.name, spec.dtype, array).data

    def whole(self) -> Tensor:
        return from_array(self._name, self._dtype, self._array)

    def cut(self, start: int, rows: int) -> Tensor:
        if self._dtype is DType.BYTES:
            return from_array(self._name, self._dtype, self._array[start : start + rows])
        first = start * self._row_bytes
        data = memoryview(self._data)[first : first + rows * self._row_bytes]
        return Tensor(self._name, self._dtype, (rows, *self._row_shape), data)
