"""Which candidate is published, and why: in words that end up in front of the person who asked.

Rule: nothing here measures; figures come in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

NOISE: Final = 0.05
"""Differences in speed below this share are not told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One candidate's figures."""

    label: str
    drop: float
    """What the gate looks at."""
    judged_by: str
    seconds: Mapping[int, float] = field(default_factory=dict)
    """Of an execution, by rows. Empty: it could not be measured on the target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The decision."""

    label: str | None
    """None: nothing passed."""
    reason: str
    verdicts: Mapping[str, str]
    """A few words on every contender."""


def speedups(seconds: Mapping[int, float], against: Mapping[int, float]) -> dict[int, float]:
    """How many times faster than the other, by rows."""
    return {rows: against[rows] / spent for rows, spent in seconds.items() if rows in against}


def mean_speedup(ratios: Mapping[int, float]) -> float:
    """The geometric mean; 1 where nothing was measured."""
    return math.exp(sum(map(math.log, ratios.values())) / len(ratios)) if ratios else 1.0


def choose(
    contenders: Sequence[Contender], max_drop: float, baseline: Contender | None, *, never_slower: bool
) -> Choice:
    """The fastest contender within the allowed drop; `contenders` come in order of preference where speed is unknown.

    With `never_slower` a contender that is slower than `baseline` at any measured number of rows is out, and one that
    is not clearly faster on the whole does not replace it.
    """
    against = {} if baseline is None else baseline.seconds
    verdicts: dict[str, str] = {}
    passed: list[tuple[float, Contender]] = []
    for contender in contenders:
        ratios = speedups(contender.seconds, against)
        speed = mean_speedup(ratios)
        is_baseline = baseline is not None and contender.label == baseline.label
        if not contender.drop <= max_drop:
            verdicts[contender.label] = f"refused: {contender.judged_by} {contender.drop:.2%}, allowed {max_drop:.2%}"
        elif never_slower and not is_baseline and any(ratio < 1 - NOISE for ratio in ratios.values()):
            rows = min(ratios, key=lambda each: ratios[each])
            verdicts[contender.label] = f"left out: {ratios[rows]:.2f} times as fast at {_rows(rows)}"
        elif never_slower and not is_baseline and ratios and speed < 1 + NOISE:
            verdicts[contender.label] = f"left out: {speed:.2f} times as fast is within the noise"
        else:
            verdicts[contender.label] = "within the allowed drop"
            passed.append((speed, contender))
    if not passed:
        least = min(contenders, key=lambda contender: contender.drop)
        return Choice(label=None, reason=verdicts[least.label], verdicts=verdicts)
    chosen = max(passed, key=lambda pair: pair[0])[1]
    return Choice(
        label=chosen.label, reason=_reason(chosen, contenders, baseline), verdicts={**verdicts, chosen.label: "chosen"}
    )


def _reason(chosen: Contender, contenders: Sequence[Contender], baseline: Contender | None) -> str:
    gate = f"{chosen.judged_by} {chosen.drop:.2%}"
    if not chosen.seconds:
        return f"{chosen.label}: the first in order of preference within the allowed drop ({gate}); not timed here"
    if baseline is None or chosen.label == baseline.label:
        if len(contenders) == 1:
            return f"{chosen.label}: as asked for"
        return f"{chosen.label}: nothing within the allowed drop is clearly faster at all measured batch sizes"
    ratios = speedups(chosen.seconds, baseline.seconds)
    said = ", ".join(
        f"{ratio:.2f} times as fast as {baseline.label} at {_rows(rows)}" for rows, ratio in ratios.items()
    )
    pays = "" if mean_speedup(ratios) >= 1 + NOISE else "; on this processor it does not pay"
    return f"{chosen.label}: {said}, {gate}{pays}"


def _rows(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"
