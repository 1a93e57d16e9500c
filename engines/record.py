"""Frozen plain data that is made for each request.

A frozen dataclass sets each of its fields by a call: some microseconds for those of one request. The type checker sees
these as frozen; at run time they are ordinary ones, since nobody pays for what nobody gets past the checker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def record(cls: type[_T]) -> type[_T]:
    """`dataclass(frozen=True, slots=True)`, frozen for the type checker alone."""
    return dataclass(slots=True, unsafe_hash=True)(cls)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def keyword_record(cls: type[_T]) -> type[_T]:
    """The same with fields that are given by name."""
    make: Callable[[type[_T]], type[_T]] = dataclass(slots=True, unsafe_hash=True, kw_only=True)
    return make(cls)
