"""What can be fuzzed: a function of bytes that raises only where there is something to fix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from tests.fuzz.mutate import mutate_bytes

Mutate: TypeAlias = Callable[[bytes, Random], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One way in for bytes of strangers."""

    name: str
    run: Callable[[bytes], None]
    """Raises for a finding, and for nothing else."""
    mutate: Mutate = mutate_bytes
    """Makes a neighbour of an input that is likely to get past the first checks."""
    seeds: Callable[[], Sequence[bytes]] = field(default=lambda: (b"",))
    """What to begin with, beside the kept corpus."""
    close: Callable[[], None] = lambda: None
    """Ends what runs for it; nothing is called after that."""
