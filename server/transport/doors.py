"""The gRPC server with what stands before it: certificates, the access policy, and what follows their files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from server.access.gate import PolicyFile
from server.reload import Reloads
from server.transport.certificates import Certificates
from server.transport.guard import Guard, GuardedServer, Wrap, as_it_is, closed_to_others, is_loopback
from server.transport.inflight import Inflight
from server.transport.listen import ListenOptions, create_server


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessOptions:
    """Who may call, and how changes are noticed."""

    policy: Path | None = None
    """The access policy. None: open to this host; to others all but what changes the server."""
    reload_s: float = 5.0
    """Seconds between looks at the policy, certificates and keys. 0: only on SIGHUP."""


class Doors:
    """See the module. `register` is for generated code; `server` is the transport itself."""

    def __init__(
        self,
        listen: ListenOptions,
        access: AccessOptions,
        inflight: Inflight | None = None,
        shed: Callable[[], None] = lambda: None,
    ) -> None:
        """Binds the port. Raises OSError, or ValueError for files that cannot be used."""
        certificates = None if listen.tls is None else Certificates(listen.tls)
        self._policy = None if access.policy is None else PolicyFile(access.policy)
        wrap: Wrap
        looks: list[Callable[[], Awaitable[None]]] = []
        if self._policy is not None:
            guard = Guard(self._policy.gate)
            self.server, self.port = create_server(listen, certificates, guard.admit, inflight, shed)
            wrap = guard.wrap
            looks.append(self._policy.refresh)
        else:
            self.server, self.port = create_server(listen, certificates, inflight=inflight, shed=shed)
            wrap = as_it_is if is_loopback(listen.host) else closed_to_others
        self.register = GuardedServer(self.server, wrap)
        if certificates is not None:
            looks.append(lambda: asyncio.to_thread(certificates.refresh))
        self._reloads = Reloads(looks, access.reload_s)

    async def start(self) -> None:
        """Accept connections."""
        if self._policy is not None:
            await self._policy.gate.refresh()
        await self.server.start()
        self._reloads.start()

    def look(self) -> None:
        """See now whether files have changed."""
        self._reloads.now()

    async def stop(self, grace_s: float) -> None:
        """Let calls end for up to `grace_s` seconds, then close."""
        await self.server.stop(grace_s)
        await self._reloads.stop()
