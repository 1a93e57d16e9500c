"""One blocking instance of a model on one device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from engines.spec import ModelSpec
from engines.tensor import Array


class Engine(Protocol):
    """Made, used and closed by one and the same thread, so that it needs no lock.

    Arrays of BYTES tensors hold `bytes` objects, in outputs also `str`. A batched model's arrays carry the batch
    dimension.
    """

    @property
    def spec(self) -> ModelSpec:
        """What the engine takes and gives."""
        ...

    def execute(self, inputs: Mapping[str, Array], wanted: Collection[str]) -> Mapping[str, Array]:
        """Run once and return the wanted outputs, in memory that neither the engine nor `inputs` will touch again.

        `inputs` may be overwritten after the return. Any exception fails this batch only; `EngineDied` says that
        the engine can never run again.
        """
        ...

    def close(self) -> None:
        """Free everything; called once."""
        ...
