"""JSON web tokens of an OpenID Connect issuer, checked with its published keys (RFC 7519, RFC 7517).

Rule: only signatures with public keys, only by the algorithms that the policy lists; issuer, audience and expiry are
always demanded. Promise: a key source that is gone or talks nonsense leaves the keys that were good before.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from server.access.errors import BadPolicy, Unauthenticated
from server.access.policy import JwtOptions

if TYPE_CHECKING:
    from jwt import PyJWK

log = logging.getLogger(__name__)

_REFETCH_S: Final = 30.0
"""Least time between two looks for a key that nobody knows: callers choose key ids as they like."""
_STALE_S: Final = 300.0
"""Age at which keys are read again, so that those an issuer withdrew are forgotten."""
_FETCH_TIMEOUT_S: Final = 10.0
_MOST_KEY_BYTES: Final = 1 << 20
_LONGEST_TOKEN: Final = 8192
_LEAST_RSA_BITS: Final = 2048


class UnknownKey(Unauthenticated):
    """The token names a key that is not among those read so far."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token says."""

    subject: str
    roles: tuple[str, ...]
    expires: float
    """Seconds since the epoch, leeway included."""


class JwtVerifier:
    """Checks tokens of one issuer."""

    def __init__(
        self,
        options: JwtOptions,
        fetch: Callable[[str], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fetch` reads the keys and blocks. Raises BadPolicy without PyJWT."""
        try:
            import jwt  # noqa: PLC0415  (an extra, and slow to import)
        except ImportError as error:
            raise BadPolicy("[jwt] needs PyJWT: pip install 'kairos[auth]'") from error
        self._jwt = jwt
        self._options = options
        self._fetch = fetch or read_keys
        self._clock = clock
        self._keys: Mapping[str | None, PyJWK] = {}
        self._read_at: float | None = None
        self._lock = asyncio.Lock()

    def verify(self, token: str) -> Claims:
        """Raises UnknownKey where other keys may help, else Unauthenticated."""
        jwt, options = self._jwt, self._options
        if len(token) > _LONGEST_TOKEN:
            raise Unauthenticated("the token is too long")
        try:
            head = jwt.get_unverified_header(token)
            key = self._key(head.get("kid"), head.get("alg"))
            claims = jwt.decode(
                token,
                key=key,
                algorithms=list(options.algorithms),
                audience=options.audience,
                issuer=options.issuer,
                leeway=options.leeway_s,
                options={"require": ["exp", "iss", "aud", options.principal_claim]},
            )
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("the token has expired") from error
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            log.debug("a token is not good: %s", type(error).__name__)
            raise Unauthenticated("the token is not good") from error
        return self._claims(claims)

    def _key(self, kid: Any, algorithm: Any) -> Any:  # noqa: ANN401  (what strangers wrote, and a key of any kind)
        if kid is None and len(self._keys) == 1:
            key = next(iter(self._keys.values()))
        elif (kid is None or isinstance(kid, str)) and kid in self._keys:
            key = self._keys[kid]
        else:
            raise UnknownKey("the token is signed with a key that its issuer does not publish")
        # Where the issuer says what a key is for, it is for nothing else.
        said = key._jwk_data.get("alg")  # PyJWK's own guesses one where none is said
        if said not in (None, algorithm):
            raise Unauthenticated("the token is not good")
        return key.key

    def _claims(self, claims: Mapping[str, Any]) -> Claims:
        options = self._options
        subject = claims[options.principal_claim]
        if not isinstance(subject, str) or not subject or not subject.isprintable():
            raise Unauthenticated("the token does not say who it is for")
        given = claims.get(options.roles_claim, ())
        roles = given.split() if isinstance(given, str) else given if isinstance(given, list) else ()
        known = (*options.roles, *(role for role in roles if isinstance(role, str)))
        return Claims(subject, known, float(claims["exp"]) + options.leeway_s)

    async def refresh(self, *, older_than_s: float = _REFETCH_S) -> None:
        """Read the keys again, unless that was done just now. Never raises: what goes wrong is logged."""
        async with self._lock:
            now = self._clock()
            if self._read_at is not None and now - self._read_at < older_than_s:
                return
            self._read_at = now
            try:
                self._keys = self._parse(await asyncio.to_thread(self._fetch, self._options.jwks))
            except (OSError, ValueError, TypeError, AttributeError, self._jwt.PyJWTError) as error:
                log.error("keys of %s cannot be read from %s: %s", self._options.issuer, self._options.jwks, error)  # noqa: TRY400  (an issuer that is away is no fault of ours)

    async def refresh_stale(self) -> None:
        """Read the keys again once they are old."""
        await self.refresh(older_than_s=_STALE_S)

    def _parse(self, content: bytes) -> Mapping[str | None, PyJWK]:
        """Raises ValueError or PyJWTError where there is no key of use."""
        found: dict[str | None, PyJWK] = {}
        for given in json.loads(content)["keys"]:
            if given.get("use", "sig") != "sig" or given.get("kty") not in ("RSA", "EC", "OKP"):
                continue
            try:
                key = self._jwt.PyJWK(given)
            except self._jwt.PyJWTError as error:
                log.warning("key %r of %s is of no use: %s", given.get("kid"), self._options.issuer, error)
                continue
            if getattr(key.key, "key_size", _LEAST_RSA_BITS) < _LEAST_RSA_BITS and given["kty"] == "RSA":
                log.warning("key %r of %s is too short and not used", given.get("kid"), self._options.issuer)
                continue
            found[given.get("kid")] = key
        if not found:
            raise ValueError("there is no key for signatures")
        return found


def read_keys(source: str) -> bytes:
    """From an https URL, or a file. Blocks; raises OSError or ValueError."""
    if not source.startswith("https://"):
        return Path(source.removeprefix("file://")).read_bytes()
    opener = urllib.request.build_opener(_OnlyHttps)
    with opener.open(source, timeout=_FETCH_TIMEOUT_S) as answer:
        content: bytes = answer.read(_MOST_KEY_BYTES + 1)
    if len(content) > _MOST_KEY_BYTES:
        raise ValueError("the answer is too long")
    return content


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows no redirection to where anybody could have written the answer."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: Any,  # noqa: ANN401  (the base class's signature)
        code: int,
        msg: str,
        headers: Any,  # noqa: ANN401
        newurl: str,
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https://"):
            raise urllib.error.URLError(f"redirected to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
