"""What crosses the seam: plain, frozen data."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Final, TypeAlias

from engines.record import keyword_record, record
from engines.tensor import DeviceMemory, Tensor

Parameter: TypeAlias = bool | int | float | str
Parameters: TypeAlias = Mapping[str, Parameter]

NO_PARAMETERS: Final[Parameters] = MappingProxyType({})


class Origin(enum.StrEnum):
    """Where an answer came from."""

    ENGINE = "engine"
    CACHE = "cache"
    SHARED = "shared"  # another identical request's execution

    # Members are singletons, as those of DType are.
    __hash__ = object.__hash__


@keyword_record
class InferRequest:
    """A checked request. Build it with `engines.validation.check`, which upholds what is promised here."""

    model: str
    version: int
    inputs: tuple[Tensor, ...]
    """In the order of the spec; optional inputs may be absent."""
    wanted: tuple[str, ...]
    """Names of the outputs to return, in the order to return them; never empty."""
    rows: int = 1
    """Size of the batch dimension; 1 for a model without one."""
    deadline: float = math.inf
    """Absolute time on the event loop's clock, in seconds; infinite when there is none."""
    priority: int = 0
    """Lower is more urgent; 0 asks for the model's default level."""
    tenant: str = ""
    """Who asks, where callers are to have equal shares in overload."""
    id: str = ""
    trace: str = ""
    """W3C traceparent of the caller, and its tracestate after a space where it has one; or empty."""
    parameters: Parameters = field(default_factory=lambda: NO_PARAMETERS)
    placed: Mapping[str, DeviceMemory] | None = None
    """Outputs that are to be written to a GPU's memory instead of being returned; they come back with no data."""

    @property
    def on_device(self) -> bool:
        """Whether any tensor of it is in a GPU's memory, and may change there."""
        return self.placed is not None or any(tensor.device is not None for tensor in self.inputs)


@record
class Timings:
    """Seconds spent in each phase of one request; zeros for an answer that no engine gave."""

    queue_s: float = 0.0
    gather_s: float = 0.0
    execute_s: float = 0.0
    scatter_s: float = 0.0
    batch_rows: int = 1
    """Rows of the batch that it ran in; those phases were the whole batch's."""


@keyword_record
class InferResponse:
    """An answer: `outputs` in the order of the request's `wanted`, with the request's rows."""

    model: str
    version: int
    outputs: tuple[Tensor, ...]
    id: str = ""
    timings: Timings = field(default_factory=Timings)
    origin: Origin = Origin.ENGINE
