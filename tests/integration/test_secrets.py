"""Secrets stay secret: in logs at their loudest, in help and errors, and in what objects print."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from server.access.gate import Credentials, PolicyFile
from server.access.tokens import digest_of
from server.cli import cli
from server.cli.options import cache
from server.cli.serve import serve
from server.pb import grpc_service_pb2 as pb
from tests.support.access import POLICY, bearer, repository, request, stub_of
from tests.support.certificates import Authority
from tests.support.servers import running_server

PASSWORD = "hunter2-in-the-url"
HMAC = "hmac-secret-of-all"


@pytest.mark.integration
@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_no_secret_is_logged(tmp_path: Path, transport: str) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    given = ["--access-policy", policy, "--log-verbose", "2", "--access-log", "1", "--transport", transport]
    env = {
        "KAIROS_REDIS_URL": f"redis://user:{PASSWORD}@127.0.0.1:1/0",  # nobody is there, which is logged
        "KAIROS_REDIS_SECRET": HMAC,
    }
    models = repository(tmp_path)
    (models / "red" / "config.pbtxt").write_text("response_cache { enable: true }")
    with running_server(models, *given, env=env, faults=True) as server:
        with grpc.insecure_channel(server.url) as channel:
            stub = stub_of(channel)
            stub.ModelInfer(request("red"), metadata=bearer("alice"), timeout=30)
            for metadata in (bearer("mallory"), (("authorization", "Basic c2VjcmV0"),)):
                with pytest.raises(grpc.RpcError) as refused:
                    stub.ModelInfer(request("red"), metadata=metadata, timeout=30)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
                assert "mallory" not in refused.value.details()  # type: ignore[attr-defined]
            policy.write_text(POLICY.replace("token_sha256", "token"))
            stub.ServerLive(pb.ServerLiveRequest(), timeout=30)
        server.wait_for("the access policy stays as it was")
    for secret in (PASSWORD, HMAC, "alice-token", "mallory-token", "c2VjcmV0", digest_of("alice-token").hex()):
        assert secret not in server.text, secret


def test_help_and_complaints_hold_no_secret(tmp_path: Path) -> None:
    env = {"KAIROS_REDIS_URL": f"redis://user:{PASSWORD}@h/0", "KAIROS_REDIS_SECRET": HMAC}
    shown = CliRunner().invoke(cli, ["serve", "--help"], env=env).output
    for url in (f"redis://u:{PASSWORD}@h:port/0", f"nothing://u:{PASSWORD}@h", f"redis://u:{PASSWORD}@h/x?y=1"):
        ran = CliRunner().invoke(cli, ["serve", "--model-repository", str(tmp_path), "--redis-url", url])
        assert ran.exit_code == 2
        shown += ran.output
    assert PASSWORD not in shown
    assert HMAC not in shown


def test_what_objects_print_holds_no_secret(tmp_path: Path) -> None:
    given = ["--model-repository", str(tmp_path), "--redis-url", f"redis://u:{PASSWORD}@h/0", "--redis-secret", HMAC]
    with serve.make_context("serve", given) as context:
        options = cache.store_options(context.params)
    assert options.secret == HMAC.encode()
    identity = Authority().server_options()
    (tmp_path / "policy.toml").write_text(POLICY)
    shown = repr((options, identity, Credentials("Bearer alice-token"), PolicyFile(tmp_path / "policy.toml").gate))
    for secret in (PASSWORD, HMAC, "alice-token", "PRIVATE KEY", digest_of("alice-token").hex()):
        assert secret not in shown, secret


def test_a_new_token_is_told_once_and_its_digest_is_what_the_policy_takes() -> None:
    made = CliRunner().invoke(cli, ["token", "new", "jobs"])
    token = made.stdout.strip()
    assert token.startswith("kairos_")
    assert f'token_sha256 = ["{digest_of(token).hex()}"]' in made.stderr
    assert token not in made.stderr
    digest = CliRunner().invoke(cli, ["token", "digest"], input=f"{token}\n")
    assert digest.stdout.strip() == digest_of(token).hex()
    assert CliRunner().invoke(cli, ["token", "digest"], input="").exit_code == 2
