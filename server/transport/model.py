"""A model version as the transport sees it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from engines.errors import InvalidRequest
from engines.inference import Inference
from engines.local import Listener, LocalStatistics
from engines.request import Parameters
from engines.scheduling.policy import Limits
from engines.spec import ModelSpec, TensorSpec
from engines.validation import RequestChecker, RequestLimits
from server.cache.cached import CachedInference
from server.pb.model_config_pb2 import ModelConfig
from server.telemetry.meter import ModelMeter
from server.watch.watcher import Watched


class Engines(Inference, Protocol):
    """What runs a model version: the bottom of its stack."""

    @property
    def idle(self) -> bool:
        """Whether a request would wait for nobody."""
        ...

    def statistics(self) -> LocalStatistics:
        """How much waits, and how many engines do what."""
        ...

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each request that comes from now on, and the time; the result ends that."""
        ...

    def abandon(self) -> None:
        """Tell all who wait that it is over."""
        ...

    async def close(self) -> None:
        """Let running batches end and free the engines."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """Everything a call needs of one loaded version."""

    spec: ModelSpec
    config: ModelConfig
    limits: Limits
    default_deadline_s: float
    """Time a call gets that brings no deadline of its own; infinite for as much as it takes."""
    inference: Inference
    meter: ModelMeter
    engines: Engines
    request_limits: RequestLimits = field(default_factory=RequestLimits)
    cache: CachedInference | None = None
    """The layer of the stack that remembers answers, where there is one."""
    recalls: CachedInference | None = None
    """The same, where nothing above it has to see each request: whole answers may then be repeated."""
    split_key: str = ""
    """Metadata key whose value a rollout splits the callers of this model by; empty without such a rollout."""
    watched: Watched | None = None
    """What watches the requests and answers, where anything does."""
    unwatch: Callable[[], Awaitable[None]] | None = None
    """Ends the watch."""
    checker: RequestChecker = field(init=False)
    outputs: Mapping[str, TensorSpec] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "checker", RequestChecker(self.spec, self.request_limits))
        object.__setattr__(self, "outputs", {tensor.name: tensor for tensor in self.spec.outputs})

    async def close(self) -> None:
        """Free the engines; borrowers have left by now."""
        await self.engines.close()
        if self.unwatch is not None:
            await self.unwatch()

    def deadline(self, now: float, left_s: float | None, parameters: Parameters) -> float:
        """When the answer is worth nothing any more, on the clock that `now` is read from.

        The caller's own deadline, else the model's default. The `timeout` parameter is about waiting in the queue,
        and only checked here. Raises InvalidRequest for a bad parameter.
        """
        if parameters:
            check_timeout(parameters)
        return now + (self.default_deadline_s if left_s is None or left_s == math.inf else left_s)


def priority_of(parameters: Parameters) -> int:
    """The `priority` parameter, 0 when absent. Raises InvalidRequest unless it is a whole number >= 0."""
    value = parameters.get("priority", 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidRequest(f"parameter 'priority' must be a whole number, not {value!r}")
    return value


def check_timeout(parameters: Parameters) -> None:
    """Raises InvalidRequest unless the `timeout` parameter, if any, is a whole number of microseconds >= 0."""
    value = parameters.get("timeout", 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidRequest(f"parameter 'timeout' must be a whole number of microseconds, not {value!r}")
