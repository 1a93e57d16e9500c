"""Server reflection over our own descriptor pool and the default one, where health and reflection live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha._async import ReflectionServicer

from server.pb.pool import POOL


class _Pools:
    """The pools one after the other, with the methods that the reflection servicer uses."""

    def __init__(self, *pools: Any) -> None:  # noqa: ANN401  (the pools' own methods are untyped)
        self._pools = pools

    def __getattr__(self, method: str) -> Any:  # noqa: ANN401
        def find(*arguments: Any) -> Any:  # noqa: ANN401
            for pool in self._pools[:-1]:
                try:
                    return getattr(pool, method)(*arguments)
                except KeyError:
                    continue
            return getattr(self._pools[-1], method)(*arguments)

        return find


def reflection_service(names: Sequence[str]) -> Any:  # noqa: ANN401  (the library has no types)
    """A reflection servicer for these services."""
    return ReflectionServicer(names, pool=_Pools(POOL, descriptor_pool.Default()))  # type: ignore[no-untyped-call]  # nor has this one
