"""Tokens of an issuer: what is believed, what is not, and keys that change."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from server.access.errors import BadPolicy, Unauthenticated
from server.access.jwt import JwtVerifier, UnknownKey, read_keys
from server.access.policy import JwtOptions

OPTIONS = JwtOptions(issuer="https://issuer", audience="kairos", jwks="keys", leeway_s=10, roles=("everybody",))


class Issuer:
    """Signs tokens and publishes keys; `reads` counts how often it was asked."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.published: bytes | Exception = b"{}"
        self.reads = 0

    def add(self, kid: str, key: Any = None, **extra: Any) -> None:
        self.keys[kid] = key or ec.generate_private_key(ec.SECP256R1())
        self.publish(**extra)

    def publish(self, **extra: Any) -> None:
        found = []
        for kid, key in self.keys.items():
            algorithm = (
                jwt.algorithms.ECAlgorithm
                if isinstance(key, ec.EllipticCurvePrivateKey)
                else jwt.algorithms.RSAAlgorithm
            )
            found.append({**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **extra})
        self.published = json.dumps({"keys": found}).encode()

    def read(self, source: str) -> bytes:
        assert source == "keys"
        self.reads += 1
        if isinstance(self.published, Exception):
            raise self.published
        return self.published

    def token(self, kid: str = "a", algorithm: str = "ES256", headers: Any = None, **changes: Any) -> str:
        claims = {"iss": "https://issuer", "aud": "kairos", "sub": "alice", "exp": time.time() + 60, "roles": ["jobs"]}
        claims |= changes
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self.keys[kid], algorithm, headers={"kid": kid, **(headers or {})})


def verifier(issuer: Issuer, clock: Any = time.monotonic, options: JwtOptions = OPTIONS) -> JwtVerifier:
    made = JwtVerifier(options, issuer.read, clock)
    asyncio.run(made.refresh())
    return made


@pytest.fixture
def issuer() -> Issuer:
    made = Issuer()
    made.add("a")
    return made


def test_a_good_token(issuer: Issuer) -> None:
    claims = verifier(issuer).verify(issuer.token())
    assert (claims.subject, claims.roles) == ("alice", ("everybody", "jobs"))
    assert claims.expires == pytest.approx(time.time() + 70, abs=5)
    assert verifier(issuer).verify(issuer.token(roles="one two")).roles == ("everybody", "one", "two")
    assert verifier(issuer).verify(issuer.token(roles={"x": 1})).roles == ("everybody",)


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other"}, {"iss": None}, {"aud": "others"}, {"aud": None}, {"exp": None}, {"exp": 1},
        {"exp": time.time() - 60}, {"nbf": time.time() + 3600}, {"sub": None}, {"sub": ""}, {"sub": "a\nb"},
    ],
)  # fmt: skip
def test_claims_that_are_not_good(issuer: Issuer, changes: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        verifier(issuer).verify(issuer.token(**changes))


def test_clocks_may_differ_a_little(issuer: Issuer) -> None:
    verifier(issuer).verify(issuer.token(exp=time.time() - 5))


def test_signatures_that_are_not_good(issuer: Issuer) -> None:
    checks = verifier(issuer)
    head, body, signature = issuer.token().split(".")
    stranger = Issuer()
    stranger.add("a")
    public = (
        issuer.keys["a"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    claims = {"iss": "https://issuer", "aud": "kairos", "sub": "eve", "exp": time.time() + 60}
    hmac_head = jwt.utils.base64url_encode(b'{"alg":"HS256","kid":"a"}').decode()
    forged = jwt.utils.base64url_encode(
        jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(f"{hmac_head}.{body}".encode(), public)
    ).decode()
    for token in (
        stranger.token(),
        f"{head}.{body}.",
        f"{head}.{body}.{signature[:-4]}AAAA",
        jwt.encode(claims, None, "none", headers={"kid": "a"}),
        f"{hmac_head}.{body}.{forged}",  # signed with the public key, as if it were a secret
        "x", "", "a.b.c", "." * 20, "é.é.é", "a" * 9000,
    ):  # fmt: skip
        with pytest.raises(Unauthenticated):
            checks.verify(token)


def test_an_algorithm_must_be_allowed_and_be_the_keys_own() -> None:
    issuer = Issuer()
    issuer.add("a", rsa.generate_private_key(65537, 2048), alg="RS256")
    options = JwtOptions(issuer="https://issuer", audience="kairos", jwks="keys", algorithms=("RS256", "RS512"))
    checks = verifier(issuer, options=options)
    checks.verify(issuer.token(algorithm="RS256"))
    for algorithm in ("RS384", "RS512"):
        with pytest.raises(Unauthenticated):
            checks.verify(issuer.token(algorithm=algorithm))


def test_keys_of_no_use_are_left_out(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    issuer.add("weak", rsa.generate_private_key(65537, 1024))
    checks = verifier(issuer)
    assert "too short" in caplog.text
    checks.verify(issuer.token("a"))
    with pytest.raises(UnknownKey):
        checks.verify(issuer.token("a", headers={"kid": "weak"}))
    issuer.publish(use="enc")
    with pytest.raises(UnknownKey):
        verifier(issuer).verify(issuer.token())


def test_a_new_key_is_found_without_being_asked_for_too_often(issuer: Issuer) -> None:
    now = 0.0
    checks = verifier(issuer, lambda: now)
    issuer.add("b")

    async def main() -> None:
        nonlocal now
        with pytest.raises(UnknownKey):
            checks.verify(issuer.token("b"))
        await checks.refresh()  # too soon: nothing is read
        assert issuer.reads == 1
        now = 31.0
        await asyncio.gather(*(checks.refresh() for _ in range(10)))
        assert issuer.reads == 2
        checks.verify(issuer.token("b"))

    asyncio.run(main())


def test_keys_that_are_withdrawn_are_forgotten_and_those_of_a_lost_issuer_are_not(
    issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    checks = verifier(issuer, lambda: now)
    old = issuer.token("a")

    async def main() -> None:
        nonlocal now
        for broken in (OSError("gone"), b"<html>", b'{"keys": []}', b"[]", b'{"keys": [1]}', b"\xff"):
            issuer.published = broken
            now += 301
            await checks.refresh_stale()
            checks.verify(old)
        assert caplog.text.count("cannot be read") == 6
        issuer.keys = {}
        issuer.add("b")
        now += 301
        await checks.refresh_stale()
        with pytest.raises(UnknownKey):
            checks.verify(old)

    asyncio.run(main())


def test_keys_come_from_files_or_https_only(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_bytes(b"{}")
    assert read_keys(str(tmp_path / "keys")) == read_keys(f"file://{tmp_path / 'keys'}") == b"{}"
    with pytest.raises(OSError, match="ftp"):
        read_keys("ftp://127.0.0.1/keys")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jwt", None)
    with pytest.raises(BadPolicy, match=r"pip install 'kairos\[auth\]'"):
        JwtVerifier(OPTIONS)
