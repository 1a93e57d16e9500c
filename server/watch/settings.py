"""What a model's configuration says about watching it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from engines.errors import LoadFailed
from engines.spec import ModelSpec
from server.pb.model_config_pb2 import ModelWatch
from server.watch.kinds import ANSWERS_ONLY, Kind

KINDS: Final[Mapping[int, Kind]] = MappingProxyType(
    {
        ModelWatch.KIND_NUMBERS: Kind.NUMBERS,
        ModelWatch.KIND_CATEGORIES: Kind.CATEGORIES,
        ModelWatch.KIND_IMAGE: Kind.IMAGE,
        ModelWatch.KIND_EMBEDDING: Kind.EMBEDDING,
        ModelWatch.KIND_TEXT: Kind.TEXT,
        ModelWatch.KIND_IGNORED: Kind.IGNORED,
        ModelWatch.KIND_PROBABILITIES: Kind.PROBABILITIES,
        ModelWatch.KIND_LOGITS: Kind.LOGITS,
    }
)
LEAST_WINDOW: Final = 30
MOST_WINDOW: Final = 100_000
MOST_LEARNT: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What the operator says about tensors, where guessing would go wrong."""

    kinds: Mapping[str, Kind] = field(default_factory=dict)
    answer: str = ""
    """The output whose answers are watched. Empty: the one that looks most like scores of classes, else the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """How one model is watched."""

    rate: float = 0.1
    """Share of the requests that are looked at."""
    window_rows: int = 500
    """Rows that are compared with the reference at a time. More: smaller drift is found, later."""
    window_s: float = 0.0
    """Rows older than this leave the window. 0: however old."""
    level: float = 0.01
    """Chance of a false alarm of each signal while a whole window passes."""
    looks: int = 4
    """How often each row is looked at before it leaves the window. 1: windows that do not overlap."""
    least_psi: float = 0.0
    """No alarm for smaller differences, however sure. 0: any."""
    learn_rows: int = 0
    """Without a baseline, so many rows of the first requests become one. 0: none do."""
    look_s: float = 10.0
    """Shortest time between two looks: bounds what looking costs under heavy traffic."""
    hints: Hints = field(default_factory=Hints)

    @property
    def stride(self) -> int:
        """Rows between two looks."""
        return max(1, self.window_rows // self.looks)

    @property
    def alarm_p_value(self) -> float:
        """Highest p-value of a single look that is an alarm: the level is shared by the looks at one window."""
        return self.level / self.looks


_DEFAULTS: Final = WatchOptions()


def watch_options_of(config: ModelWatch, spec: ModelSpec) -> WatchOptions | None:
    """The options, or None when the model is not to be watched. Raises LoadFailed."""
    if not config.enable:
        return None
    _within("sample_rate", config.sample_rate, 0, 1)
    _within("level", config.level, 0, 0.5)
    _within("least_psi", config.least_psi, 0, 1000)
    _within("looks", config.looks, 0, 100)
    _within("learn_rows", config.learn_rows, 0, MOST_LEARNT)
    if config.window_rows:
        _within("window_rows", config.window_rows, LEAST_WINDOW, MOST_WINDOW)
    if config.learn_rows:
        _within("learn_rows", config.learn_rows, LEAST_WINDOW, MOST_LEARNT)
    return WatchOptions(
        rate=config.sample_rate or _DEFAULTS.rate,
        window_rows=config.window_rows or _DEFAULTS.window_rows,
        window_s=float(config.window_seconds),
        level=config.level or _DEFAULTS.level,
        looks=config.looks or _DEFAULTS.looks,
        least_psi=config.least_psi,
        learn_rows=config.learn_rows,
        look_s=config.look_milliseconds / 1000 or _DEFAULTS.look_s,
        hints=hints_of(config, spec),
    )


def hints_of(config: ModelWatch, spec: ModelSpec) -> Hints:
    """What is said about tensors. Raises LoadFailed for unknown names and kinds that do not fit."""
    inputs, outputs = ({tensor.name for tensor in tensors} for tensors in (spec.inputs, spec.outputs))
    kinds = {}
    for tensor in config.tensor:
        if tensor.name not in inputs | outputs:
            raise LoadFailed(f"watch.tensor: the model has no input or output '{tensor.name}'")
        kind = KINDS.get(tensor.kind)
        if kind in ANSWERS_ONLY and tensor.name not in outputs:
            raise LoadFailed(f"watch.tensor: '{tensor.name}' is an input, and only outputs can be {kind}")
        if kind is not None:
            kinds[tensor.name] = kind
    if config.output and config.output not in outputs:
        raise LoadFailed(f"watch.output: the model has no output '{config.output}'")
    return Hints(kinds=MappingProxyType(kinds), answer=config.output)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise LoadFailed(f"watch.{name}: {value:g} is not between {low:g} and {high:g}")
