"""What a monitor says of a model version at one time: one number a signal, and whether it is an alarm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

VOLUME: Final = "volume"
"""Requests a second."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One signal: `drift`, `drift.<input>`, `prediction_drift`, `confidence` or `volume`."""

    signal: str
    value: float
    alarm: bool
    """Whether it is beyond what chance explains at the configured level. Never, for a signal without a test."""
    samples: int
    """Rows that it was computed from."""
    at: float
    """When it was computed, in seconds since 1970."""
    p_value: float = math.nan
    """How often an unchanged world gives a value as far out, corrected for all that was tested. NaN: no test."""
    threshold: float = math.nan
    """Where the alarm begins, on the scale of `value`. NaN where it begins at a p-value."""
