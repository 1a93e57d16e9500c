"""Checks a decoded request against the contract of the model, before it can meet its neighbours in a batch.

The texts are those of Triton, since clients and test suites match them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engines.errors import InvalidRequest, TooLarge
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType, Tensor, check_bytes, elements

MAX_DIMENSION: Final = 2**31 - 1
"""Longest dimension a request may name; larger ones only occur in attacks, and would overflow elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What any model takes at most, whatever its shapes allow."""

    max_elements: int = 1 << 28
    """Elements of one input."""
    max_bytes_elements: int = 1 << 18
    """Elements of one input of BYTES, each of which is looked at on the event loop: 30 ms for all of them."""
    max_bytes_length: int = 64 << 20
    """Bytes of one element of BYTES."""


class RequestChecker:
    """Knows one model's contract in the form that is quickest to compare with."""

    __slots__ = ("_inputs", "_limits", "_outputs", "_required", "_spec")

    def __init__(self, spec: ModelSpec, limits: RequestLimits | None = None) -> None:
        self._spec = spec
        self._limits = limits or RequestLimits()
        self._inputs = {
            tensor.name: (position, tensor, _row_bytes(tensor)) for position, tensor in enumerate(spec.inputs)
        }
        self._outputs = {tensor.name: tensor for tensor in spec.outputs}
        self._required = sum(not tensor.optional for tensor in spec.inputs)

    def inputs(self, given: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], int]:
        """The inputs in the order of the spec, and how many rows they carry.

        Raises InvalidRequest, or TooLarge for more rows than the model takes, naming the input at fault.
        """
        spec = self._spec
        known = self._inputs
        found: dict[int, Tensor] = {}
        rows = -1
        required = 0
        for tensor in given:
            entry = known.get(tensor.name)
            if entry is None:
                raise InvalidRequest(f"unexpected inference input '{tensor.name}' for model '{spec.name}'")
            position, expected, row_bytes = entry
            if position in found:
                raise InvalidRequest(f"input '{tensor.name}' already exists in request")
            found[position] = tensor
            required += not expected.optional
            if tensor.dtype is not expected.dtype:
                raise InvalidRequest(
                    f"inference input '{tensor.name}' data-type is '{tensor.dtype.label}', "
                    f"but model '{spec.name}' expects '{expected.dtype.label}'"
                )
            here = self._rows(tensor, expected)
            if rows not in (-1, here):
                raise InvalidRequest(
                    f"input '{tensor.name}' batch size does not match other inputs for '{spec.name}': "
                    f"{here} instead of {rows}"
                )
            rows = here
            self._check_size(tensor, here * row_bytes if row_bytes >= 0 else -1)
        if required < self._required:
            raise InvalidRequest(self._missing(given))
        ordered = tuple(given) if _ascending(found) else tuple(found[position] for position in sorted(found))
        return ordered, rows

    def wanted(self, names: Sequence[str]) -> tuple[str, ...]:
        """The outputs to return: those named, or all. Raises InvalidRequest for unknown or repeated names."""
        if not names:
            return tuple(self._outputs)
        for position, name in enumerate(names):
            if name not in self._outputs:
                raise InvalidRequest(f"unexpected inference output '{name}' for model '{self._spec.name}'")
            if name in names[:position]:
                raise InvalidRequest(f"output '{name}' already exists in request")
        return tuple(names)

    def output(self, name: str) -> TensorSpec:
        """The spec of an output that `wanted` has let through."""
        return self._outputs[name]

    def _rows(self, tensor: Tensor, expected: TensorSpec) -> int:
        shape = tensor.shape
        batched = self._spec.batched
        # A free dimension is -1 in the spec, and must not be matched by a -1 in the request.
        if (shape[1:] if batched else shape) == expected.shape and (not batched or shape) and -1 not in shape:
            rows = shape[0] if batched else 1
        else:
            rows = self._rows_of_variable(tensor, expected)
        if rows > max(1, self._spec.max_rows):
            raise TooLarge(f"inference request batch-size must be <= {self._spec.max_rows} for '{self._spec.name}'")
        if rows < 1:
            raise self._shape_error(tensor, expected)
        return rows

    def _rows_of_variable(self, tensor: Tensor, expected: TensorSpec) -> int:
        full = (-1, *expected.shape) if self._spec.batched else expected.shape
        fits = len(full) == len(tensor.shape) and all(
            0 <= here <= MAX_DIMENSION and want in (-1, here) for want, here in zip(full, tensor.shape, strict=True)
        )
        if not fits:
            raise self._shape_error(tensor, expected)
        return tensor.shape[0] if self._spec.batched else 1

    def _shape_error(self, tensor: Tensor, expected: TensorSpec) -> InvalidRequest:
        full = (-1, *expected.shape) if self._spec.batched else expected.shape
        return InvalidRequest(
            f"unexpected shape for input '{tensor.name}' for model '{self._spec.name}'. "
            f"Expected {_brackets(full)}, got {_brackets(tensor.shape)}"
        )

    def _check_size(self, tensor: Tensor, expected: int) -> None:
        if tensor.dtype is DType.BYTES:
            count = elements(tensor.shape)
            self._check_count(tensor, count, self._limits.max_bytes_elements)
            check_bytes(tensor.data, count, tensor.name, self._limits.max_bytes_length)
            return
        if expected < 0:
            count = elements(tensor.shape)
            self._check_count(tensor, count, self._limits.max_elements)
            expected = count * tensor.dtype.size
        if len(tensor.data) != expected:
            raise InvalidRequest(
                f"input byte size mismatch for input '{tensor.name}' for model '{self._spec.name}'. "
                f"Expected {expected}, got {len(tensor.data)}"
            )

    def _check_count(self, tensor: Tensor, count: int, limit: int) -> None:
        if count > limit:
            raise TooLarge(
                f"inference input '{tensor.name}' for model '{self._spec.name}' has {count} elements, "
                f"more than the {limit} that this server takes"
            )

    def _missing(self, given: Sequence[Tensor]) -> str:
        names = {tensor.name for tensor in given}
        missing = [tensor.name for tensor in self._spec.inputs if not tensor.optional and tensor.name not in names]
        return (
            f"expected {len(self._spec.inputs)} inputs but got {len(given)} inputs for model '{self._spec.name}'. "
            f"Got input(s) {[tensor.name for tensor in given]}, but missing required input(s) {missing}. "
            "Please provide all required input(s)."
        )


def _row_bytes(tensor: TensorSpec) -> int:
    """Bytes of one row, -1 when rows vary."""
    if tensor.dtype is DType.BYTES or not tensor.fixed:
        return -1
    return math.prod(tensor.shape) * tensor.dtype.size


def _ascending(found: dict[int, Tensor]) -> bool:
    previous = -1
    for position in found:
        if position < previous:
            return False
        previous = position
    return True


def _brackets(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
