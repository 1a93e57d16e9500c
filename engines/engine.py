"""One blocking instance of a model on one device."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from engines.spec import ModelSpec
from engines.tensor import Array, DeviceMemory, DType


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


class StagingMemory(Protocol):
    """Memory that batches are gathered into."""

    def array(self, name: str, dtype: DType, shape: Sequence[int]) -> Array:
        """An uninitialised array; it lives until the next one of the same name is asked for."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """An input of which some parts are in a GPU's memory already: `parts` lie at these offsets of the whole.

    `host` is the whole on the host, of which only what is in no part counts; None when all is in parts.
    """

    shape: tuple[int, ...]
    dtype: DType
    parts: Sequence[tuple[int, DeviceMemory]]
    host: Array | None


Feed: TypeAlias = Array | DeviceRows
Places: TypeAlias = Mapping[str, Sequence[tuple[int, DeviceMemory]]]
"""By output: parts of it, from these offsets on, that go to memory of a GPU."""

NOWHERE: Places = {}


class Flight(Protocol):
    """An execution that was started."""

    def finish(self) -> Mapping[str, Array]:
        """Wait for the outputs; as `Engine.execute` returns them. Called once, by any one thread at a time.

        Flights of one engine are finished in the order in which they were started.
        """
        ...


class PipelinedEngine(Engine, Protocol):
    """An engine that takes the next batch while it runs one. All but `Flight.finish` belongs to its own thread."""

    @property
    def in_flight(self) -> int:
        """Most batches that may be started and not yet finished."""
        ...

    @property
    def device(self) -> int:
        """Index of its GPU: memory there can be used in place."""
        ...

    def attach(self) -> None:
        """Called by the thread that finishes flights, before the first."""
        ...

    def detach(self) -> None:
        """Called by the same thread after the last."""
        ...

    def staging(self) -> StagingMemory:
        """Where the next batch's inputs go; waits until the last batch's there are read. Then `start` is called."""
        ...

    def start(self, inputs: Mapping[str, Feed], wanted: Collection[str], places: Places = NOWHERE) -> Flight:
        """Begin to run. `inputs` may be overwritten once `staging` gives the same memory again.

        Outputs named in `places` alone are not returned. Raises as `Engine.execute` does.
        """
        ...
