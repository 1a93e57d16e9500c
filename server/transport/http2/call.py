"""One call: what arrived for it, what it answers, how it ends; and the context its servicer sees.

Promise: each call ends exactly once (status sent, or the stream gone), and then its done callbacks run.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import grpc
import grpc.aio

from server.transport.http2.hpack import literal
from server.transport.http2.messages import (
    ENCODING_NAMES,
    PREFIX,
    PREFIX_BYTES,
    Assembler,
    MessageFault,
    compress,
)
from server.transport.http2.metadata import Metadata, MetadataLike, encode_metadata, percent_encode
from server.transport.http2.sender import RESPONSE_BLOCK
from server.transport.http2.streams import NOBODY
from server.transport.inflight import TEXT, TRAILERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from server.transport.http2.connection import Connection
    from server.transport.http2.deadlines import Deadlines
    from server.transport.http2.methods import Method
    from server.transport.http2.options import Options
    from server.transport.http2.requests import RequestHead
    from server.transport.http2.streams import Stream
    from server.transport.http2.turns import Turns
    from server.transport.inflight import Inflight

_log = logging.getLogger(__name__)

EOF: Final[object] = getattr(grpc.aio, "EOF")  # noqa: B009 - its type stubs forgot it
"""What `read` gives when the client sends no more."""

_UNSENT_LOW_BYTES: Final = 64 * 1024
"""A writer goes on once less than this waits for its stream's window."""

_WRITES_IN_A_ROW: Final = 32
"""Writes that never had to wait, after which a call gives the event loop a turn."""

_LANDING_BYTES: Final = 8 * 1024
"""Less than this is not worth a read of its own into the message's memory."""

_STREAM_BYTES: Final = 64 * 1024
"""So much may wait for a handler that reads a stream, however much the server holds."""

BUSY: Final = "the server is asked more than it can answer in time"
BUSY_TRAILERS: Final = (("retryable", "true"), ("retry-after-ms", "20"), ("grpc-retry-pushback-ms", "20"))

_STATUS: Final = {code: literal(b"grpc-status", str(code.value[0]).encode()) for code in grpc.StatusCode}
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class Unreadable(Exception):
    """A request message that its deserializer does not understand; the cause says why."""


class Host(Protocol):
    """What a call needs of the connection it came by."""

    connection: Connection
    options: Options
    peer: str
    loop: asyncio.AbstractEventLoop
    deadlines: Deadlines[Call]

    def auth_context(self) -> Mapping[str, Sequence[bytes]]: ...

    def running_calls(self) -> int: ...

    def call_expires(self, call: Call, when: float) -> None: ...

    def call_started(self, call: Call) -> None: ...

    def call_settled(self, call: Call) -> None: ...


