"""Tensors as they travel: a name, a type, a shape and the bytes, in the layout of the wire.

Bytes are little-endian and row-major. A BYTES tensor holds its elements one after the other, each preceded by
its length as a little-endian uint32. In both layouts the rows of a batch are simply the rows' bytes joined.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from engines.errors import InvalidRequest, TooLarge
from engines.record import record

Array: TypeAlias = NDArray[Any]
Buffer: TypeAlias = bytes | memoryview

_LENGTH: Final = struct.Struct("<I")
_SURPLUS: Final = 1000
"""Elements beyond those expected that are still counted."""


class DType(enum.Enum):
    """Element types under the protocol's names. `size`: bytes an element, 0 for BYTES, which vary."""

    BOOL = ("BOOL", np.dtype(np.bool_))
    UINT8 = ("UINT8", np.dtype(np.uint8))
    UINT16 = ("UINT16", np.dtype("<u2"))
    UINT32 = ("UINT32", np.dtype("<u4"))
    UINT64 = ("UINT64", np.dtype("<u8"))
    INT8 = ("INT8", np.dtype(np.int8))
    INT16 = ("INT16", np.dtype("<i2"))
    INT32 = ("INT32", np.dtype("<i4"))
    INT64 = ("INT64", np.dtype("<i8"))
    FP16 = ("FP16", np.dtype("<f2"))
    BF16 = ("BF16", np.dtype(ml_dtypes.bfloat16))
    FP32 = ("FP32", np.dtype("<f4"))
    FP64 = ("FP64", np.dtype("<f8"))
    BYTES = ("BYTES", np.dtype(object))

    def __init__(self, label: str, numpy: np.dtype[Any]) -> None:
        self.label = label
        self.numpy = numpy
        self.size = 0 if numpy.hasobject else numpy.itemsize

    # Members are singletons: identity is equality, and the default hash of the name costs a Python call.
    __hash__ = object.__hash__


BY_LABEL: Final[dict[str, DType]] = {dtype.label: dtype for dtype in DType}
BY_NUMPY: Final[dict[np.dtype[Any], DType]] = {dtype.numpy: dtype for dtype in DType}


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of a GPU that a caller has lent. `owner` keeps it open for as long as anything refers to it."""

    device: int
    address: int
    size: int
    owner: MemoryOwner

    def part(self, offset: int, size: int) -> DeviceMemory:
        """Some of it; the caller has checked the bounds."""
        return DeviceMemory(self.device, self.address + offset, size, self.owner)

    def read(self) -> bytes:
        """Its bytes, on the host; waits for the device."""
        return self.owner.read(self.address, self.size)

    def write(self, data: Buffer) -> None:
        """Overwrite its start from the host; waits for the device."""
        self.owner.write(self.address, data)


class MemoryOwner(Protocol):
    """Who opened a GPU's memory, and copies to and from it for those who have no GPU of their own."""

    def read(self, address: int, size: int) -> bytes: ...
    def write(self, address: int, data: Buffer) -> None: ...


@record
class Tensor:
    """`shape` includes the batch dimension where the model has one; `data` is contiguous, in wire layout."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    data: Buffer
    device: DeviceMemory | None = None
    """Where the bytes are instead of in `data`, which is then empty."""

    @property
    def size_bytes(self) -> int:
        """Bytes, wherever they are."""
        return len(self.data) if self.device is None else self.device.size

    def on_host(self) -> Tensor:
        """The same with its bytes on the host."""
        return self if self.device is None else Tensor(self.name, self.dtype, self.shape, self.device.read())


def elements(shape: Sequence[int]) -> int:
    """How many elements a tensor of this shape has; 1 for a scalar."""
    return math.prod(shape)


def to_array(tensor: Tensor) -> Array:
    """A read-only view of the tensor's bytes; BYTES become a new array of `bytes` objects.

    Raises InvalidRequest when the framing of a BYTES tensor does not add up to its shape.
    """
    if tensor.dtype is DType.BYTES:
        return array_of_bytes(split_bytes(tensor.data, elements(tensor.shape), tensor.name), tensor.shape)
    return np.frombuffer(tensor.data, tensor.dtype.numpy).reshape(tensor.shape)


def from_array(name: str, dtype: DType, array: Array) -> Tensor:
    """The array's bytes as a tensor: a view when the array is contiguous, a copy when it is not."""
    if dtype is DType.BYTES:
        return Tensor(name, dtype, array.shape, join_bytes(array.ravel().tolist()))
    contiguous = np.ascontiguousarray(array)
    # Viewed as plain bytes, since bfloat16 has no buffer format; empty arrays have no bytes to view.
    data: Buffer = contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b""
    return Tensor(name, dtype, array.shape, data)


def array_of_bytes(values: list[bytes], shape: Sequence[int]) -> Array:
    """The values as an array of objects of this shape."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(tuple(shape))


def split_bytes(data: Buffer, count: int, name: str) -> list[bytes]:
    """The `count` elements of a framed BYTES tensor.

    Raises InvalidRequest, naming the tensor, when there are more, fewer, or half an element.
    """
    view = memoryview(data)
    return [bytes(view[start:stop]) for start, stop in _element_bounds(view, count, name)]


def check_bytes(data: Buffer, count: int, name: str, max_length: int = 2**32) -> None:
    """Raise InvalidRequest unless the data frames exactly `count` elements of `max_length` at most. Copies nothing."""
    for start, stop in _element_bounds(memoryview(data), count, name):
        if stop - start > max_length:
            raise TooLarge(
                f"an element of inference input '{name}' has {stop - start} bytes, "
                f"more than the {max_length} that this server takes"
            )


def _element_bounds(view: memoryview, count: int, name: str) -> Iterator[tuple[int, int]]:
    size = len(view)
    offset = 0
    found = 0
    while offset + 4 <= size:
        (length,) = _LENGTH.unpack_from(view, offset)
        offset += 4
        if length > size - offset:
            raise InvalidRequest(
                f"incomplete string data for inference input '{name}': "
                f"element {found} needs {length} bytes, {size - offset} are left"
            )
        yield offset, offset + length
        offset += length
        found += 1
        if found > count + _SURPLUS:  # enough is known; a message may hold millions of them
            break
    if offset != size and found <= count + _SURPLUS:
        raise InvalidRequest(
            f"incomplete string length indicator for inference input '{name}': {size - offset} stray bytes at the end"
        )
    if found != count:
        raise InvalidRequest(
            f"unexpected number of string elements {found} for inference input '{name}', expecting {count}"
        )


def join_bytes(values: Iterable[bytes | str]) -> bytes:
    """Frame the elements for the wire: the inverse of `split_bytes`; text goes as UTF-8."""
    parts: list[bytes] = []
    for value in values:
        encoded = value.encode() if isinstance(value, str) else value
        parts.append(_LENGTH.pack(len(encoded)))
        parts.append(encoded)
    return b"".join(parts)
