"""Who calls: the authorization metadata of strangers, and the text of a policy where the first byte is `#`.

Whatever is sent, nobody gets a caller's roles who does not have its token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from random import Random
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from server.access.errors import AccessError, BadPolicy
from server.access.gate import Credentials, Gate
from server.access.policy import parse_policy
from server.access.rpcs import RPCS
from server.access.tokens import digest_of
from tests.fuzz.mutate import mutate_bytes
from tests.fuzz.target import Target

_TOKEN: Final = "kairos_of-somebody-else"
_POLICY: Final = f"""# {digest_of("x").hex()}
open = ["health"]
[callers.a]
token_sha256 = ["{digest_of(_TOKEN).hex()}"]
certificates = ["CN=a"]
roles = ["r"]
[roles.r]
allow = ["infer", "control"]
models = ["m*"]
rate_per_s = 5
[jwt]
issuer = "i"
audience = "a"
jwks = "keys"
"""
_KEY: Final = ec.derive_private_key(7, ec.SECP256R1())
_STRANGER: Final = ec.derive_private_key(9, ec.SECP256R1())
_KEYS: Final = json.dumps(
    {"keys": [{**jwt.algorithms.ECAlgorithm.to_jwk(_KEY.public_key(), as_dict=True), "kid": "k"}]}
)
_CLAIMS: Final = {"iss": "i", "aud": "a", "sub": "s", "exp": 2**33, "roles": ["r"]}
_INFER: Final = RPCS["/inference.GRPCInferenceService/ModelInfer"]


def _gate() -> Gate:
    gate = Gate(parse_policy(_POLICY), fetch=lambda source: _KEYS.encode())
    asyncio.run(gate.refresh())
    return gate


_GATE: Final = _gate()


def run(data: bytes) -> None:
    """As the guard treats a call, or a server a changed policy."""
    text = data.decode("utf-8", "replace")
    if text.startswith("#"):
        with contextlib.suppress(BadPolicy):
            parse_policy(text)
        return
    try:
        caller = _GATE.identify_nowait(Credentials(text, host="h"))
        _GATE.admit(_INFER, caller)
    except AccessError:
        return
    raise AssertionError(f"a stranger was taken for {caller.name}")


def mutate(data: bytes, random: Random) -> bytes:
    """Bytes; those of a web token in one of its parts, so that the others stay whole."""
    scheme, dot, rest = data.partition(b".")
    if not dot or random.random() < 0.4:
        return mutate_bytes(data, random)
    parts = [scheme, *rest.split(b".")]
    at = random.randrange(len(parts))
    parts[at] = mutate_bytes(parts[at], random)
    return b".".join(parts)


def seeds() -> list[bytes]:
    """A stranger's web token, forms of a header, and the policy."""
    signed = jwt.encode(_CLAIMS, _STRANGER, "ES256", headers={"kid": "k"})
    unsigned = jwt.encode(_CLAIMS, None, "none", headers={"kid": "k"})
    headers = [f"Bearer {signed}", f"Bearer {unsigned}", "Bearer kairos_", "Basic YTpi", "bearer  x"]
    return [*(header.encode() for header in headers), _POLICY.encode()]


TARGET: Final = Target(name="access", run=run, mutate=mutate, seeds=seeds)
