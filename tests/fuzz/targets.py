"""All targets by name; a new one is a module with a TARGET and a line here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.fuzz.target import Target

NAMES: Final = ("codec", "configuration", "repository", "wire", "control", "feedback", "access")
"""Each is a module beside this one; they are imported one at a time, since each sets up its own stage."""


def find(name: str) -> Target:
    """The target of that name."""
    target: Target = importlib.import_module(f"tests.fuzz.{name}").TARGET
    return target
