"""One client's connection on the event loop: feeds the protocol core from the socket and the socket from the core.

Bytes are parsed in place, in one receive buffer that all connections of a loop share: a read and its handling never
interleave with another's, and only an unfinished frame is kept. Large messages are read straight to their place.
What is sent within one turn of the loop leaves in one write.
"""

from __future__ import annotations

import asyncio
import math
import random
import ssl
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

import grpc

from server.transport.http2 import tls
from server.transport.http2.call import Call
from server.transport.http2.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from server.transport.http2.deadlines import Deadlines
    from server.transport.http2.options import Options
    from server.transport.http2.requests import RequestHead
    from server.transport.http2.server import Server
    from server.transport.http2.streams import Receiver, Stream

_KEEPALIVE_PING: Final = b"kalive\x00\x01"
_WRITE_HIGH_BYTES: Final = 512 * 1024
_WRITE_LOW_BYTES: Final = 128 * 1024
_JOIN_UP_TO_BYTES: Final = 128 * 1024
"""Above this, handing the pieces to the transport is cheaper than copying them into one."""
_CLOSE_TIMEOUT_S: Final = 5.0


class Session(asyncio.BufferedProtocol):
    """Glue between a transport and a `Connection`; the host of its calls."""

    def __init__(self, server: Server, *, secure: bool) -> None:
        self._server = server
        self._secure = secure
        self.options: Options = server.options
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.deadlines: Deadlines[Call] = server.deadlines
        self.connection = Connection(self, server.options.limits)
        self.connection.sender.inflight = server.options.inflight
        self.peer = ""
        self.host = ""
        """The client's address without its port; empty for a socket of the file system."""
        self._incomplete: set[Receiver] = set()  # unary calls whose request had not arrived at the last look
        self.received_bytes = 0
        self.sent_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._buffer = server.receive_buffer
        self._tail = b""  # an unfinished frame
        self._landing = False
        self._jammed_bytes = 0  # what the socket held when it took no more
        self._stuck_at: float | None = None  # since when the unfinished frame has made no progress
        self._auth: Mapping[str, Sequence[bytes]] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._heard_at = monotonic()
        self._busy_at = self._heard_at

    def __repr__(self) -> str:
        return f"<Session {self.peer} {self.connection!r}>"

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES, low=_WRITE_LOW_BYTES)
        name = transport.get_extra_info("peername")
        self.peer = _peer_name(name)
        self.host = name[0] if isinstance(name, tuple) else ""
        tls_object: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if tls_object is not None and tls_object.selected_alpn_protocol() != "h2":
            self._transport.abort()
            return
        if not self._server.session_opened(self):
            self._transport.abort()
            return
        self.connection.open()
        options = self.options
        self._after("handshake", options.handshake_timeout_s, self._check_handshake)
        self._after("keepalive", options.keepalive_interval_s, self._check_silence)
        self._after("requests", options.request_timeout_s, self._check_requests)
        self._after("idle", options.max_connection_idle_s, self._check_idle)
        age_s = options.max_connection_age_s * random.uniform(0.9, 1.1)  # noqa: S311 - spreads reconnections
        self._after("age", age_s, self._retire)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self.connection.lost()
        self._unjam()
        self._server.session_closed(self)
        self._transport = None

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        landing = self.connection.landing()
        if landing is not None:
            self._landing = True
            return landing
        tail = self._tail
        if not tail:
            return self._buffer
        self._buffer[: len(tail)] = tail
        return self._buffer[len(tail) :]

    def buffer_updated(self, nbytes: int) -> None:
        now = self._heard_at = monotonic()
        self.received_bytes += nbytes
        if self._landing:
            self._landing = False
            self.connection.landed(nbytes)
            return
        end = len(self._tail) + nbytes
        view = self._buffer[:end]
        used = self.connection.receive(view, now)
        if used == end:
            self._tail = b""
            if self.connection.inside_block:
                self._watch_frame(now, progress=False)
            else:
                self._stuck_at = None
        else:
            self._tail = view[used:].tobytes()
            self._watch_frame(now, progress=used > 0)
        if self.connection.closed:
            self.close()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.connection.sender.cork()
        if self._transport is not None:
            self._transport.pause_reading()
            if (inflight := self.options.inflight) is not None:
                self._jammed_bytes = self._transport.get_write_buffer_size()
                inflight.add(self._jammed_bytes)
        self._watch_progress()

    def resume_writing(self) -> None:
        self._unjam()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self.connection.sender.uncork()

    def _unjam(self) -> None:
        if self._jammed_bytes and self.options.inflight is not None:
            self.options.inflight.release(self._jammed_bytes)
            self._jammed_bytes = 0

    # The connection's owner ------------------------------------------------------------

    def accept(self, stream: Stream, head: RequestHead, ended: bool) -> Receiver:
        return self._server.dispatcher.accept(self, stream, head, ended)

    def output_ready(self) -> None:
        self.loop.call_soon(self._flush)

    def emptied(self) -> None:
        self.loop.call_soon(self.close)

    def ping_acked(self) -> None:
        pass  # any byte is a sign of life, and is noted as it comes

    def _flush(self) -> None:
        transport = self._transport
        sender = self.connection.sender
        if transport is None or not sender.announced:
            return
        large = sender.ready_bytes > _JOIN_UP_TO_BYTES
        chunks = sender.take()
        if large:
            self.sent_bytes += sum(map(len, chunks))
            # Before Python 3.12.9 and 3.13.2 asyncio's writelines never says that the socket is full; its write does.
            transport.writelines(chunks[:-1])
            transport.write(chunks[-1])
        else:
            data = b"".join(chunks)
            self.sent_bytes += len(data)
            transport.write(data)
        if sender.queued_bytes:
            sender.pump()
            self._watch_progress()

    # The calls' host ------------------------------------------------------------

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        if self._auth is None:
            self._auth = self._identify() if self._secure else tls.INSECURE
        return self._auth

    def running_calls(self) -> int:
        return len(self._server.calls)

    def call_expires(self, call: Call, when: float) -> None:
        self._server.call_expires(call, when)

    def call_started(self, call: Call) -> None:
        self._server.calls.add(call)

    def call_settled(self, call: Call) -> None:
        self._server.call_settled(call)
        self._busy_at = self._heard_at

    def _identify(self) -> Mapping[str, Sequence[bytes]]:
        tls_object = self._transport.get_extra_info("ssl_object") if self._transport is not None else None
        if tls_object is None:
            return tls.auth_context(None, None)
        der = tls_object.getpeercert(binary_form=True)
        pem = ssl.DER_cert_to_PEM_cert(der).encode() if der else None
        return tls.auth_context(tls_object.getpeercert(), pem)

    # The connection's life ------------------------------------------------------------

    def drain(self) -> None:
        """Take no new calls, let the others end, then close."""
        self.connection.drain()
        self._after("drain", self.options.keepalive_timeout_s, self.connection.finish_drain)

    def close(self) -> None:
        """Send what is ready, then close; a peer that does not take it in time is cut off."""
        transport = self._transport
        if transport is None:
            return
        self._flush()
        if not transport.is_closing():
            transport.close()
            self._after("close", _CLOSE_TIMEOUT_S, transport.abort)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def cancel_calls(self) -> None:
        """End all calls of this connection, then close it."""
        self._server.cancel_calls(self)
        self.close()

    def _after(self, name: str, delay_s: float, action: object) -> None:
        """Do `action` in `delay_s`, in place of what was planned under that name."""
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
        if delay_s != math.inf:
            self._timers[name] = self.loop.call_later(delay_s, action)  # type: ignore[arg-type] # any callable

    def _check_handshake(self) -> None:
        if not self.connection.greeted:
            self.abort()

    def _watch_frame(self, now: float, *, progress: bool) -> None:
        """A frame or a header block is unfinished: see that its end comes in time."""
        if self._stuck_at is None or progress:
            self._stuck_at = now
        if "frame" not in self._timers:
            self._after("frame", self.options.frame_timeout_s, self._check_frame)

    def _check_frame(self) -> None:
        self._timers.pop("frame", None)
        if self._stuck_at is None:
            return
        left_s = self._stuck_at + self.options.frame_timeout_s - monotonic()
        if left_s <= 0:
            self.abort()
        else:
            self._after("frame", left_s, self._check_frame)

    def _check_requests(self) -> None:
        """End unary calls whose request was incomplete at the last look and still is."""
        incomplete: set[Receiver] = set()
        for stream in list(self.connection.streams.values()):
            call = stream.receiver
            if not isinstance(call, Call) or call.task is not None or call.done():
                continue
            if call in self._incomplete:
                call.fail(grpc.StatusCode.DEADLINE_EXCEEDED, "the request did not arrive in time")
            else:
                incomplete.add(call)
        self._incomplete = incomplete
        self._after("requests", self.options.request_timeout_s, self._check_requests)

    def _check_silence(self) -> None:
        """Ping a client that has been silent for long."""
        interval_s = self.options.keepalive_interval_s
        silent_s = monotonic() - self._heard_at
        if silent_s < interval_s:
            self._after("keepalive", interval_s - silent_s, self._check_silence)
            return
        self.connection.ping(_KEEPALIVE_PING)
        asked_at = monotonic()
        self._after("keepalive", self.options.keepalive_timeout_s, lambda: self._check_alive(asked_at))

    def _check_alive(self, asked_at: float) -> None:
        if self._heard_at < asked_at:
            self.abort()
        else:
            self._check_silence()

    def _check_idle(self) -> None:
        limit_s = self.options.max_connection_idle_s
        idle_s = 0.0 if self.connection.streams else monotonic() - self._busy_at
        if idle_s >= limit_s:
            self.drain()
        else:
            self._after("idle", limit_s - idle_s, self._check_idle)

    def _retire(self) -> None:
        self.drain()
        self._after("age", self.options.max_connection_age_grace_s, self.cancel_calls)

    def _watch_progress(self) -> None:
        """Something waits for the client: see that it takes some of it in time."""
        if "progress" not in self._timers:
            taken = self._taken_bytes()
            self._after("progress", self.options.send_timeout_s, lambda: self._check_progress(taken))

    def _check_progress(self, taken: int) -> None:
        self._timers.pop("progress", None)
        sender = self.connection.sender
        if not sender.queued_bytes and not sender.corked:
            return
        if self._taken_bytes() == taken:
            self.abort()
        else:
            self._watch_progress()

    def _taken_bytes(self) -> int:
        """What the client's socket has taken so far."""
        return self.sent_bytes - (self._transport.get_write_buffer_size() if self._transport is not None else 0)


def _peer_name(name: object) -> str:
    """A socket's address as gRPC writes it."""
    if isinstance(name, tuple):
        host, port = name[0], name[1]
        return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
    return "unix:" + (name if isinstance(name, str) else "")
