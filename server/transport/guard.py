"""Where access is enforced, for every RPC and on both transports: handlers are wrapped as they are registered.

Without a policy nobody is asked anything: a server that listens on loopback is open to its host, and of one that
listens beyond it the RPCs that change it are replaced by refusals. Our own transport also asks `admit` as a call's head
arrives, so that a stranger's message is not even read.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol, TypeAlias, cast

import grpc
from google.protobuf.message import Message
from grpc import StatusCode

from server.access.caller import ANONYMOUS, TENANT, Caller
from server.access.errors import AccessError, Denied, Limited, Unauthenticated
from server.access.gate import Credentials, Gate, names_of
from server.access.jwt import UnknownKey
from server.access.limits import Account
from server.access.rpcs import REMOTE, RPCS, Group, Rpc
from server.transport.codec import REGION
from server.transport.recall import subject
from server.transport.status import Metadata, retry_after
from server.transport.wire import bounded

log = logging.getLogger(__name__)

_MOMENT_S: Final = 0.02
"""What a client that streams is given to send its first message: refused while it writes, grpc.aio takes the end of
the stream for a fault of its own, and reports INTERNAL in place of the status."""

_STATUS: Final[Mapping[type[AccessError], StatusCode]] = {
    Unauthenticated: StatusCode.UNAUTHENTICATED,
    UnknownKey: StatusCode.UNAUTHENTICATED,
    Denied: StatusCode.PERMISSION_DENIED,
    Limited: StatusCode.RESOURCE_EXHAUSTED,
}


class Call(Protocol):
    """What is asked of a call, on either transport."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None: ...
    def auth_context(self) -> Mapping[str, Sequence[bytes]]: ...
    def peer(self) -> str: ...
    async def abort(self, code: StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn: ...


class EarlyCall(Call, Protocol):
    """A call whose handler has not begun."""

    def fail(self, code: StatusCode, details: str) -> None: ...


Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Wrap: TypeAlias = Callable[[str, Handler], Handler]


def is_loopback(host: str) -> bool:
    """Whether only callers of this host reach a server that listens there."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False


class GuardedServer:
    """Stands before a gRPC server while generated code registers handlers, and wraps each of them."""

    def __init__(self, server: Any, wrap: Wrap) -> None:  # noqa: ANN401  (either transport)
        self._server = server
        self._wrap = wrap

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        wrapped = {name: self._wrap(f"/{service}/{name}", _bounded(handler)) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, wrapped)
        # grpc.aio only serves generic handlers.
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Nothing: generated code registers the same handlers by name, and an unnamed one would go unguarded."""


def as_it_is(_path: str, handler: Handler) -> Handler:
    """For a server that only its own host reaches."""
    return handler


def closed_to_others(path: str, handler: Handler) -> Handler:
    """For a server that other hosts reach and that has no policy."""
    rpc = RPCS.get(path)
    if rpc is not None and rpc.group in REMOTE:
        return handler
    group = "its group" if rpc is None else f"'{rpc.group.value}'"
    name = path.rpartition("/")[2]
    text = f"{name} is closed: other hosts can reach this server, and it has no access policy that opens {group}"
    return _refusing(handler, f"{text} (--access-policy)")


def _refusing(handler: Handler, text: str) -> Handler:
    async def refuse(_request: Any, context: Call) -> NoReturn:  # noqa: ANN401
        await context.abort(StatusCode.PERMISSION_DENIED, text)

    return _with_behaviour(handler, refuse)


def _bounded(handler: Handler) -> Handler:
    """The handler, for requests that protobuf can read without harm."""
    if handler.request_deserializer is None:
        return handler
    return _with_behaviour(handler, _behaviour(handler), bounded(handler.request_deserializer))


def _behaviour(handler: Handler) -> Callable[..., Any]:
    functions = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    return cast("Callable[..., Any]", next(function for function in functions if function is not None))


def _with_behaviour(
    handler: Handler, behaviour: Callable[..., Any], deserialize: Callable[[bytes], Any] | None = None
) -> Handler:
    """The handler with another function in its place."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(behaviour, deserialize or handler.request_deserializer, handler.response_serializer)


@dataclass(slots=True)
class _Entry:
    """A call that was let in."""

    rpc: Rpc
    caller: Caller
    account: Account | None
    generation: int
    first: bool = True


class Guard:
    """Asks a gate about every call, and answers those that are turned away."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._streamed: set[str] = set()

    def wrap(self, path: str, handler: Handler) -> Handler:
        """The handler, for callers that may use it. One that no group has is closed."""
        rpc = RPCS.get(path)
        if rpc is None:
            return _refusing(handler, f"{path} is closed: it is in no group of RPCs")
        behaviour = _behaviour(handler)
        if handler.request_streaming:
            self._streamed.add(path)
        if handler.response_streaming:
            return _with_behaviour(handler, self._stream(rpc, behaviour, streamed=handler.request_streaming))
        return _with_behaviour(handler, self._unary(rpc, behaviour, streamed=handler.request_streaming))

    def admit(self, path: str, call: EarlyCall) -> bool:
        """Whether a call may go on, as far as its head tells; else it has been answered."""
        rpc = RPCS.get(path)
        if rpc is None or path in self._streamed:
            return True  # there is no such method, or its handler refuses, having begun with the head anyway
        try:
            self._gate.admit(rpc, self._identify(rpc, self._credentials(call)))
        except UnknownKey:
            return True  # the issuer must be asked; the handler does
        except AccessError as error:
            call.fail(_STATUS[type(error)], str(error))
            return False
        return True

    def _unary(self, rpc: Rpc, behaviour: Callable[..., Awaitable[Any]], *, streamed: bool) -> Callable[..., Any]:
        async def call(request: Any, context: Call) -> Any:  # noqa: ANN401
            try:
                with self._inside(await self._enter(rpc, context)) as entry:
                    given = self._each(entry, request, context) if streamed else self._checked(entry, request)
                    return await behaviour(given, context)
            except AccessError as error:
                if streamed:
                    await asyncio.sleep(_MOMENT_S)
                await _abort(context, error)

        return call

    def _stream(self, rpc: Rpc, behaviour: Callable[..., AsyncIterator[Any]], *, streamed: bool) -> Callable[..., Any]:
        async def call(request: Any, context: Call) -> AsyncIterator[Any]:  # noqa: ANN401
            try:
                with self._inside(await self._enter(rpc, context)) as entry:
                    given = self._each(entry, request, context) if streamed else self._checked(entry, request)
                    async with contextlib.aclosing(behaviour(given, context)) as replies:  # type: ignore[type-var]  # a generator
                        async for reply in replies:
                            yield reply
            except AccessError as error:
                if streamed:
                    await asyncio.sleep(_MOMENT_S)
                await _abort(context, error)

        return call

    async def _enter(self, rpc: Rpc, context: Call) -> _Entry:
        gate = self._gate
        generation = gate.generation
        given = self._credentials(context)
        try:
            caller = self._identify(rpc, given)
        except UnknownKey:
            caller = await gate.identify(given)
        gate.admit(rpc, caller)
        return _Entry(rpc, caller, gate.enter(rpc, caller), generation)

    def _identify(self, rpc: Rpc, given: Credentials) -> Caller:
        """Who calls. Where nobody needs to say, a credential that is not good does no harm."""
        try:
            return self._gate.identify_nowait(given)
        except Unauthenticated:
            nobody = self._gate.identify_nowait(Credentials(host=given.host))
            if rpc.group in nobody.permit.groups and rpc.group in (Group.HEALTH, Group.REFLECTION):
                return nobody
            raise

    @contextlib.contextmanager
    def _inside(self, entry: _Entry) -> Iterator[_Entry]:
        if not entry.caller.name.startswith(f"{ANONYMOUS}@"):
            TENANT.set(entry.caller.name)
        try:
            yield entry
        finally:
            self._gate.leave(entry.account)

    def _checked(self, entry: _Entry, request: Any) -> Any:  # noqa: ANN401
        rpc = entry.rpc
        about = request if isinstance(request, Message) else subject(request)
        memory = rpc.group is Group.INFER and _names_memory(about)
        self._gate.check(rpc, entry.caller, rpc.model(about), memory=memory)
        return request

    async def _each(self, entry: _Entry, requests: AsyncIterator[Any], context: Call) -> AsyncIterator[Any]:
        """The messages of a stream, each checked; under a new policy its caller is looked at again."""
        async for request in requests:
            if entry.generation != self._gate.generation:
                entry.generation = self._gate.generation
                entry.caller = await self._gate.identify(self._credentials(context))
                self._gate.admit(entry.rpc, entry.caller)
            if entry.first:  # it was paid for with the call
                entry.first = False
            else:
                self._gate.spend(entry.caller, entry.account)
            yield self._checked(entry, request)

    def _credentials(self, context: Call) -> Credentials:
        found = [value for name, value in context.invocation_metadata() or () if name == "authorization"]
        names: tuple[str, ...] = ()
        if not found and self._gate.knows_certificates:
            identity = context.auth_context()
            names = names_of(identity.get("x509_common_name", ()), identity.get("x509_subject_alternative_name", ()))
        return Credentials(",".join(map(str, found)), names, host_of(context.peer()))


def host_of(peer: str) -> str:
    """The host of a peer as gRPC writes it: `ipv4:10.0.0.1:4711`."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else kind


def _names_memory(request: Any) -> bool:  # noqa: ANN401
    return any(REGION in tensor.parameters for tensor in (*request.inputs, *request.outputs))


async def _abort(context: Call, error: AccessError) -> NoReturn:
    trailers = retry_after(error.retry_after_s) if isinstance(error, Limited) else ()
    await context.abort(_STATUS[type(error)], str(error), trailers)
