"""Who a call comes from, and whether it may go on: the one place where that is decided.

What was once checked is remembered by the credential's digest, so that a call of a known caller costs one hash and
one look into a dictionary. A new policy forgets it all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from server.access.caller import ANONYMOUS, Caller, Permit
from server.access.errors import BadPolicy, Denied, Unauthenticated
from server.access.files import FileWatch
from server.access.jwt import Claims, JwtVerifier, UnknownKey
from server.access.limits import Account, Accounts
from server.access.policy import Policy, read_policy
from server.access.rpcs import EVERY_MODEL, Group, Rpc
from server.access.tokens import digest_of

log = logging.getLogger(__name__)

_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call brings."""

    authorization: str = field(default="", repr=False)
    """Its metadata of that name."""
    certificate: tuple[str, ...] = ()
    """Names in a certificate that the transport has verified."""
    host: str = ""
    """Where it comes from, without the port."""


class Gate:
    """Decides by a policy, which may be replaced at any time."""

    def __init__(
        self,
        policy: Policy,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        fetch: Callable[[str], bytes] | None = None,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._fetch = fetch
        self._accounts = Accounts()
        self.generation = 0
        """Changes with the policy."""
        self.replace(policy)

    def replace(self, policy: Policy) -> None:
        """Go by another policy from now on. Raises BadPolicy, and then nothing has changed."""
        verifier = None if policy.jwt is None else JwtVerifier(policy.jwt, self._fetch, self._clock)
        self._verifier = verifier
        self._policy = policy
        self._verified: dict[bytes, tuple[Caller, float]] = {}
        self.generation += 1

    @property
    def knows_certificates(self) -> bool:
        """Whether it is worth the trouble to look at certificates."""
        return bool(self._policy.certificates)

    # Who

    def identify_nowait(self, given: Credentials) -> Caller:
        """Raises UnknownKey where `identify` may know better, Unauthenticated for a credential that is not good."""
        if given.authorization:
            return self._by_token(_bearer(given.authorization))
        for name in given.certificate:
            caller = self._policy.certificates.get(name)
            if caller is not None:
                return caller
        return Caller(f"{ANONYMOUS}@{given.host}", self._policy.anonymous)

    async def identify(self, given: Credentials) -> Caller:
        """As `identify_nowait`, and asks the issuer where a token's key is not known yet."""
        try:
            return self.identify_nowait(given)
        except UnknownKey:
            if self._verifier is not None:
                await self._verifier.refresh()
            return self.identify_nowait(given)

    def _by_token(self, token: str) -> Caller:
        digest = digest_of(token)
        caller = self._policy.tokens.owner(digest)
        if caller is not None:
            return caller
        known = self._verified.get(digest)
        if known is not None and self._wall() < known[1]:
            return known[0]
        if self._verifier is None:
            raise Unauthenticated("the token is not known")
        claims = self._verifier.verify(token)
        caller = self._caller_of(claims)
        if len(self._verified) >= _REMEMBERED:
            self._verified.clear()
        self._verified[digest] = (caller, claims.expires)
        return caller

    def _caller_of(self, claims: Claims) -> Caller:
        policy = self._policy
        roles = [policy.roles[role] for role in claims.roles if role in policy.roles]
        return Caller(f"jwt:{claims.subject}", Permit(roles, policy.open))

    # What

    def admit(self, rpc: Rpc, caller: Caller) -> None:
        """Whether the caller may make such calls at all. Raises Denied, or Unauthenticated for nobody."""
        if rpc.group in caller.permit.groups:
            return
        if caller.permit is self._policy.anonymous:
            raise Unauthenticated(f"'{rpc.group.value}' needs a credential: a bearer token or a client certificate")
        raise Denied(f"'{caller.name}' has no role that allows '{rpc.group.value}'")

    def check(self, rpc: Rpc, caller: Caller, model: str, *, memory: bool = False) -> None:
        """Whether a request may go on. `memory`: it names shared memory. Raises Denied."""
        if model and not caller.permit.covers(rpc.group, model):
            what = "all models at once" if model == EVERY_MODEL else f"model '{model}'"
            raise Denied(f"'{caller.name}' has no role that allows '{rpc.group.value}' of {what}")
        if memory and Group.SHARED_MEMORY not in caller.permit.groups:
            raise Denied(f"'{caller.name}' has no role that allows '{Group.SHARED_MEMORY.value}'")

    # How often

    def enter(self, rpc: Rpc, caller: Caller) -> Account | None:
        """A call begins; give what is returned to `leave`. Raises Limited."""
        share = caller.permit.share
        if not share.bounded or rpc.group is Group.HEALTH:  # probes are never held back
            return None
        return self._accounts.enter(caller.name, share, self._clock())

    def spend(self, caller: Caller, account: Account | None) -> None:
        """One more request of the same call. Raises Limited."""
        if account is not None:
            self._accounts.spend(caller.name, account, caller.permit.share, self._clock())

    def leave(self, account: Account | None) -> None:
        """A call has ended."""
        if account is not None:
            self._accounts.leave(account)

    async def refresh(self) -> None:
        """Bring what comes from elsewhere up to date."""
        if self._verifier is not None:
            await self._verifier.refresh_stale()


class PolicyFile:
    """A gate that follows its policy file."""

    def __init__(self, path: Path) -> None:
        """Raises BadPolicy or OSError."""
        self._path = path
        self._watch = FileWatch((path,))
        self.gate = Gate(read_policy(path))

    async def refresh(self) -> None:
        """Read the file again if it has changed; a bad one leaves the policy as it was, and is logged."""
        if self._watch.changed():
            try:
                self.gate.replace(read_policy(self._path))
                log.info("access policy %s is in force", self._path)
            except (BadPolicy, OSError) as error:
                log.error("the access policy stays as it was: %s", error)  # noqa: TRY400  (the text says it all)
        await self.gate.refresh()


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("the authorization metadata must be 'Bearer TOKEN'")
    return token.strip()


def names_of(common: Sequence[bytes], alternative: Sequence[bytes]) -> tuple[str, ...]:
    """The names of a certificate as policies write them."""
    return (
        *(name.decode("utf-8", "replace") for name in alternative),
        *(f"CN={name.decode('utf-8', 'replace')}" for name in common),
    )
