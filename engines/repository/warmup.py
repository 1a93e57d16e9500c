"""Requests that run before a version is ready."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from engines.errors import InvalidRequest, LoadFailed
from engines.repository.config import dtype_of
from engines.repository.layout import resolve_inside
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType, Tensor, elements, from_array, join_bytes, split_bytes
from server.pb import model_config_pb2 as pb

FOLDER: Final = "warmup"
"""Beside the version folders; holds the data files."""

_SEED: Final = 0
_MAX_BYTES: Final = 1 << 30
"""More than this in one warm-up tensor is taken for a mistake."""


class Fill(enum.Enum):
    """What the tensor holds."""

    ZERO = "zero"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class WarmupInput:
    """One input; `shape` is that of one row."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    source: Fill | Path
    """A file holds one row in wire layout, which all rows repeat."""


@dataclass(frozen=True, slots=True)
class Warmup:
    """A request to be run `count` times."""

    name: str
    rows: int
    """Size of the batch dimension; 0 for a model without one."""
    count: int
    inputs: tuple[WarmupInput, ...]

    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs with their data; reads files. Raises LoadFailed."""
        return tuple(_tensor(self.name, tensor, self.rows) for tensor in self.inputs)


def warmups_of(config: pb.ModelConfig, spec: ModelSpec, folder: Path) -> tuple[Warmup, ...]:
    """The configuration's warm-up requests, checked against the spec; `folder` is the model's. Raises LoadFailed."""
    return tuple(_warmup(sample, spec, folder / FOLDER) for sample in config.model_warmup)


def _warmup(sample: pb.ModelWarmup, spec: ModelSpec, data: Path) -> Warmup:
    what = f"model_warmup '{sample.name}'"
    if not sample.name:
        raise LoadFailed("model_warmup.name: an entry has no name")
    rows = max(1, sample.batch_size)
    if rows > max(1, spec.max_rows):
        raise LoadFailed(f"{what}: batch_size {rows} is more than the model takes, {max(1, spec.max_rows)}")
    known = {tensor.name: tensor for tensor in spec.inputs}
    for name in sample.inputs:
        if name not in known:
            raise LoadFailed(f"{what}: inputs: the model has no input '{name}'")
    for tensor in spec.inputs:
        if not tensor.optional and tensor.name not in sample.inputs:
            raise LoadFailed(f"{what}: inputs: '{tensor.name}' is missing")
    inputs = tuple(
        _input(f"{what}: input '{tensor.name}'", sample.inputs[tensor.name], tensor, data)
        for tensor in spec.inputs
        if tensor.name in sample.inputs
    )
    return Warmup(sample.name, rows if spec.batched else 0, max(1, sample.count), inputs)


def _input(what: str, given: pb.ModelWarmup.Input, tensor: TensorSpec, data: Path) -> WarmupInput:
    if given.data_type == pb.TYPE_INVALID or given.data_type not in pb.DataType.values():
        raise LoadFailed(f"{what}: data_type is missing")
    if dtype_of(given.data_type) is not tensor.dtype:
        raise LoadFailed(f"{what}: data_type is not the model's, {tensor.dtype.label}")
    shape = tuple(given.dims)
    if not _fits(shape, tensor.shape):
        raise LoadFailed(f"{what}: dims {list(shape)} do not fit {list(tensor.shape)}")
    if elements(shape) * max(1, tensor.dtype.size) > _MAX_BYTES:
        raise LoadFailed(f"{what}: dims {list(shape)} are more than {_MAX_BYTES} bytes")
    return WarmupInput(tensor.name, tensor.dtype, shape, _source(what, given, data))


def _source(what: str, given: pb.ModelWarmup.Input, data: Path) -> Fill | Path:
    match given.WhichOneof("input_data_type"):
        case "zero_data":
            return Fill.ZERO
        case "random_data":
            return Fill.RANDOM
        case "input_data_file":
            path = resolve_inside(data, given.input_data_file, f"{what}: input_data_file")
            if not path.is_file():
                raise LoadFailed(f"{what}: input_data_file: there is no '{FOLDER}/{given.input_data_file}'")
            return path
        case _:
            raise LoadFailed(f"{what}: one of zero_data, random_data and input_data_file is needed")


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    if len(shape) != len(wanted):
        return False
    return all(size > 0 and allowed in (-1, size) for size, allowed in zip(shape, wanted, strict=True))


def _tensor(warmup: str, tensor: WarmupInput, rows: int) -> Tensor:
    if isinstance(tensor.source, Path):
        row = _read(warmup, tensor, tensor.source)
    elif tensor.dtype is DType.BYTES:
        row = join_bytes([b"" if tensor.source is Fill.ZERO else b"warm-up"] * elements(tensor.shape))
    else:
        row = bytes(from_array(tensor.name, tensor.dtype, _numbers(tensor)).data)
    shape = (rows, *tensor.shape) if rows else tensor.shape
    return Tensor(tensor.name, tensor.dtype, shape, row * max(1, rows))


def _numbers(tensor: WarmupInput) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    if tensor.source is Fill.ZERO:
        return np.zeros(tensor.shape, tensor.dtype.numpy)
    # Small numbers: they are exact in every type, and in range where they serve as an index.
    return np.random.default_rng(_SEED).integers(0, 2, tensor.shape).astype(tensor.dtype.numpy)


def _read(warmup: str, tensor: WarmupInput, path: Path) -> bytes:
    what = f"model_warmup '{warmup}': input '{tensor.name}': input_data_file '{path.name}'"
    try:
        content = path.read_bytes()
        if tensor.dtype is DType.BYTES:
            split_bytes(content, elements(tensor.shape), tensor.name)
    except OSError as error:
        raise LoadFailed(f"{what}: {error.strerror or error}") from error
    except InvalidRequest as error:
        raise LoadFailed(f"{what}: {error}") from error
    needed = elements(tensor.shape) * tensor.dtype.size
    if tensor.dtype is not DType.BYTES and len(content) != needed:
        raise LoadFailed(f"{what} has {len(content)} bytes, not {needed}")
    return content
