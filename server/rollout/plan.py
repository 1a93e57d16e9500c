"""What an operator wants of a rollout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from server.rollout.split import AUTO, check_split

SHADOW_STEP: Final = 0.0
"""A share of nothing: the candidate only sees copies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the candidate must keep to. Shares are between 0 and 1."""

    error_increase: float = 0.01
    """How much more often than the stable version it may fail. 1: as often as it likes."""
    latency_ratio: float = 1.5
    """How many times as long as the stable version's its median may be, and its 95th percentile as long as the stable
    version's 99th. Infinite: no limit."""
    latency_slack_s: float = 0.0005
    """Longer by no more than this is never too long: tenths of a millisecond are noise."""
    agreement: float = 0.9
    """On how many compared requests, at least, the two must agree. 0: no limit."""
    false_alarm: float = 0.01
    """Chance that a candidate that keeps the limits is rolled back anyway, over the whole rollout and all limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparing:
    """When two answers agree."""

    output: str = ""
    """The output with a score for each class: the best class must be the same. Empty: it is recognised by its name
    (logit, prob, score) or its labels; without such an output, the values of all outputs are compared."""
    absolute: float = 1e-3
    relative: float = 1e-2
    """Values agree when they differ by at most absolute + relative * |stable value|."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadowing:
    """How much is copied, and what copies may take."""

    sample: float = 0.1
    """Share of the requests that are copied to the other version, once they are answered. 0: none."""
    in_flight: int = 4
    """Most copies under way. Further ones are dropped."""
    bytes_in_flight: int = 32 * 2**20
    """Most bytes that these may hold. Further ones are dropped."""
    deadline_s: float = 5.0
    """Longest life of a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole rollout. Raises ValueError for what makes no sense."""

    stable: int
    candidate: int
    steps: tuple[float, ...] = (SHADOW_STEP, 0.01, 0.05, 0.25, 0.5, 1.0)
    """Shares of the default traffic, growing; a 0 at the beginning: at first the candidate sees only copies."""
    step_s: float = 60.0
    """Shortest stay on a step."""
    samples: int = 200
    """Fewest answers of the candidate, on each step; on a step of copies, fewest comparisons."""
    split_by: str = AUTO
    """What makes a caller: tenant, id, parameter:NAME, metadata:NAME; auto: the tenant, else the id."""
    salt: str = ""
    """Replaces the model's name and the candidate's version in the hash of callers."""
    retry: bool = True
    """Whether a request that the candidate fails is put to the stable version in what is left of its time."""
    signals: bool = True
    """Whether alarms of the watch (drift, outcomes) that only the candidate raises roll it back."""
    limits: Limits = field(default_factory=Limits)
    comparing: Comparing = field(default_factory=Comparing)
    shadowing: Shadowing = field(default_factory=Shadowing)

    def __post_init__(self) -> None:
        if self.stable < 1 or self.candidate < 1 or self.stable == self.candidate:
            raise ValueError(f"version {self.stable} and version {self.candidate} are no two versions of a model")
        if not self.steps or any(not 0 <= share <= 1 for share in self.steps):
            raise ValueError("steps are shares between 0 and 1, one at least")
        if self.steps[0] == 1:
            raise ValueError("a first step of 1 leaves nothing to compare the candidate with")
        if any(after <= before for before, after in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError("each step must be greater than the one before")
        limits, comparing, shadowing = self.limits, self.comparing, self.shadowing
        if not all(map(math.isfinite, (self.step_s, shadowing.deadline_s, comparing.absolute, comparing.relative))):
            raise ValueError("seconds and tolerances must be finite")
        if self.samples < 1 or self.step_s < 0 or shadowing.in_flight < 1 or shadowing.deadline_s <= 0:
            raise ValueError("samples, seconds and bounds must be positive")
        for name in ("error_increase", "agreement"):
            if not 0 <= getattr(limits, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1")
        if not 0 < limits.false_alarm < 1 or not limits.latency_ratio >= 1 or not limits.latency_slack_s >= 0:
            raise ValueError(
                "false_alarm must be between 0 and 1, latency_ratio at least 1, latency_slack_s at least 0"
            )
        if not 0 <= shadowing.sample <= 1 or comparing.absolute < 0 or comparing.relative < 0:
            raise ValueError("sample must be between 0 and 1, tolerances not negative")
        if self.steps[0] == SHADOW_STEP and shadowing.sample == 0:
            raise ValueError("a step of copies needs some: the sample is 0")
        check_split(self.split_by)

    def as_json(self) -> dict[str, Any]:
        """Plain data; JSON knows no infinity."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def read_plan(data: Mapping[str, Any]) -> Plan:
    """The inverse of `as_json`. Raises ValueError, TypeError or KeyError for anything else."""
    known = {each.name for each in fields(Plan)}
    rest = {name: value for name, value in data.items() if name in known}
    limits = {name: math.inf if value is None else value for name, value in rest.pop("limits").items()}
    comparing, shadowing = Comparing(**rest.pop("comparing")), Shadowing(**rest.pop("shadowing"))
    rest["steps"] = tuple(rest["steps"])
    return Plan(**rest, limits=Limits(**limits), comparing=comparing, shadowing=shadowing)


def _plain(value: Any) -> Any:  # noqa: ANN401  (whatever a field holds)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return None if value == math.inf else value
