"""Finds and runs the conformance tools that tests/conformance/install.sh builds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

_TOOLS = Path(__file__).resolve().parents[2] / ".tools" / "bin"


def tool(name: str) -> str:
    """The path of a tool; the test fails, and says what to do, where it is missing."""
    path = _TOOLS / name
    if not path.exists():
        pytest.fail(f"{name} is missing: `make conformance` builds it (needs Go)")
    return str(path)


async def run(*command: str, timeout_s: float = 90.0) -> tuple[int, str]:
    """Exit status and all output of a command that ends by itself."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output.decode(errors="replace")
