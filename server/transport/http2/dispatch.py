"""From a request's head to a call on the right method, or to a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
import grpc.aio

from server.transport.http2.call import BUSY, BUSY_TRAILERS, Call, Host
from server.transport.http2.hpack import encode, literal
from server.transport.http2.messages import ENCODINGS
from server.transport.http2.metadata import Metadata, encode_metadata, percent_encode
from server.transport.http2.methods import Intercepted, Method, RpcMethodHandler
from server.transport.http2.sender import RESPONSE_BLOCK
from server.transport.http2.streams import NOBODY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from server.transport.http2.requests import RequestHead
    from server.transport.http2.streams import Receiver, Stream

_REMEMBERED_METHODS: Final = 1024
_BUSY: Final = (
    RESPONSE_BLOCK
    + encode(
        [
            (b"grpc-status", str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]).encode()),
            (b"grpc-message", percent_encode(BUSY)),
        ]
    )
    + encode_metadata(BUSY_TRAILERS)
)
_ACCEPTED: Final = literal(b"grpc-accept-encoding", b"identity, deflate, gzip")
_PLAIN: Final = literal(b"content-type", b"text/plain")
_NOT_GRPC: Final = b"\x08\x03415" + _PLAIN  # :status, the name by its static index
_NOT_POST: Final = b"\x08\x03405" + literal(b"allow", b"POST") + _PLAIN
_EXPLANATION: Final = b"This port serves gRPC: POST with content-type application/grpc.\n"


class CallDetails(NamedTuple):
    """What interceptors and generic handlers are told of a call, as `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: Metadata


class Dispatcher:
    """The methods a server offers."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = ()) -> None:
        self._interceptors = tuple(interceptors)
        self._registered: dict[bytes, Method] = {}
        self._generic: list[grpc.GenericRpcHandler[Any, Any]] = []
        self._found: dict[bytes, Method] = {}
        self._intercepted = Intercepted(self._intercept)
        self.admit: Callable[[Call], bool] | None = None
        """See Options.admit."""

    def register(self, service: str, handlers: dict[str, RpcMethodHandler]) -> None:
        """Offer `handlers`, by method name, as methods of `service`."""
        for name, handler in handlers.items():
            self._registered[f"/{service}/{name}".encode()] = Method(handler)

    def add_generic(self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Ask `handlers` for methods that are not registered."""
        self._generic.extend(handlers)

    def accept(self, host: Host, stream: Stream, head: RequestHead, ended: bool) -> Receiver:
        """Begin the call that `head` asks for, or refuse it."""
        if head.is_plain:
            method = self._registered.get(head.path) if not self._interceptors else self._intercepted
            if method is None:
                method = self._find(head)
            if method is None:
                return refuse(host, stream, grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return self._begin(host, stream, head, method, ended)
        return self._unusual(host, stream, head, ended)

    def _begin(self, host: Host, stream: Stream, head: RequestHead, method: Method, ended: bool) -> Receiver:
        limit = host.options.max_concurrent_calls
        if limit is not None and host.running_calls() >= limit:
            return refuse(host, stream, grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")
        turns = host.options.turns
        if turns is None or head.path != turns.path:
            turns = None
        elif not turns.admits(head.timeout_s):
            stream.patient = True  # the rest of a small request is on its way; to ignore it is cheaper than a reset
            host.connection.sender.headers(stream, _BUSY, end_stream=True)
            return NOBODY
        call = Call(host, stream, head, method, turns)
        if call.deadline is not None:
            host.call_expires(call, call.deadline)
        if self.admit is not None and not self.admit(call):
            return call
        if method.starts_at_once:
            call.start()
        if ended:
            call.data_received(memoryview(b""), True)
        return call

    def _unusual(self, host: Host, stream: Stream, head: RequestHead, ended: bool) -> Receiver:
        """A head that is not simply a gRPC call with uncompressed messages."""
        if head.oversized:
            return refuse(host, stream, grpc.StatusCode.RESOURCE_EXHAUSTED, "received metadata exceeds the limit")
        if head.method != b"POST":
            return refuse_http(host, stream, _NOT_POST)
        if not head.is_grpc:
            return refuse_http(host, stream, _NOT_GRPC)
        if head.complaint:
            return refuse(host, stream, grpc.StatusCode.INTERNAL, head.complaint)
        if head.encoding not in ENCODINGS and head.encoding not in (b"", b"identity"):
            name = head.encoding.decode("latin-1")
            details = f"grpc-encoding {name} is not supported"
            return refuse(host, stream, grpc.StatusCode.UNIMPLEMENTED, details, _ACCEPTED)
        method = self._intercepted if self._interceptors else self._registered.get(head.path) or self._find(head)
        if method is None:
            return refuse(host, stream, grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        return self._begin(host, stream, head, method, ended)

    def _find(self, head: RequestHead) -> Method | None:
        """The method that a generic handler has for this call."""
        handler = self._ask(CallDetails(head.path.decode("latin-1"), head.metadata))
        if handler is None:
            return None
        known = self._found.get(head.path)
        if known is None or known.handler is not handler:
            if len(self._found) >= _REMEMBERED_METHODS:
                self._found.clear()
            known = self._found[head.path] = Method(handler)
        return known

    def _ask(self, details: CallDetails) -> RpcMethodHandler | None:
        for generic in self._generic:
            handler: RpcMethodHandler | None = generic.service(details)  # type: ignore[arg-type] # grpc's types
            if handler is not None:
                return handler
        return None

    async def _intercept(self, call: Call) -> RpcMethodHandler | None:
        """The handler that is left after all interceptors had their say."""

        async def innermost(details: CallDetails) -> RpcMethodHandler | None:
            method = self._registered.get(details.method.encode())
            return method.handler if method is not None else self._ask(details)

        ask: Callable[[CallDetails], Awaitable[RpcMethodHandler | None]] = innermost
        for interceptor in reversed(self._interceptors):
            ask = _wrap(interceptor, ask)
        return await ask(CallDetails(call.head.path.decode("latin-1"), call.head.metadata))


def _wrap(
    interceptor: grpc.aio.ServerInterceptor[Any, Any],
    ask: Callable[[CallDetails], Awaitable[RpcMethodHandler | None]],
) -> Callable[[CallDetails], Awaitable[RpcMethodHandler | None]]:
    async def intercepted(details: CallDetails) -> RpcMethodHandler | None:
        return await interceptor.intercept_service(ask, details)  # type: ignore[arg-type] # grpc's types

    return intercepted


def refuse(host: Host, stream: Stream, code: grpc.StatusCode, details: str, extra: bytes = b"") -> Receiver:
    """Answer with a status and nothing else."""
    status = encode([(b"grpc-status", str(code.value[0]).encode()), (b"grpc-message", percent_encode(details))])
    host.connection.sender.headers(stream, RESPONSE_BLOCK + status + extra, end_stream=True)
    return NOBODY


def refuse_http(host: Host, stream: Stream, block: bytes) -> Receiver:
    """Answer somebody who does not speak gRPC."""
    stream.patient = True
    host.connection.sender.headers(stream, block)
    host.connection.sender.payload(stream, _EXPLANATION, last=True)
    return NOBODY
