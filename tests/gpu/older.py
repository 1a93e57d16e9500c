"""Runs a module on CPython 3.10, too: the wheels of TensorRT 8 exist for no later version.

`python -m tests.gpu.older MODULE ARGUMENTS`. What Kairos uses of Python 3.11's library on this path is stood in for.
"""

from __future__ import annotations

import datetime as dt
import enum
import runpy
import sys


def stand_in() -> None:
    """Give Python 3.10 the two names that it lacks."""
    if not hasattr(enum, "StrEnum"):
        enum.StrEnum = type("StrEnum", (str, enum.Enum), {"__str__": str.__str__})  # type: ignore[misc,assignment]
    if not hasattr(dt, "UTC"):
        dt.UTC = dt.timezone.utc  # type: ignore[attr-defined]  # noqa: UP017


if __name__ == "__main__":
    stand_in()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
