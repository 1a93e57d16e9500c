"""The name under which an answer is remembered.

Rule: nothing here reads a clock, awaits, locks or logs.
Promise: requests have the same key exactly when the same model files and configuration get the same inputs, the
    same outputs are wanted in the same order, and all parameters that may change a result are the same.

A key is the 256-bit keyed BLAKE3 digest of this encoding, in which everything that varies in size is preceded by
its length (little-endian), so that no two requests encode alike:

    layout tag | model name | version | digest of its files and configuration | what runs it
    count, then for each input by name: name | dtype | rank, dimensions | bytes
    count, then each wanted output: name
    count, then for each parameter by name that is not neutral: name | type | value
    the inputs' bytes, one after the other

Why BLAKE3: keys decide whose answer a caller gets, so a caller must not be able to construct a collision; that
rules out xxh3, which is no cryptographic hash. On an AMD EPYC core a digest takes 0.8 microseconds for 256 bytes
and 100 for 600 KB; keyed BLAKE2b takes 0.7 and 640, SHA-256 with the processor's help 0.6 and 330, xxh3 0.06 and 9.
At 256 bits an accidental collision among 2**64 answers has a probability below 2**-128.
"""

from __future__ import annotations

import operator
import struct
from typing import Final, NewType

from blake3 import blake3

from engines.request import InferRequest, Parameter, Parameters
from engines.spec import ModelSpec
from engines.tensor import DType, Tensor

Key = NewType("Key", bytes)

BYPASS: Final = "kairos_cache_bypass"
"""Request parameter: true lets this request neither read nor write the cache, nor share an execution."""
ORIGIN: Final = "kairos_origin"
"""Request parameter: true asks for a response parameter of the same name, saying where the answer came from."""

NEUTRAL: Final = frozenset({BYPASS, ORIGIN, "timeout", "priority"})
"""Parameters that say when or how to answer, never what: they are no part of the key."""
STATEFUL: Final = frozenset({"sequence_id", "sequence_start", "sequence_end"})
"""A request that carries one of these depends on earlier ones: it is never answered from memory."""

_LAYOUT: Final = b"kairos cache key 1"
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_F64: Final = struct.Struct("<d")
_MEMO_ENTRIES: Final = 1024
"""Encoded names and shapes to remember; models with variable dimensions would collect them without end."""

_by_name: Final = operator.attrgetter("name")


def subkey(secret: bytes, purpose: str) -> bytes:
    """A 32-byte key for one purpose only, from a secret of any length (BLAKE3's key derivation mode)."""
    return blake3(secret, derive_key_context=f"kairos cache 2026 {purpose}").digest()


def cacheable(parameters: Parameters) -> bool:
    """Whether a request with these parameters may be answered from memory."""
    return not parameters or (not parameters.get(BYPASS, False) and STATEFUL.isdisjoint(parameters))


class Keys:
    """Makes the keys of one model version."""

    def __init__(self, spec: ModelSpec, secret: bytes, runtime: str = "") -> None:
        """`secret` makes keys unpredictable to others; replicas that share answers must share it.

        `runtime` names whatever else may change an answer in its last bits: libraries and their versions, the
        kind of processor.

        Raises ValueError when the spec has no digest: then a changed model could not be told from the old one.
        """
        if not spec.digest:
            raise ValueError(f"model '{spec.name}' version {spec.version} has no digest; it cannot be cached")
        self._base = blake3(key=subkey(secret, "key"))
        for part in (_LAYOUT, spec.name.encode(), str(spec.version).encode(), spec.digest.encode(), runtime.encode()):
            self._base.update(_framed(part))
        self._tensors: dict[tuple[str, DType, tuple[int, ...]], bytes] = {}
        self._wanted: dict[tuple[str, ...], bytes] = {}

    def key(self, request: InferRequest) -> Key:
        """The key of a request for this model version; a few microseconds and the hash of its bytes."""
        inputs = request.inputs
        if len(inputs) > 1:
            inputs = tuple(sorted(inputs, key=_by_name))
        parts = [_U32.pack(len(inputs))]
        for tensor in inputs:
            parts.append(self._tensors.get((tensor.name, tensor.dtype, tensor.shape)) or self._encode(tensor))
            parts.append(_U64.pack(len(tensor.data)))
        parts.append(self._wanted.get(request.wanted) or self._encode_wanted(request.wanted))
        parts.append(_encode_parameters(request.parameters) if request.parameters else _U32.pack(0))
        digest = self._base.copy()
        digest.update(b"".join(parts))
        for tensor in inputs:
            digest.update(tensor.data)
        return Key(digest.digest())

    def _encode(self, tensor: Tensor) -> bytes:
        rank = len(tensor.shape)
        encoded = b"".join(
            (
                _framed(tensor.name.encode()),
                _framed(tensor.dtype.label.encode()),
                _U32.pack(rank),
                struct.pack(f"<{rank}q", *tensor.shape),
            )
        )
        if len(self._tensors) >= _MEMO_ENTRIES:
            self._tensors.clear()
        self._tensors[tensor.name, tensor.dtype, tensor.shape] = encoded
        return encoded

    def _encode_wanted(self, wanted: tuple[str, ...]) -> bytes:
        encoded = _U32.pack(len(wanted)) + b"".join(_framed(name.encode()) for name in wanted)
        if len(self._wanted) >= _MEMO_ENTRIES:
            self._wanted.clear()
        self._wanted[wanted] = encoded
        return encoded


def _framed(part: bytes) -> bytes:
    return _U32.pack(len(part)) + part


def _encode_parameters(parameters: Parameters) -> bytes:
    changing = sorted(name for name in parameters if name not in NEUTRAL)
    parts = [_U32.pack(len(changing))]
    for name in changing:
        parts.append(_framed(name.encode()))
        parts.append(_encode_value(parameters[name]))
    return b"".join(parts)


def _encode_value(value: Parameter) -> bytes:
    """Type, then value: true, 1, 1.0 and "1" are four different things."""
    if isinstance(value, bool):
        return b"b" + bytes([value])
    if isinstance(value, int):
        return b"i" + _framed(str(value).encode())  # uint64 parameters do not fit an int64
    if isinstance(value, float):
        return b"f" + _F64.pack(value)
    return b"s" + _framed(value.encode())
