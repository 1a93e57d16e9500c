"""`kairos health`, which container engines and exec probes run."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from server.cli import cli
from tests.support import onnx_models
from tests.support.certificates import Authority
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import running_server


def health(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["health", "--timeout", "20", *arguments])


@pytest.mark.integration
def test_the_server_and_its_models(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "good", config=ONE_ENGINE)
    broken = onnx_models.write(tmp_path, "broken", config=ONE_ENGINE)
    (broken / "1" / "model.onnx").write_bytes(b"no model")
    with running_server(tmp_path, faults=True) as server:
        asked = {name: health("--url", server.url, "--service", name) for name in ("", "good", "broken", "unknown")}
    assert {name: result.exit_code for name, result in asked.items()} == {"": 0, "good": 0, "broken": 1, "unknown": 1}
    assert asked["good"].output == "SERVING\n"
    assert asked["unknown"].output.startswith("NOT_FOUND")


@pytest.mark.integration
def test_over_mutual_tls(tmp_path: Path) -> None:
    onnx_models.write(tmp_path / "models", "good", config=ONE_ENGINE)
    authority = Authority()
    served = authority.server_options()
    files = {"ca": authority.certificate, "chain": served.certificate_chain, "key": served.private_key}
    files |= {"client": authority.client_chain, "client-key": authority.client_key}
    paths = {name: str(tmp_path / f"{name}.pem") for name in files}
    for name, content in files.items():
        Path(paths[name]).write_bytes(content)
    flags = ["--grpc-server-cert", paths["chain"], "--grpc-server-key", paths["key"], "--grpc-root-cert", paths["ca"]]
    known = ["--client-cert", paths["client"], "--client-key", paths["client-key"]]
    with running_server(tmp_path / "models", "--grpc-use-ssl-mutual", *flags) as server:
        asked = ["--url", server.url, "--root-cert", paths["ca"]]
        assert health(*asked, *known).exit_code == 0
        assert health(*asked, *known, "--authority", "another.example").exit_code == 1
        assert health(*asked).exit_code == 1


def test_no_server() -> None:
    gone = health("--url", "127.0.0.1:1")
    assert gone.exit_code == 1
    assert gone.output.startswith("UNAVAILABLE")


def test_half_an_identity_is_refused(tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.write_bytes(b"")
    assert health("--client-cert", str(pem)).exit_code == 2
    assert health("--client-cert", str(pem), "--client-key", str(pem)).exit_code == 2
