"""Runs the conformance tools that tests/conformance/install.sh builds."""

from __future__ import annotations

import asyncio

from tests.support.tools import program as tool

__all__ = ["run", "tool"]


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
