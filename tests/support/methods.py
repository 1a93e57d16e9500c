"""What a generated `add_..._to_server` registers, for tests that must know every RPC there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: its path, and what the generated code says of it."""

    path: str
    handler: Any
    """A grpc.RpcMethodHandler."""

    @property
    def function(self) -> Callable[..., Any]:
        """The servicer's method."""
        handler = self.handler
        return next(
            found
            for found in (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
            if found is not None
        )

    @property
    def request_type(self) -> type[Any]:
        """The class of its request messages."""
        return type(self.handler.request_deserializer(b""))


class Collector:
    """A server that only remembers what it is to serve."""

    def __init__(self) -> None:
        self.methods: list[Method] = []

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Generated code calls both; the registered ones say it all."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.methods += [Method(f"/{service}/{name}", handler) for name, handler in handlers.items()]


def methods_of(add: Callable[[Any, Any], Any], servicer: Any) -> list[Method]:
    """The methods that `add` registers of `servicer`."""
    collector = Collector()
    add(servicer, collector)
    return collector.methods
