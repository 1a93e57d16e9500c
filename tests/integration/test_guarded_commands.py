"""Every command that calls a server reaches one that asks for TLS and a token, and says what is missing without."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from server.cli import cli
from tests.support import onnx_models
from tests.support.certificates import Authority
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import RunningServer, running_server

pytestmark = pytest.mark.integration

TOKEN = "a-token-of-the-operator"
POLICY = f"""
[callers.operator]
token_sha256 = ["{hashlib.sha256(TOKEN.encode()).hexdigest()}"]
roles = ["operator"]

[roles.operator]
allow = ["infer", "read", "control", "feedback", "watch"]
"""
COMMANDS = {
    "models": ["models"],
    "cache": ["cache", "stats"],
    "record": ["record", "--model", "scale", "--for", "10ms", "-o", "-"],
    "rollout": ["rollout", "status"],
    "watch": ["watch", "status"],
    "feedback": ["feedback", "status"],
    "label": ["label", "rows.npz", "soft.npz", "--model", "scale"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guarded")
    authority = Authority()
    options = authority.server_options()
    (folder / "chain.pem").write_bytes(options.certificate_chain)
    (folder / "key.pem").write_bytes(options.private_key)
    (folder / "ca.pem").write_bytes(authority.certificate)
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "policy.toml").write_text(POLICY)
    np.savez(folder / "rows.npz", x=np.ones((4, 4), np.float32))
    onnx_models.write(
        folder / "models",
        "scale",
        proto=onnx_models.scale(2.0),
        config=f"max_batch_size: 8\ncapture {{ enable: true }}\n{ONE_ENGINE}",
    )
    return folder


@pytest.fixture(scope="module")
def server(files: Path) -> Iterator[RunningServer]:
    flags = ["--grpc-use-ssl", "--grpc-server-cert", files / "chain.pem", "--grpc-server-key", files / "key.pem"]
    flags += ["--access-policy", files / "policy.toml", "--state-dir", files / "state"]
    with running_server(files / "models", *flags) as running:
        yield running


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_is_let_in_by_its_token_only(
    server: RunningServer, files: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    (files / "soft.npz").unlink(missing_ok=True)
    encrypted = [*command, "--url", f"localhost:{server.url.rpartition(':')[2]}", "--ca-cert", "ca.pem"]
    refused = CliRunner().invoke(cli, encrypted)
    assert refused.exit_code == 1, refused.output
    assert "needs a credential" in " ".join(refused.output.split())
    done = CliRunner().invoke(cli, [*encrypted, "--token-file", "token"])
    assert done.exit_code == 0, done.output
