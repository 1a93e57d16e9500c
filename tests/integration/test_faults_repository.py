"""Files that are broken, half-written or gone, and clocks that jump: what serves goes on serving."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.support import onnx_models
from tests.support.calls import blocking_stub, floats, row
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import running_server, wait_until
from tests.support.tools import library

pytestmark = pytest.mark.integration

CONFIG = f"max_batch_size: 4\nversion_policy {{ latest {{ num_versions: 1 }} }}\n{ONE_ENGINE}"
POLL = ("--model-control-mode", "poll", "--repository-poll-secs", "0.1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    onnx_models.write(folder, "scale", proto=onnx_models.scale(), config=CONFIG)
    onnx_models.write(folder, "other", proto=onnx_models.scale(3.0), config=CONFIG)
    return folder


@pytest.fixture
def stub(root: Path, tmp_path: Path) -> Iterator[GRPCInferenceServiceStub]:
    """Of a server that watches `root`."""
    with (
        running_server(root, *POLL, "--cache-dir", tmp_path / "cache", faults=True) as server,
        blocking_stub(server.url) as made,
    ):
        yield made


def states(stub: GRPCInferenceServiceStub, model: str) -> dict[str, tuple[str, str]]:
    """State and reason of each version."""
    index = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=30)
    return {line.version: (line.state, line.reason) for line in index.models if line.name == model}


def factor(stub: GRPCInferenceServiceStub, model: str = "scale") -> float:
    """What the version that serves multiplies with."""
    return floats(stub.ModelInfer(row((1, 1, 1, 1), model), timeout=30))[0]


def test_a_half_written_version_never_pushes_out_what_serves(root: Path, stub: GRPCInferenceServiceStub) -> None:
    whole = onnx_models.scale(5.0).SerializeToString()
    fresh = root / "scale" / "2"
    fresh.mkdir()
    (fresh / "model.onnx").write_bytes(whole[: len(whole) // 2])
    wait_until(lambda: states(stub, "scale").get("2", ("", ""))[0] == "UNAVAILABLE", "the half is refused")
    assert states(stub, "scale")["2"][1]
    assert states(stub, "scale")["1"] == ("READY", "")
    assert (factor(stub), factor(stub, "other")) == (2, 3)
    (fresh / "model.onnx").write_bytes(whole)
    wait_until(lambda: factor(stub) == 5, "the whole file serves, without a word from anybody")
    assert factor(stub, "other") == 3


def test_a_configuration_that_makes_no_sense_is_blamed_and_the_old_one_serves_on(
    root: Path, stub: GRPCInferenceServiceStub
) -> None:
    config = root / "scale" / "config.pbtxt"
    config.write_text("max_batch_size: 4\ninstance_group {")  # half of it
    wait_until(lambda: any(reason for _, reason in states(stub, "scale").values()), "the reason is told")
    assert (factor(stub), factor(stub, "other")) == (2, 3)
    config.write_text(CONFIG.replace("max_batch_size: 4", "max_batch_size: 8"))
    wait_until(lambda: states(stub, "scale") == {"1": ("READY", "")}, "it is taken back")

    def max_rows() -> int:
        return int(stub.ModelConfig(pb.ModelConfigRequest(name="scale"), timeout=30).config.max_batch_size)

    wait_until(lambda: max_rows() == 8, "the new configuration is in force")


def test_a_repository_that_vanishes_takes_no_model_with_it_and_may_come_back(
    root: Path, stub: GRPCInferenceServiceStub
) -> None:
    away = root.with_name("away")
    root.rename(away)
    for _ in range(30):
        assert (factor(stub), factor(stub, "other")) == (2, 3)
        assert stub.ServerReady(pb.ServerReadyRequest(), timeout=30).ready
        stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=30)
    onnx_models.write(away, "scale", (2,), proto=onnx_models.scale(7.0))
    away.rename(root)
    wait_until(lambda: factor(stub) == 7, "what has changed meanwhile serves")


def test_broken_files_in_the_cache_folder_are_made_anew(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    onnx_models.write(root, "large", proto=onnx_models.padded(5 << 20), config=CONFIG)
    with running_server(root, "--cache-dir", cache):
        pass
    kept = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    assert {path.suffix for path in kept} == {".json", ".onnx"}
    for path, content in kept.items():
        path.write_bytes(content[: len(content) // 2])
    with running_server(root, "--cache-dir", cache, faults=True) as server, blocking_stub(server.url) as stub:
        assert (factor(stub), factor(stub, "large")) == (2, 1)
        assert "is not used" in server.text
        assert "is unusable and made anew" in server.text
    assert {path for path in cache.rglob("*") if path.is_file()} == set(kept)
    assert all(path.stat().st_size >= len(content) * 3 // 4 for path, content in kept.items())


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_a_wall_clock_that_jumps_is_not_even_noticed(root: Path, tmp_path: Path, transport: str) -> None:
    """A year ahead and back again, while calls with deadlines run."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    env = {
        "LD_PRELOAD": library("libfaketime.so.1", "apt-get install libfaketime"),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    with running_server(root, "--transport", transport, env=env) as server, blocking_stub(server.url) as stub:
        for jump in ("+0", "+365d", "-365d", "+0"):
            clock.write_text(jump)
            for _ in range(20):
                assert floats(stub.ModelInfer(row(), timeout=30)) == [2, 4, 6, 8]
        counted = stub.ModelStatistics(pb.ModelStatisticsRequest(name="scale"), timeout=30).model_stats[0]
        assert counted.inference_stats.success.count == 80
        assert counted.inference_stats.success.ns < 60e9
        assert counted.last_inference > 0


def test_the_clock_of_that_test_does_jump(tmp_path: Path) -> None:
    """Were the library without effect, the test above would prove nothing."""
    clock = tmp_path / "clock"
    clock.write_text("+365d")
    env = {
        "LD_PRELOAD": library("libfaketime.so.1", "apt-get install libfaketime"),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "DONT_FAKE_MONOTONIC": "1",
    }
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"], env=env, capture_output=True, check=True, text=True
    )
    assert float(told.stdout) - time.time() > 300 * 86400