class Call(grpc.aio.ServicerContext[Any, Any]):
    """A call, as its stream's receiver and as its servicer's context.

    `deadline` is in seconds of `time.monotonic`, which is also the event loop's clock.
    """

    __slots__ = (
        "_aborted",
        "_assembler",
        "_callbacks",
        "_cancelled",
        "_code",
        "_compress_next",
        "_connection",
        "_counted",
        "_details",
        "_encoding",
        "_ended",
        "_head_sent",
        "_inflight",
        "_lingers",
        "_messages",
        "_over",
        "_reader",
        "_stream",
        "_trailing",
        "_turns",
        "_unread",
        "_working",
        "_writer",
        "_writes",
        "deadline",
        "entered",
        "head",
        "host",
        "method",
        "task",
    )  # fmt: skip

    def __init__(
        self, host: Host, stream: Stream, head: RequestHead, method: Method, turns: Turns | None = None
    ) -> None:
        self.host = host
        self._turns = turns
        self._connection = host.connection
        self._stream = stream
        self.head = head
        self.method = method
        self.deadline: float | None = None if head.timeout_s is None else monotonic() + head.timeout_s
        self.task: asyncio.Task[None] | None = None
        """Runs the handler; None until there is something to run it on."""
        self.entered = False
        """Whether that task has begun: cancelled sooner, it would not even see how the call ended."""
        self._messages: deque[bytes] | None = None  # received, not yet read
        self._unread = 0
        self._inflight = host.options.inflight
        self._counted = 0  # bytes of this call that `_inflight` has
        self._working = 0  # bytes of the one request that the handler works on
        self._assembler: Assembler | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._writes = 0
        self._ended = False  # the client sends no more
        self._over = False  # nothing can be sent any more
        self._cancelled = False
        self._lingers = False  # the handler runs on though the call is over
        self._aborted: BaseException | None = None
        self._head_sent = False
        self._encoding = b""
        if host.options.compression is not grpc.Compression.NoCompression:
            self.set_compression(host.options.compression)
        self._compress_next = True
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailing: MetadataLike = ()
        self._callbacks: list[Callable[[Any], None]] | None = None

    def __repr__(self) -> str:
        state = "cancelled" if self._cancelled else "over" if self._over else "running" if self.task else "receiving"
        return f"<Call {self.head.path.decode('latin-1')} [{state}]>"

    # What arrives ------------------------------------------------------------

    def data_received(self, view: memoryview, ended: bool) -> None:
        size = len(view) - PREFIX_BYTES
        if self._assembler is None and size >= 0:
            flag, length = PREFIX.unpack_from(view)
            if length == size and flag == 0 and size <= self.host.options.max_receive_message_bytes:
                self._message(view[PREFIX_BYTES:].tobytes())
                if self._inflight is not None and not self._count(self._inflight):
                    return
                if ended:
                    self._body_ended()
                return
        self._pieces(view, ended)

    def landing(self, limit: int) -> memoryview | None:
        if self._assembler is None or self._over or limit < _LANDING_BYTES:
            return None
        target = self._assembler.landing(limit)
        return target if target is not None and len(target) >= _LANDING_BYTES else None

    def landed(self, size: int, ended: bool) -> None:
        if self._over or self._assembler is None:
            return
        held = self._assembler.held_bytes
        try:
            for message in self._assembler.landed(size):
                self._connection.buffered_bytes -= held
                self._message(message)
        except MessageFault as fault:
            self._connection.buffered_bytes -= held
            self.fail(fault.code, fault.details)
            return
        if self._inflight is not None and not self._count(self._inflight):
            return
        if ended:
            self._body_ended()

    def reset(self, code: int) -> None:  # noqa: ARG002 - the protocol's signature
        """The client went away, or its stream was ended: the handler is cancelled, nothing can be sent."""
        if not self._over:
            self._cancelled = True
            self._close(abandon=True)

    def sent(self) -> None:
        if self._writer is not None and self._stream.queued_bytes < _UNSENT_LOW_BYTES:
            _wake(self._writer)

    def _pieces(self, view: memoryview, ended: bool) -> None:
        """A body that does not come one whole message at a time."""
        if self._over:
            return
        assembler = self._assembler
        if assembler is None:
            limit = self.host.options.max_receive_message_bytes
            assembler = self._assembler = Assembler(limit, self.head.encoding)
        connection = self._connection
        held = assembler.held_bytes
        try:
            for message in assembler.feed(view):
                self._message(message)
        except MessageFault as fault:
            connection.buffered_bytes -= held
            self.fail(fault.code, fault.details)
            return
        connection.buffered_bytes += assembler.held_bytes - held
        if connection.buffered_bytes > self.host.options.limits.max_buffered_bytes:
            self.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many request bytes wait on this connection")
        elif self._inflight is not None and not self._count(self._inflight):
            return
        elif ended:
            self._body_ended()
        else:
            self._replenish()

    def _message(self, message: bytes) -> None:
        """One whole request message."""
        if self._over:
            return
        messages = self._messages
        if messages is None:
            messages = self._messages = deque()
        messages.append(message)
        self._unread += len(message)
        self._connection.buffered_bytes += len(message)
        if self._reader is not None:
            _wake(self._reader)

    def _count(self, inflight: Inflight) -> bool:
        """Bring the server's count in line with what this call holds. False where that is too much: the call is over.

        A unary request counts until its handler has ended; those of a stream only until they are read, and a little of
        them is always taken, since their handler can refuse one and go on with the next.
        """
        held = self._unread + self._working
        if self._assembler is not None:
            held += self._assembler.held_bytes
        more = held - self._counted
        if more <= 0 or (self.method.starts_at_once and held <= _STREAM_BYTES):
            inflight.add(more)
        elif not inflight.take(more):
            self._trailing = TRAILERS
            self.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, TEXT)
            return False
        self._counted = held
        return True

    def _body_ended(self) -> None:
        self._ended = True
        if self._assembler is not None and self._assembler.inside:
            self.fail(grpc.StatusCode.INTERNAL, "the request ends inside a message")
        elif self.task is None and not self._over:
            if self._messages is None or len(self._messages) != 1:
                self.fail(grpc.StatusCode.UNIMPLEMENTED, "exactly one request message is expected")
            elif self._turns is not None:
                self._turns.start(self)
            else:
                self.start()
        elif self._reader is not None:
            _wake(self._reader)

    def _replenish(self) -> None:
        """Open the stream's window again for what was read, or for the message that is under way."""
        if self._ended or self._over:
            return
        window = self.host.options.limits.stream_window_bytes
        filled = missing = 0
        if self._assembler is not None:
            filled = self._assembler.filled_bytes
            missing = self._assembler.missing_bytes
        allowed = max(window - self._unread - filled, missing)
        granted = self._stream.receive_window
        if allowed - granted >= window // 2 or granted < missing:
            self._connection.grant(self._stream, allowed - granted)

    # What the runner does ------------------------------------------------------------

    def start(self) -> None:
        """Run the handler."""
        self.task = self.host.loop.create_task(self.method.serve(self))
        self.host.call_started(self)

    def take_request(self) -> Any:  # noqa: ANN401 - whatever the method's deserializer makes
        """The next request message; IndexError when none is there, Unreadable when it makes no sense."""
        messages = self._messages
        if not messages:
            raise IndexError("no message")
        message = messages.popleft()
        self._unread -= len(message)
        self._connection.buffered_bytes -= len(message)
        if self._inflight is not None:
            if self.method.starts_at_once:
                self._count(self._inflight)
            else:
                self._working = len(message)
        if not self._ended and self._stream.receive_window <= self.host.options.limits.stream_window_bytes // 2:
            self._replenish()
        deserialize = self.method.deserialize
        if deserialize is None:
            return message
        try:
            return deserialize(message)
        except Exception as error:
            raise Unreadable(type(error).__name__) from error

    def respond(self, response: Any) -> None:  # noqa: ANN401 - whatever the method's serializer takes
        """End a unary answer: one message, then the status."""
        if self._over:
            return
        if self._code is not None and self._code is not grpc.StatusCode.OK:
            self.finish()
            return
        serialize = self.method.serialize
        message: bytes = response if serialize is None else serialize(response)
        limit = self.host.options.max_send_message_bytes
        if (
            self._head_sent
            or self._trailing
            or self._details
            or self._encoding
            or (limit is not None and len(message) > limit)
        ):
            if self._send_message(message):
                self.finish()
            return
        self._connection.sender.respond(self._stream, message)
        self._close()

    def finish(self, code: grpc.StatusCode | None = None, details: str | None = None, *, abandon: bool = False) -> None:
        """Send the status, unless the call is over; `code` and `details` replace what was set before."""
        if self._over:
            return
        if code is not None:
            self._code = code
        if details is not None:
            self._details = details
        block = _STATUS[self._code or grpc.StatusCode.OK]
        if self._details:
            block += literal(b"grpc-message", percent_encode(self._details))
        block += encode_metadata(self._trailing)
        sender = self._connection.sender
        if self._head_sent:
            sender.end(self._stream, block)
        else:
            self._head_sent = True
            sender.headers(self._stream, RESPONSE_BLOCK + block, end_stream=True)
        self._close(abandon=abandon)

    def fail(self, code: grpc.StatusCode, details: str, *, cancelled: bool = False) -> None:
        """End the call from outside its handler, which is cancelled if it runs."""
        if not self._over:
            self._cancelled = cancelled
            self.finish(code, details, abandon=True)

    def turn_away(self) -> None:
        """End the call, whose handler has not begun, because it cannot be answered in time."""
        self._trailing = BUSY_TRAILERS
        self.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, BUSY)

    def settle(self) -> None:
        """The handler has returned, whatever became of the call."""
        if self._lingers:
            self._connection.lingering -= 1
        if self._aborted is not None:  # a cycle by way of its frames, which hold the request until it is collected
            self._aborted.__traceback__ = self._aborted.__context__ = None
        if self._inflight is not None:
            self._working = 0
            self._count(self._inflight)
        self._let_go()
        self.host.call_settled(self)
        self.task = None  # its context holds the request, and the heap of deadlines may hold this call for long

    def _close(self, *, abandon: bool = False) -> None:
        """The one place where a call becomes over; `abandon`: while its handler still runs."""
        self._over = True
        if self.deadline is not None:
            self.host.deadlines.finished += 1
        connection = self._connection
        if self._unread:
            connection.buffered_bytes -= self._unread
            self._unread = 0
            self._messages = None
        if self._assembler is not None:
            connection.buffered_bytes -= self._assembler.held_bytes
            self._assembler = None
        if self._inflight is not None:
            self._count(self._inflight)
        if abandon and self.task is not None:
            self._lingers = True
            connection.lingering += 1
            if self.entered:
                self.task.cancel()
        if self.task is None:
            self._let_go()
        if self._callbacks:
            for callback in self._callbacks:
                _guarded(callback, self)

    def _let_go(self) -> None:
        """Nothing can come of this call any more: leave its stream, so that neither waits for the collector."""
        self._stream.receiver = NOBODY

    # Sending ------------------------------------------------------------

    def _send_head(self, metadata: MetadataLike = ()) -> None:
        self._head_sent = True
        block = RESPONSE_BLOCK
        if self._encoding:
            block += literal(b"grpc-encoding", self._encoding)
        self._connection.sender.headers(self._stream, block + encode_metadata(metadata))

    def _send_message(self, message: bytes) -> bool:
        """Send one reply message. False where it was too large, and the call ended instead."""
        limit = self.host.options.max_send_message_bytes
        if limit is not None and len(message) > limit:
            self.finish(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"SERVER: Sent message larger than max ({len(message)} vs. {limit})",
            )
            return False
        if not self._head_sent:
            self._send_head()
        compressed = 0
        if self._encoding and self._compress_next:
            message = compress(self._encoding, message)
            compressed = 1
        self._compress_next = True
        self._connection.sender.message(self._stream, compressed, message)
        return True

    # The servicer's context: messages ------------------------------------------------------------

    async def read(self) -> Any:  # noqa: ANN401 - whatever the method's deserializer makes
        try:
            return await self.next_request()
        except StopAsyncIteration:
            return EOF

    async def next_request(self) -> Any:  # noqa: ANN401 - whatever the method's deserializer makes
        """The next request of a client that streams; StopAsyncIteration when it sends no more."""
        while not self._messages:
            if self._ended:
                raise StopAsyncIteration
            if self._over:
                raise asyncio.CancelledError
            self._reader = self.host.loop.create_future()
            await self._reader
            self._reader = None
        return self.take_request()

    async def wait_for_request(self) -> bool:
        """Wait for the whole request of a unary client. False where it was not one message; the call is then over."""
        while not self._ended and not self._over:
            self._reader = self.host.loop.create_future()
            await self._reader
            self._reader = None
        if self._messages is not None and len(self._messages) == 1:
            return True
        self.finish(grpc.StatusCode.UNIMPLEMENTED, "exactly one request message is expected")
        return False

    async def write(self, message: Any) -> None:  # noqa: ANN401 - whatever the method's serializer takes
        if self.push(message):
            await self.pause()

    def push(self, message: Any) -> bool:  # noqa: ANN401 - whatever the method's serializer takes
        """Send one reply. Whether the writer should `pause` before the next one."""
        if self._over:
            raise self._aborted or asyncio.CancelledError
        serialize = self.method.serialize
        data: bytes = message if serialize is None else serialize(message)
        if self._head_sent and not self._encoding and self.host.options.max_send_message_bytes is None:
            self._connection.sender.message(self._stream, 0, data)
        elif not self._send_message(data):
            raise asyncio.CancelledError
        self._writes += 1
        return self._writes >= _WRITES_IN_A_ROW or self._stream.queued_bytes >= _UNSENT_LOW_BYTES

    async def pause(self) -> None:
        """Wait until the client has taken enough of what was sent; if it has, give the event loop a turn."""
        self._writes = 0
        if self._stream.queued_bytes < _UNSENT_LOW_BYTES:
            await asyncio.sleep(0)
            return
        self._writer = self.host.loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    async def send_initial_metadata(self, initial_metadata: MetadataLike) -> None:
        self.send_head(initial_metadata)

    def send_head(self, metadata: MetadataLike) -> None:
        """`send_initial_metadata` without the wait that it never needs."""
        if self._head_sent:
            raise grpc.aio.UsageError("Send initial metadata failed: already sent")
        if not self._over:
            self._send_head(metadata)

    # The servicer's context: status ------------------------------------------------------------

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: MetadataLike = ()) -> NoReturn:
        self.abort_nowait(code, details, trailing_metadata)

    def abort_nowait(self, code: grpc.StatusCode, details: str = "", trailing_metadata: MetadataLike = ()) -> NoReturn:
        """`abort` without the wait that it never needs."""
        if self._aborted is not None:
            raise grpc.aio.UsageError("Abort already called!")
        if code is grpc.StatusCode.OK:
            raise ValueError("abort called with OK status code!")
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        self._aborted = grpc.aio.AbortError("Locally aborted.")
        self.finish(_status_code(code), details or self._details)
        raise self._aborted

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata)

    @property
    def aborted(self) -> BaseException | None:
        """What `abort` raised, if it was called."""
        return self._aborted

    def set_trailing_metadata(self, trailing_metadata: MetadataLike) -> None:
        pairs = tuple(trailing_metadata)
        encode_metadata(pairs)  # so that a wrong pair fails here, at its author's feet
        self._trailing = pairs

    def trailing_metadata(self) -> MetadataLike:  # type: ignore[override] # what was set, as grpc.aio gives it
        return self._trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = _status_code(code)

    def code(self) -> grpc.StatusCode | None:  # type: ignore[override] # None before one is set, as in grpc.aio
        return self._code

    def set_details(self, details: str) -> None:
        self._details = details

    def details(self) -> str:
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        if self._head_sent:
            raise RuntimeError("Compression setting must be specified before sending initial metadata")
        encoding = ENCODING_NAMES.get(compression, b"")
        self._encoding = encoding if encoding in self.head.accepted_encodings else b""

    def disable_next_message_compression(self) -> None:
        self._compress_next = False

    # The servicer's context: the call ------------------------------------------------------------

    def invocation_metadata(self) -> Metadata:  # type: ignore[override] # a tuple of pairs, as in grpc.aio
        return self.head.metadata

    def time_remaining(self) -> float | None:  # type: ignore[override] # None without a deadline, as in grpc.aio
        return None if self.deadline is None else max(0.0, self.deadline - monotonic())

    def peer(self) -> str:
        return self.host.peer

    def peer_identity_key(self) -> str | None:
        values = self.auth_context().get("peer_identity_property_name")
        return values[0].decode() if values else None

    def peer_identities(self) -> Sequence[bytes] | None:
        key = self.peer_identity_key()
        return None if key is None else self.auth_context().get(key)

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        return self.host.auth_context()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._over:
            self.host.loop.call_soon(callback, self)
            return
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)

    def cancel(self) -> bool:
        """End the call with status CANCELLED and cancel its handler. False where it was over already."""
        if self._over:
            return False
        self.fail(grpc.StatusCode.CANCELLED, "Cancelled by the server", cancelled=True)
        return True

    def cancelled(self) -> bool:
        return self._cancelled

    def done(self) -> bool:
        return self._over


def _status_code(code: Any) -> grpc.StatusCode:  # noqa: ANN401 - as grpcio, a code or its number is taken
    if isinstance(code, grpc.StatusCode):
        return code
    return _CODES.get(code, grpc.StatusCode.UNKNOWN)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _guarded(callback: Callable[[Any], None], call: Call) -> None:
    try:
        callback(call)
    except Exception:  # noqa: BLE001 - the callback is not ours; the others must run
        _log.exception("a done callback of %r failed", call)
