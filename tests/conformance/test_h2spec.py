"""h2spec, strict: HTTP/2 and HPACK rule by rule."""

from __future__ import annotations

import asyncio
import re

import pytest

from server.transport.http2 import Limits, Options, Server
from tests.conformance.tools import run, tool

pytestmark = pytest.mark.integration

# h2spec holds a 20 KB HEADERS frame to be longer than any server allows; by default we allow longer ones, and answer
# the request. So that one case runs against HTTP/2's own default, and all others against both.
HTTP2_DEFAULT = Options(limits=Limits(max_frame_size=16_384))
CONFIGURATIONS = {"our-frame-size": (Options(), 145), "default-frame-size": (HTTP2_DEFAULT, 146)}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_all_cases(name: str) -> None:
    options, expected = CONFIGURATIONS[name]

    async def scenario() -> str:
        server = Server(options)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            _, output = await run(tool("h2spec"), "--strict", "-h", "127.0.0.1", "-p", str(port), "-o", "2")
            return output
        finally:
            await server.stop(None)

    output = asyncio.run(scenario())
    summary = re.search(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed", output)
    assert summary is not None, output
    total, passed, skipped, _ = map(int, summary.groups())
    assert (total, passed, skipped) == (146, expected, 0), output
    if expected < total:
        assert "exceeds the SETTINGS_MAX_FRAME_SIZE" in output.partition("Failures")[2]
