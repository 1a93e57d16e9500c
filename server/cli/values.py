"""Values that options take: times, shares, numbers, costs. Each function reads one and raises click.BadParameter."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import rich_click as click

from engines.scheduling.cases import Affine, Measured

Value = TypeVar("Value", int, float)

_UNITS: Final[Mapping[str, float]] = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_TIME: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|m|h|)")


def duration(text: str) -> float:
    """Seconds, from `20ms`, `1.5s`, `300us`, `10m`, or a bare number of seconds; `none` is infinite."""
    if text == "none":
        return math.inf
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"'{text}' is not a time like 20ms, 1.5s or 300us")
    return float(found[1]) * _UNITS[found[2]]


def durations(text: str) -> dict[float, float]:
    """Share by seconds, from `20ms:3,50ms,none:0.1`; a share is 1 where none is given."""
    shares = _shares(text, duration)
    if min(shares) <= 0.0:
        raise click.BadParameter("a deadline must be longer than nothing")
    return shares


def row_counts(text: str) -> dict[int, float]:
    """Share by rows, from `1:9,8`."""
    return _shares(text, lambda part: int(_number(part)))


def numbers(text: str) -> list[float]:
    """Numbers above 0, from `0.5,1,2`."""
    found = [_number(part) for part in text.split(",")]
    if min(found) <= 0.0:
        raise click.BadParameter("numbers must be above 0")
    return found


def cost(text: str) -> Callable[[int], float]:
    """Seconds by rows, from `2ms+1.5ms` or a JSON file: an object, or an object under its key `seconds`."""
    start, plus, row = text.partition("+")
    if plus and not Path(text).exists():
        curve = Affine(duration(start), duration(row))
        if not 0.0 < curve(1) < math.inf:
            raise click.BadParameter("an execution takes some time")
        return curve
    try:
        state = json.loads(Path(text).read_text())
        points = sorted((int(rows), float(took)) for rows, took in state.get("seconds", state).items())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise click.BadParameter(
            f"'{text}' is neither like 2ms+1.5ms nor a file of seconds by rows: {error}"
        ) from error
    if not points or points[0][0] < 1 or min(took for _, took in points) <= 0.0:
        raise click.BadParameter(f"{text} has no execution times above 0")
    return Measured(points)


def _shares(text: str, each: Callable[[str], Value]) -> dict[Value, float]:
    shares: dict[Value, float] = {}
    for part in text.split(","):
        what, _, share = part.partition(":")
        shares[each(what)] = _number(share or "1")
    if min(shares.values()) < 0.0 or sum(shares.values()) <= 0.0:
        raise click.BadParameter("shares must not be negative, nor all 0")
    return shares


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"'{text}' is not a number") from None
