"""A gRPC server over HTTP/2 for asyncio, with the surface of `grpc.aio.Server` that generated code uses."""

from __future__ import annotations

import asyncio
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from server.transport.http2.addresses import Address, bind
from server.transport.http2.deadlines import Deadlines
from server.transport.http2.dispatch import Dispatcher
from server.transport.http2.errors import ErrorCode
from server.transport.http2.options import Options
from server.transport.http2.session import Session
from server.transport.http2.statistics import Statistics
from server.transport.http2.tls import TlsOptions

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from server.transport.http2.call import Call
    from server.transport.http2.methods import RpcMethodHandler

_RECEIVE_BUFFER_BYTES: Final = 256 * 1024


class Server:
    """Serves gRPC calls on the running event loop.

    Handlers are added first, then ports, then `start`. `stop` drains and may be called again with less patience.
    """

    def __init__(
        self,
        options: Options | None = None,
        *,
        handlers: Sequence[grpc.GenericRpcHandler[Any, Any]] = (),
        interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
    ) -> None:
        self.options = options or Options()
        self.dispatcher = Dispatcher(interceptors)
        self.dispatcher.add_generic(handlers)
        self.dispatcher.admit = self.options.admit
        self.calls: set[Call] = set()
        """Calls whose handler runs."""
        self.deadlines: Deadlines[Call] = Deadlines()
        self.receive_buffer = memoryview(bytearray(_RECEIVE_BUFFER_BYTES))
        self._addresses: list[tuple[Address, ssl.SSLContext | None]] = []
        self._listeners: list[asyncio.Server] = []
        self._sessions: set[Session] = set()
        self._hosts: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._accepting = False
        self._idle = asyncio.Event()
        self._stop_by: float | None = None
        self._stopped = asyncio.Event()
        self._counts: Counter[str] = Counter()
        self._resets: Counter[int] = Counter()
        self._errors: Counter[str] = Counter()

    def __repr__(self) -> str:
        state = "stopped" if self._stopped.is_set() else "serving" if self._accepting else "not serving"
        return f"<Server [{state} | {len(self._sessions)} connections | {len(self.calls)} calls]>"

    # Setting up ------------------------------------------------------------

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        self.dispatcher.add_generic(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: dict[str, RpcMethodHandler]) -> None:
        self.dispatcher.register(service_name, method_handlers)

    def add_insecure_port(self, address: str) -> int:
        """Bind `address` ("host:port", "[::]:port", "unix:path"); the port. RuntimeError where that fails."""
        return self._add(address, None)

    def add_secure_port(self, address: str, credentials: TlsOptions | ssl.SSLContext) -> int:
        """As `add_insecure_port`, for TLS. grpc.ServerCredentials cannot be read, hence our own options."""
        return self._add(address, credentials.context() if isinstance(credentials, TlsOptions) else credentials)

    def _add(self, text: str, context: ssl.SSLContext | None) -> int:
        if self._accepting:
            raise RuntimeError("ports are added before the server starts")
        address = bind(text, reuse_port=self.options.reuse_port)
        self._addresses.append((address, context))
        return address.port

    # Life ------------------------------------------------------------

    async def start(self) -> None:
        """Accept connections on all ports."""
        self._loop = asyncio.get_running_loop()
        self._accepting = True
        for address, context in self._addresses:
            self._listeners.append(await self._listen(self._loop, address, context))

    async def _listen(
        self, loop: asyncio.AbstractEventLoop, address: Address, context: ssl.SSLContext | None
    ) -> asyncio.Server:
        def session() -> Session:
            return Session(self, secure=context is not None)

        listen = loop.create_unix_server if address.is_unix else loop.create_server
        timeout_s = self.options.handshake_timeout_s if context is not None else None
        return await listen(
            session,
            sock=address.socket,
            ssl=context,
            backlog=self.options.backlog,
            ssl_handshake_timeout=timeout_s,
        )

    async def stop(self, grace: float | None) -> None:
        """Take no new calls; wait up to `grace` seconds for the others, then cancel them; then close all."""
        by = monotonic() + (grace or 0.0)
        self._stop_by = by if self._stop_by is None else min(by, self._stop_by)
        self._accepting = False
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for session in list(self._sessions):
            session.drain()
        while (left_s := self._stop_by - monotonic()) > 0 and self._sessions:
            await self._wait_idle(left_s)
        self.cancel_calls()
        for session in list(self._sessions):
            session.connection.finish_drain()
            session.close()
        while self.calls or self._sessions:
            await self._wait_idle(None)
        for address, _ in self._addresses:
            address.release()
        self._addresses.clear()
        if self._alarm is not None:
            self._alarm.cancel()
        self._stopped.set()

    async def _wait_idle(self, timeout_s: float | None) -> None:
        """Wait until a connection closed or a call ended, `timeout_s` at most."""
        self._idle.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            pass

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - grpc.aio's signature
        """Wait until the server has stopped. Whether `timeout`, in seconds, passed first."""
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False

    # What sessions report ------------------------------------------------------------

    def session_opened(self, session: Session) -> bool:
        """Whether there is room for this connection."""
        limit = self.options.max_connections
        if not self._accepting or (limit is not None and len(self._sessions) >= limit):
            self._counts["refused"] += self._accepting
            return False
        host_limit = self.options.max_connections_per_host
        if host_limit is not None and session.host:
            if self._hosts[session.host] >= host_limit:
                self._counts["refused"] += 1
                return False
            self._hosts[session.host] += 1
        self._sessions.add(session)
        self._counts["connections"] += 1
        return True

    def session_closed(self, session: Session) -> None:
        if session not in self._sessions:  # it was turned away
            return
        self._sessions.discard(session)
        if session.host in self._hosts:
            self._hosts[session.host] -= 1
            if not self._hosts[session.host]:
                del self._hosts[session.host]
        self._counts["received"] += session.received_bytes
        self._counts["sent"] += session.sent_bytes
        self._resets.update(session.connection.resets)
        if session.connection.fault is not None:
            self._errors[session.connection.fault.code.name] += 1
        self._idle.set()

    def call_expires(self, call: Call, when: float) -> None:
        """`call` has a deadline."""
        if self.deadlines.add(when, call):
            self._set_alarm(when)

    def call_settled(self, call: Call) -> None:
        self.calls.discard(call)
        self._counts["calls"] += 1
        if not self._accepting:
            self._idle.set()

    def cancel_calls(self, session: Session | None = None) -> None:
        """End all calls, or those of one connection, with status UNAVAILABLE."""
        for call in list(self.calls):
            if session is None or call.host is session:
                call.fail(grpc.StatusCode.UNAVAILABLE, "the server is shutting down", cancelled=True)

    def _set_alarm(self, when: float) -> None:
        assert self._loop is not None
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_later(max(0.0, when - monotonic()), self._expire)

    def _expire(self) -> None:
        self._alarm = None
        for call in self.deadlines.expired(monotonic()):
            self._counts["expired"] += 1
            call.fail(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", cancelled=True)
        if (when := self.deadlines.next()) is not None:
            self._set_alarm(when)

    def statistics(self) -> Statistics:
        """A snapshot for an exporter."""
        sessions = list(self._sessions)
        resets = Counter(self._resets)
        for session in sessions:
            resets.update(session.connection.resets)
        return Statistics(
            connections=len(sessions),
            connections_accepted=self._counts["connections"],
            streams=sum(len(session.connection.streams) for session in sessions),
            calls=len(self.calls),
            calls_started=self._counts["calls"] + len(self.calls),
            calls_expired=self._counts["expired"],
            received_bytes=self._counts["received"] + sum(session.received_bytes for session in sessions),
            sent_bytes=self._counts["sent"] + sum(session.sent_bytes for session in sessions),
            queued_bytes=sum(session.connection.sender.queued_bytes for session in sessions),
            buffered_bytes=sum(session.connection.buffered_bytes for session in sessions),
            resets={_code_name(code): count for code, count in resets.items()},
            connection_errors=dict(self._errors),
        )


def _code_name(code: int) -> str:
    return ErrorCode(code).name if code in ErrorCode.__members__.values() else "UNKNOWN"
