"""Which layers lose accuracy in INT8, and how few of them must stay in higher precision until the gate holds.

Rule: nothing here runs a model; trying is a function that comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

MOST_KEPT: Final = 0.5
"""Share of the weights that may stay in higher precision: beyond it the result is INT8 in name only."""


@dataclass(frozen=True, slots=True)
class Rescue(Generic[T]):
    """What a search ended with."""

    kept: tuple[str, ...]
    """Layers in higher precision, most sensitive first."""
    result: T
    tries: int


def rank(errors: Mapping[str, float]) -> list[str]:
    """Layers by the error that each alone brings in, largest first."""
    return sorted(errors, key=lambda name: -errors[name])


def rescue(
    ranking: Sequence[str],
    weights: Mapping[str, int],
    attempt: Callable[[tuple[str, ...]], T],
    passes: Callable[[T], bool],
    tries: int,
) -> Rescue[T] | None:
    """Keep the 1, 2, 4, ... most sensitive layers until it passes, then search downwards for fewer.

    `weights` says how many each layer has. None: within `tries`, nothing passed without keeping more than MOST_KEPT.
    """
    most = _most_layers(ranking, weights)
    count, failed, used = 1, 0, 0
    best: Rescue[T] | None = None
    while used < tries and best is None and failed < most:
        count = min(count, most)
        result = attempt(tuple(ranking[:count]))
        used += 1
        if passes(result):
            best = Rescue(tuple(ranking[:count]), result, used)
        else:
            failed, count = count, count * 2
    while best is not None and used < tries and len(best.kept) - failed > 1:
        middle = (failed + len(best.kept)) // 2
        result = attempt(tuple(ranking[:middle]))
        used += 1
        if passes(result):
            best = Rescue(tuple(ranking[:middle]), result, used)
        else:
            failed = middle
    return None if best is None else Rescue(best.kept, best.result, used)


def _most_layers(ranking: Sequence[str], weights: Mapping[str, int]) -> int:
    total = sum(weights.get(name, 0) for name in ranking)
    kept, count = 0, 0
    for name in ranking:
        kept += weights.get(name, 0)
        if kept > total * MOST_KEPT:
            break
        count += 1
    return min(count, len(ranking) - 1)
