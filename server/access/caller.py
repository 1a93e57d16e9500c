"""A caller, and what its roles permit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from server.access.limits import Share
from server.access.rpcs import EVERY_MODEL, Group

_REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What those who have it may do."""

    allow: frozenset[Group]
    models: tuple[str, ...] = (EVERY_MODEL,)
    """Names, with `*`, `?` and `[...]`."""
    share: Share = field(default_factory=Share)


class Permit:
    """What a set of roles comes to: their union, and the largest share of each kind."""

    __slots__ = ("_models", "_remembered", "groups", "share")

    def __init__(self, roles: Iterable[Role], everybody: Iterable[Group] = ()) -> None:
        """`everybody`: the groups that need no role."""
        models: dict[Group, tuple[str, ...]] = dict.fromkeys(everybody, (EVERY_MODEL,))
        shares: list[Share] = []
        for role in roles:
            shares.append(role.share)
            for group in role.allow:
                models[group] = (*models.get(group, ()), *role.models)
        self._models: Mapping[Group, tuple[str, ...]] = models
        self._remembered: dict[tuple[Group, str], bool] = {}
        self.groups = frozenset(models)
        self.share = _largest(shares)

    def covers(self, group: Group, model: str) -> bool:
        """Whether the model is among those that the group is allowed for; EVERY_MODEL only where all are."""
        key = (group, model)
        known = self._remembered.get(key)
        if known is None:
            patterns = self._models.get(group, ())
            known = EVERY_MODEL in patterns or (
                model != EVERY_MODEL and any(fnmatchcase(model, pattern) for pattern in patterns)
            )
            if len(self._remembered) >= _REMEMBERED:  # callers choose the names
                self._remembered.clear()
            self._remembered[key] = known
        return known


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody whose credential was good, or nobody in particular."""

    name: str
    """`NAME` of the policy, `jwt:SUBJECT`, or ANONYMOUS."""
    permit: Permit


ANONYMOUS: Final = "anonymous"

TENANT: Final[ContextVar[str]] = ContextVar("tenant", default="")
"""Name of the authenticated caller whose call runs; the fair shares in overload go by it."""


def _largest(shares: list[Share]) -> Share:
    def largest(values: list[float]) -> float:
        return 0.0 if not values or 0 in values else max(values)

    return Share(
        rate_per_s=largest([share.rate_per_s for share in shares]),
        burst=int(max((share.burst for share in shares), default=0)),
        concurrency=int(largest([share.concurrency for share in shares])),
    )
