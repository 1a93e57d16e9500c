"""TLS and mutual TLS of a whole server, by its flags, on both transports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from click.testing import CliRunner
from tritonclient.utils import InferenceServerException

from server.cli import cli
from tests.support import onnx_models
from tests.support.certificates import Authority
from tests.support.servers import running_server


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Its files are `chain.pem`, `key.pem`, `ca.pem`, and `client.pem` with `client.key`."""
    issued = Authority()
    options = issued.server_options()
    for name, content in {
        "chain.pem": options.certificate_chain,
        "key.pem": options.private_key,
        "ca.pem": issued.certificate,
        "client.pem": issued.client_chain,
        "client.key": issued.client_key,
    }.items():
        (tmp_path / name).write_bytes(content)
    return issued


def doubled(client: triton.InferenceServerClient) -> float:
    rows = triton.InferInput("x", [1, 4], "FP32").set_data_from_numpy(np.ones((1, 4), np.float32))
    return float(client.infer("scale", [rows], client_timeout=30).as_numpy("y")[0, 0])


@pytest.mark.integration
@pytest.mark.usefixtures("authority")
@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_clients_without_a_certificate_are_turned_away_only_where_one_is_asked_for(
    tmp_path: Path, transport: str
) -> None:
    onnx_models.write(tmp_path / "models", "scale", proto=onnx_models.scale(2.0))
    files = ["--grpc-server-cert", str(tmp_path / "chain.pem"), "--grpc-server-key", str(tmp_path / "key.pem")]
    mutual = ["--grpc-use-ssl-mutual", "--grpc-root-cert", str(tmp_path / "ca.pem")]
    anyone = {"ssl": True, "root_certificates": str(tmp_path / "ca.pem")}
    known = {"private_key": str(tmp_path / "client.key"), "certificate_chain": str(tmp_path / "client.pem")}

    noisy = transport == "grpcio"  # which logs each handshake that fails
    given = ("--transport", transport, *files)
    with running_server(tmp_path / "models", "--grpc-use-ssl", *given, faults=noisy) as server:
        with triton.InferenceServerClient(server.url, **anyone) as client:
            assert doubled(client) == 2.0
        with (
            triton.InferenceServerClient(server.url) as client,
            pytest.raises(InferenceServerException, match="UNAVAILABLE"),
        ):
            doubled(client)

    with running_server(tmp_path / "models", *mutual, *given, faults=noisy) as server:
        with triton.InferenceServerClient(server.url, **anyone, **known) as client:
            assert doubled(client) == 2.0
        with (
            triton.InferenceServerClient(server.url, **anyone) as client,
            pytest.raises(InferenceServerException, match="UNAVAILABLE"),
        ):
            doubled(client)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    ran = CliRunner().invoke(cli, ["serve", "--model-repository", str(tmp_path), "--grpc-use-ssl"])
    assert ran.exit_code == 2
    assert "TLS needs --grpc-server-cert" in ran.output
