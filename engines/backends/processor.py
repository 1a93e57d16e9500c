"""What the processor can do with 8-bit and BF16 numbers, as far as answers depend on it.

x86 without VNNI (or AMX) multiplies unsigned by signed bytes with an instruction that adds two products into 16 bits
and saturates: 255 * 127 * 2 does not fit. ONNX Runtime uses it, and INT8 models answer wrongly without any error.
Weights of 7 bits cannot saturate. For weights of 8 bits `session.x64quantprecision` makes ONNX Runtime take another,
slower instruction; weights of 7 bits it leaves alone, so that setting it costs them nothing.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

PRECISION_KEY: Final = "session.x64quantprecision"
"""ONNX Runtime's switch for exact 8-bit products. On a processor with VNNI it would cost speed and gain nothing."""

_EXACT_FLAGS: Final = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
_BF16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})
_X86: Final = frozenset({"x86_64", "AMD64", "i686"})


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor that models run on."""

    name: str
    exact_int8: bool
    """Whether sums of 8-bit products cannot saturate: VNNI or AMX on x86, any other architecture."""
    bf16: bool = False
    """Whether it multiplies BF16, as far as is known: on x86 only."""


def read_processor(cpuinfo: Path, machine: str) -> Processor:
    """From Linux's description of it. An x86 that does not say what it can do is taken to lack VNNI."""
    facts: dict[str, str] = {}
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = facts.get("flags", "").split()
    return Processor(
        facts.get("model name", machine),
        exact_int8=machine not in _X86 or not _EXACT_FLAGS.isdisjoint(flags),
        bf16=not _BF16_FLAGS.isdisjoint(flags),
    )


@cache
def this_processor() -> Processor:
    """The one that this process runs on."""
    return read_processor(Path("/proc/cpuinfo"), platform.machine())
