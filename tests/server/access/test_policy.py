"""The policy file: what it says, and what is refused in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.access.errors import BadPolicy
from server.access.policy import parse_policy, read_policy
from server.access.rpcs import EVERY_MODEL, Group
from server.access.tokens import digest_of, new_token

DIGEST = digest_of("t").hex()

WHOLE = f"""
[callers.batch]
token_sha256 = ["{DIGEST}"]
certificates = ["spiffe://prod/batch", "CN=batch"]
roles = ["jobs", "operator"]

[roles.jobs]
allow = ["infer", "read"]
models = ["resnet*", "bert"]
rate_per_s = 100
burst = 20
concurrency = 4

[roles.operator]
allow = ["control"]
rate_per_s = 10

[roles.anonymous]
allow = ["read"]
models = ["public"]

[jwt]
issuer = "https://issuer"
audience = "kairos"
jwks = "/etc/keys.json"
roles = ["jobs"]
"""


def test_a_whole_policy() -> None:
    policy = parse_policy(WHOLE)
    caller = policy.tokens.owner(digest_of("t"))
    assert caller is not None
    assert policy.certificates == {"spiffe://prod/batch": caller, "CN=batch": caller}
    permit = caller.permit
    assert permit.groups == {Group.INFER, Group.READ, Group.CONTROL, Group.HEALTH, Group.REFLECTION}
    assert permit.covers(Group.INFER, "resnet50")
    assert permit.covers(Group.INFER, "bert")
    assert not permit.covers(Group.INFER, "bertha")
    assert not permit.covers(Group.INFER, EVERY_MODEL)
    assert permit.covers(Group.CONTROL, EVERY_MODEL)
    assert (permit.share.rate_per_s, permit.share.burst, permit.share.concurrency) == (
        100,
        20,
        0,
    )  # the largest of each
    assert policy.anonymous.covers(Group.READ, "public")
    assert not policy.anonymous.covers(Group.READ, "resnet50")
    assert policy.jwt is not None
    assert policy.jwt.leeway_s == 30


def test_a_role_that_covers_few_models_does_not_widen_another() -> None:
    policy = parse_policy(WHOLE.replace('allow = ["control"]', 'allow = ["control"]\nmodels = ["a"]'))
    caller = policy.tokens.owner(digest_of("t"))
    assert caller is not None
    assert not caller.permit.covers(Group.CONTROL, "resnet50")
    assert not caller.permit.covers(Group.INFER, "a")


def test_names_of_models_are_not_patterns_of_the_caller() -> None:
    caller = parse_policy(WHOLE).tokens.owner(digest_of("t"))
    assert caller is not None
    for name in ("*", "resnet", "be?t", "[b]ert", "BERT", ""):
        assert caller.permit.covers(Group.INFER, name) is (name == "resnet")


def test_names_that_strangers_invent_are_not_kept_for_ever() -> None:
    permit = parse_policy(WHOLE).anonymous
    for number in range(5000):
        assert not permit.covers(Group.READ, f"m{number}")
    assert len(permit._remembered) <= 1024


def test_nothing_but_health_and_reflection_is_open_by_default() -> None:
    assert parse_policy("").open == {Group.HEALTH, Group.REFLECTION}
    assert parse_policy("open = []").open == frozenset()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1", "unknown key 'x'"),
        ("open = ['everything']", "open: there is no group 'everything'; there are health, reflection, infer"),
        ("open = 'infer'", "open must be a list of texts"),
        ("[roles.a]", "roles.a.allow must be given"),
        ("[roles.a]\nallow = []\nmodel = ['x']", "unknown key 'roles.a.model'"),
        ("[roles.a]\nallow = []\nrate_per_s = -1", "roles.a.rate_per_s must be a number from 0"),
        ("[roles.a]\nallow = []\nrate_per_s = true", "roles.a.rate_per_s must be a number from 0"),
        ("[roles.a]\nallow = []\nrate_per_s = nan", "roles.a.rate_per_s must be a number from 0"),
        ("[callers.a]\nroles = []", "callers.a has neither token_sha256 nor certificates"),
        (f"[callers.a]\ntoken_sha256 = ['{DIGEST}']\nroles = ['b']", "callers.a.roles: there is no role 'b'"),
        ("[callers.a]\ntoken_sha256 = ['kairos_secret']", "64 hexadecimal digits, as `kairos token new` prints them"),
        (f"[callers.a]\ntoken_sha256 = ['{DIGEST}', '{DIGEST}']", "one token belongs to two callers"),
        ("[callers.a]\ncertificates = ['x']\n[callers.b]\ncertificates = ['x']", "another caller has the certificate"),
        ("[callers.anonymous]\ncertificates = ['x']", "is said in roles.anonymous"),
        ("[jwt]\nissuer = 'i'\njwks = 'k'", "jwt.audience must be given"),
        ("[jwt]\nissuer = 'i'\naudience = 'a'\njwks = 'http://k'", "plain http can be anybody's"),
        ("[jwt]\nissuer = 'i'\naudience = 'a'\njwks = 'k'\nalgorithms = ['HS256']", "jwt.algorithms takes some of"),
        ("[jwt]\nissuer = 'i'\naudience = 'a'\njwks = 'k'\nalgorithms = ['none']", "jwt.algorithms takes some of"),
        ("[", "not TOML"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(BadPolicy) as refused:
        read_policy(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert complaint in str(refused.value)
    assert "kairos_secret" not in str(refused.value)


def test_tokens_are_long_and_never_the_same() -> None:
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(len(token) >= 43 and token.startswith("kairos_") for token in made)
