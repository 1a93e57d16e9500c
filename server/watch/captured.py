"""What a captured row looks like: the schema of the files, and observations as columns of it.

One line for each row of a request. Columns: `id` of the request, `row` in it, `at` (when it was answered), `origin` of
the answer, then `input.NAME` and `output.NAME` for each tensor: flat lists in row-major order, of fixed size where the
model fixes the shape; else followed by `input.NAME.shape`. Absent inputs and outputs that nobody asked for are null.
Each column's metadata says its dtype and shape; BF16 is kept as FP32, which holds all its values.
Hashed tensors are 16 bytes: equal for equal rows, telling nothing else to who lacks the key.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np

from engines.errors import LoadFailed
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import Array, DType, Tensor, join_bytes, to_array
from server.watch.observation import Observation

FORMAT: Final = "1"
"""Under the key `kairos.capture` in the schema's metadata."""
_HASH_BYTES: Final = 16


class Redaction(Enum):
    """What is written in place of a tensor."""

    DROP = "drop"
    HASH = "hash"


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    tensor: TensorSpec
    output: bool
    hashed: bool


def pyarrow() -> Any:  # noqa: ANN401  (an optional library without types)
    """The library. Raises LoadFailed, which says what to install."""
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise LoadFailed("capture needs pyarrow: pip install 'kairos[capture]'") from error


class RowSchema:
    """The columns of one model version. Raises LoadFailed when what is to be redacted does not exist."""

    def __init__(self, spec: ModelSpec, redact: Mapping[str, Redaction], key: bytes) -> None:
        self._pa = pyarrow()
        self._spec = spec
        self._key = key
        if unknown := sorted(redact.keys() - {tensor.name for tensor in (*spec.inputs, *spec.outputs)}):
            raise LoadFailed(f"capture.redact: the model has no input or output '{unknown[0]}'")
        self._columns = [
            _Column(f"{side}.{tensor.name}", tensor, side == "output", redact.get(tensor.name) is Redaction.HASH)
            for side, tensors in (("input", spec.inputs), ("output", spec.outputs))
            for tensor in tensors
            if redact.get(tensor.name) is not Redaction.DROP
        ]
        self.schema = self._schema()

    def batch(self, observations: Sequence[Observation]) -> Any:  # noqa: ANN401
        """A pyarrow RecordBatch of them."""
        pa = self._pa
        lines = [(seen, row) for seen in observations for row in range(seen.request.rows)]
        arrays = [
            pa.array([seen.request.id for seen, _ in lines], pa.string()),
            pa.array([row for _, row in lines], pa.int32()),
            pa.array([round(seen.at * 1e6) for seen, _ in lines], pa.timestamp("us", "UTC")),
            pa.array([seen.response.origin.value for seen, _ in lines], pa.string()),
        ]
        for column in self._columns:
            arrays += self._arrays(column, observations)
        return pa.record_batch(arrays, schema=self.schema)

    def _schema(self) -> Any:  # noqa: ANN401
        pa = self._pa
        fields = [
            pa.field("id", pa.string()), pa.field("row", pa.int32()), pa.field("at", pa.timestamp("us", "UTC")),
            pa.field("origin", pa.string()),
        ]  # fmt: skip
        for column in self._columns:
            tensor = column.tensor
            about = {"dtype": tensor.dtype.label, "shape": json.dumps(tensor.shape)}
            if column.hashed:
                fields.append(pa.field(column.name, pa.binary(_HASH_BYTES), metadata={**about, "redacted": "hash"}))
                continue
            size = math.prod(tensor.shape) if tensor.fixed else -1
            fields.append(pa.field(column.name, pa.list_(_element(pa, tensor.dtype), size), metadata=about))
            if not tensor.fixed:
                fields.append(pa.field(f"{column.name}.shape", pa.list_(pa.int64())))
        spec = self._spec
        about = {"kairos.capture": FORMAT, "model": spec.name, "version": str(spec.version), "digest": spec.digest}
        return pa.schema(fields, metadata=about)

    def _arrays(self, column: _Column, observations: Sequence[Observation]) -> Iterator[Any]:
        """The column itself, and its column of shapes where it has one."""
        pa, tensor = self._pa, column.tensor
        rows = list(self._rows(column, observations))
        if column.hashed:
            yield pa.array([None if row is None else self._hash(row) for row in rows], pa.binary(_HASH_BYTES))
            return
        absent = np.array([row is None for row in rows])
        present = [row for row in rows if row is not None]
        kind = _element(pa, tensor.dtype)
        if tensor.fixed:
            size = math.prod(tensor.shape)
            empty = np.zeros(size, _numpy(tensor.dtype)) if tensor.dtype is not DType.BYTES else [b""] * size
            flat = [empty if row is None else row.ravel() for row in rows]
            values = pa.array(np.concatenate(flat) if size and flat else [], kind)
            nulls = pa.array(absent) if absent.any() else None
            yield pa.FixedSizeListArray.from_arrays(values, type=pa.list_(kind, size), mask=nulls)
            return
        offsets = np.concatenate(([0], np.cumsum([0 if row is None else row.size for row in rows]))).astype(np.int32)
        values = pa.array(np.concatenate([row.ravel() for row in present]) if present else [], kind)
        nulls = pa.array(absent) if absent.any() else None
        yield pa.ListArray.from_arrays(pa.array(offsets), values, type=pa.list_(kind), mask=nulls)
        yield pa.array([None if row is None else list(row.shape) for row in rows], pa.list_(pa.int64()))

    def _rows(self, column: _Column, observations: Sequence[Observation]) -> Iterator[Array | None]:
        """One array, without the batch dimension, for each row of each request."""
        for seen in observations:
            tensors: Sequence[Tensor] = seen.response.outputs if column.output else seen.request.inputs
            found = next((tensor for tensor in tensors if tensor.name == column.tensor.name), None)
            if found is None:
                yield from [None] * seen.request.rows
                continue
            array = to_array(found)
            if found.dtype is not DType.BYTES:
                array = array.astype(_numpy(found.dtype), copy=False)
            yield from array if self._spec.batched else [array]

    def _hash(self, row: Array) -> bytes:
        content = join_bytes(row.ravel().tolist()) if row.dtype == object else np.ascontiguousarray(row).tobytes()
        return hashlib.blake2b(content, digest_size=_HASH_BYTES, key=self._key).digest()


def _numpy(dtype: DType) -> np.dtype[Any]:
    return np.dtype(np.float32) if dtype is DType.BF16 else dtype.numpy


def _element(pa: Any, dtype: DType) -> Any:  # noqa: ANN401
    return pa.binary() if dtype is DType.BYTES else pa.from_numpy_dtype(_numpy(dtype))
