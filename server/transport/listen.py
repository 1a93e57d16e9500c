"""Where the server listens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenOptions:
    """Options of the gRPC listener, whichever transport it is."""

    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this host only."""
    port: int = 8001
    """0: any free one."""
    max_message_bytes: int = 256 << 20
    """Largest message taken or sent; larger ones end the call with RESOURCE_EXHAUSTED."""
