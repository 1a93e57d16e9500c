"""The access policy: one TOML file that says who there is and what they may do.

    open = ["health", "reflection"]          # groups that need no credential; this is the default

    [callers.batch-jobs]
    token_sha256 = ["9f86d0..."]             # from `kairos token new`
    roles = ["jobs"]

    [roles.jobs]
    allow = ["infer", "read"]
    models = ["resnet*"]                     # default: all
    rate_per_s = 500

`[roles.anonymous]` is what callers without a credential get. What is not understood is refused, not ignored.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from server.access.caller import ANONYMOUS, Caller, Permit, Role
from server.access.errors import BadPolicy
from server.access.limits import Share
from server.access.rpcs import EVERY_MODEL, Group
from server.access.tokens import TokenTable

OPEN: Final = (Group.HEALTH.value, Group.REFLECTION.value)
ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""Signatures with a public key. Never `none`, and no HMAC: whoever can check one could make one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtOptions:
    """Whose JSON web tokens are believed."""

    issuer: str
    audience: str
    jwks: str
    """Their keys: a path, or an https URL."""
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    leeway_s: float = 30.0
    """How far the clocks of issuer and server may differ."""
    principal_claim: str = "sub"
    roles_claim: str = "roles"
    """A list of roles, or text with spaces between them. Those that the policy does not have count for nothing."""
    roles: tuple[str, ...] = ()
    """Roles of everybody with a good token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy that was read and found whole."""

    open: frozenset[Group]
    roles: Mapping[str, Role]
    tokens: TokenTable[Caller]
    certificates: Mapping[str, Caller]
    """Callers by a name in their certificate: a subject alternative name, or `CN=` and the common name."""
    anonymous: Permit
    """What callers without a credential may do."""
    jwt: JwtOptions | None


def read_policy(path: Path) -> Policy:
    """Raises BadPolicy, naming the file and the entry at fault, or OSError."""
    try:
        return parse_policy(path.read_text(encoding="utf-8"))
    except (BadPolicy, UnicodeDecodeError) as error:
        raise BadPolicy(f"{path}: {error}") from error


def parse_policy(text: str) -> Policy:
    """Raises BadPolicy."""
    try:
        top = _Table("", tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadPolicy(f"not TOML: {error}") from error
    opened = frozenset(_group(top, "open", value) for value in top.texts("open", OPEN))
    roles = {name: _role(table) for name, table in top.tables("roles")}
    tokens: list[tuple[str, Caller]] = []
    certificates: dict[str, Caller] = {}
    for name, table in top.tables("callers"):
        if name == ANONYMOUS:
            raise BadPolicy("callers.anonymous: what callers without a credential may do is said in roles.anonymous")
        caller = Caller(name, Permit(_roles(table, roles), opened))
        digests, names = table.texts("token_sha256"), table.texts("certificates")
        if not digests and not names:
            raise BadPolicy(f"callers.{name} has neither token_sha256 nor certificates")
        tokens += [(digest, caller) for digest in digests]
        for known in names:
            if known in certificates:
                raise BadPolicy(f"callers.{name}: another caller has the certificate name '{known}', too")
            certificates[known] = caller
        table.end()
    jwt = _jwt(top.table("jwt"), roles) if "jwt" in top.values else None
    top.end()
    anonymous = Permit((roles[ANONYMOUS],) if ANONYMOUS in roles else (), opened)
    return Policy(
        open=opened,
        roles=roles,
        tokens=TokenTable(tokens),
        certificates=certificates,
        anonymous=anonymous,
        jwt=jwt,
    )


class _Table:
    """One table of the file; `end` complains about what nobody asked for."""

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self.name = name
        self.values = dict(values)

    def key(self, key: str) -> str:
        """The key as the whole file has it."""
        return f"{self.name}.{key}" if self.name else key

    def take(self, key: str, kind: type | tuple[type, ...], what: str, default: Any) -> Any:  # noqa: ANN401
        """A value that is taken out of the table. Raises BadPolicy for one of another kind."""
        value = self.values.pop(key, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BadPolicy(f"{self.key(key)} must be {what}")
        return value

    def table(self, key: str) -> _Table:
        return _Table(self.key(key), self.take(key, dict, "a table", {}))

    def tables(self, key: str) -> Sequence[tuple[str, _Table]]:
        outer = self.table(key)
        return [(name, outer.table(name)) for name in list(outer.values)]

    def texts(self, key: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        found = self.take(key, (list, tuple), "a list of texts", default)
        if not all(isinstance(value, str) and value for value in found):
            raise BadPolicy(f"{self.key(key)} must be a list of texts")
        return tuple(found)

    def text(self, key: str, default: str = "") -> str:
        found: str = self.take(key, str, "a text", default)
        if not found:
            raise BadPolicy(f"{self.key(key)} must be given")
        return found

    def number(self, key: str, default: float = 0.0) -> float:
        found: float = self.take(key, (int, float), "a number from 0", default)
        if not 0 <= found < math.inf:
            raise BadPolicy(f"{self.key(key)} must be a number from 0")
        return found

    def end(self) -> None:
        if self.values:
            raise BadPolicy(f"unknown key '{self.key(min(self.values))}'")


def _role(table: _Table) -> Role:
    if "allow" not in table.values:
        raise BadPolicy(f"{table.key('allow')} must be given")
    role = Role(
        allow=frozenset(_group(table, "allow", value) for value in table.texts("allow")),
        models=table.texts("models", (EVERY_MODEL,)),
        share=Share(
            rate_per_s=table.number("rate_per_s"),
            burst=int(table.number("burst")),
            concurrency=int(table.number("concurrency")),
        ),
    )
    table.end()
    return role


def _group(table: _Table, key: str, value: str) -> Group:
    try:
        return Group(value)
    except ValueError:
        known = ", ".join(group.value for group in Group)
        raise BadPolicy(f"{table.key(key)}: there is no group '{value}'; there are {known}") from None


def _roles(table: _Table, roles: Mapping[str, Role]) -> list[Role]:
    names = table.texts("roles")
    if unknown := sorted(set(names) - set(roles)):
        raise BadPolicy(f"{table.key('roles')}: there is no role '{unknown[0]}'")
    return [roles[name] for name in names]


def _jwt(table: _Table, roles: Mapping[str, Role]) -> JwtOptions:
    plain = JwtOptions(issuer="", audience="", jwks="")
    given = table.texts("roles")
    if unknown := sorted(set(given) - set(roles)):
        raise BadPolicy(f"jwt.roles: there is no role '{unknown[0]}'")
    options = JwtOptions(
        issuer=table.text("issuer"),
        audience=table.text("audience"),
        jwks=table.text("jwks"),
        algorithms=table.texts("algorithms", plain.algorithms),
        leeway_s=table.number("leeway_s", plain.leeway_s),
        principal_claim=table.text("principal_claim", plain.principal_claim),
        roles_claim=table.text("roles_claim", plain.roles_claim),
        roles=given,
    )
    table.end()
    if not options.algorithms or (unknown := sorted(set(options.algorithms) - ALGORITHMS)):
        raise BadPolicy(f"jwt.algorithms takes some of: {', '.join(sorted(ALGORITHMS))}")
    if options.jwks.startswith("http://"):
        raise BadPolicy("jwt.jwks: keys that come over plain http can be anybody's; use https or a file")
    return options
