"""What a machine runs out of: memory, disk, file descriptors. Limits of the process stand in for those of the machine.

Disks: RLIMIT_FSIZE lets every write beyond it fail, as a full disk does, only with another number.
"""

from __future__ import annotations

import json
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from server.pb import grpc_service_pb2 as pb
from tests.support import onnx_models
from tests.support.calls import blocking_stub, failure, floats, row
from tests.support.processes import cpu_s, threads_and_descriptors
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import RunningServer, running_server, wait_until

pytestmark = pytest.mark.integration

TRANSPORTS = pytest.mark.parametrize("transport", ["http2", "grpcio"])


def hungry(count: int) -> pb.ModelInferRequest:
    """A request to `hungry`, whose execution takes 4 * count bytes."""
    request = pb.ModelInferRequest(model_name="hungry", raw_input_contents=[np.int64(count).tobytes()])
    request.inputs.add(name="x", datatype="INT64", shape=[1, 1])
    return request


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    onnx_models.write(root, "scale", proto=onnx_models.scale(), config=f"max_batch_size: 4\n{ONE_ENGINE}")
    return root


@contextmanager
def limited(server: RunningServer, kind: int, value: int) -> Iterator[None]:
    """Let the server have no more than `value` of a resource, for the length of the block."""
    soft, hard = resource.prlimit(server.process.pid, kind)
    resource.prlimit(server.process.pid, kind, (value, hard))
    yield
    resource.prlimit(server.process.pid, kind, (soft, hard))


def memory_bytes(pid: int) -> int:
    """The size of a process's address space."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


@TRANSPORTS
def test_out_of_memory_in_an_execution_fails_that_request_and_no_other(repository: Path, transport: str) -> None:
    config = f"max_batch_size: 4\n{ONE_ENGINE}"
    onnx_models.write(repository, "hungry", proto=onnx_models.hungry(), config=config)
    with (
        running_server(repository, "--transport", transport, faults=True) as server,
        blocking_stub(server.url) as stub,
    ):
        assert floats(stub.ModelInfer(hungry(10), timeout=30)) == [10]
        with limited(server, resource.RLIMIT_AS, memory_bytes(server.process.pid) + (256 << 20)):
            too_much = stub.ModelInfer.future(hungry(1 << 29))
            assert floats(stub.ModelInfer(row(), timeout=30)) == [2, 4, 6, 8]
            code, text, trailers = failure(too_much)
            assert (code, text) == ("INTERNAL", "model 'hungry' version 1 failed: out of memory")
            assert trailers["retryable"] == "true"
            assert floats(stub.ModelInfer(hungry(10), timeout=30)) == [10]


def test_out_of_memory_while_a_model_loads_leaves_what_serves_alone(repository: Path) -> None:
    fat = onnx_models.padded(96 << 20)
    onnx_models.write(repository, "fat", proto=fat, config=f"max_batch_size: 4\n{ONE_ENGINE}")
    arguments = ("--model-control-mode", "explicit", "--load-model", "scale", "--cache-dir", repository.parent / "c")
    with running_server(repository, *arguments, faults=True) as server, blocking_stub(server.url) as stub:
        load = pb.RepositoryModelLoadRequest(model_name="fat")
        with limited(server, resource.RLIMIT_AS, memory_bytes(server.process.pid) + (64 << 20)):
            code, text, _ = failure(stub.RepositoryModelLoad.future(load))
            assert code == "INTERNAL"
            assert text.startswith("failed to load 'fat', ")
            assert floats(stub.ModelInfer(row(), timeout=30)) == [2, 4, 6, 8]
        stub.RepositoryModelLoad(load, timeout=60)  # with memory it succeeds, in the same process
        assert floats(stub.ModelInfer(row(model="fat"), timeout=30)) == [1, 2, 3, 4]


def test_a_disk_that_is_full_costs_files_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    """No cost file, no optimised graph, no trace, no line of the log can be written; requests are answered."""
    large = onnx_models.padded(5 << 20)
    config = f"max_batch_size: 4\n{ONE_ENGINE}"
    onnx_models.write(repository, "large", proto=large, config=config)
    cache, log_file, trace_file = tmp_path / "cache", tmp_path / "log", tmp_path / "trace.json"
    arguments = ("--model-control-mode", "explicit", "--load-model", "scale", "--cache-dir", cache)
    files = ("--log-file", log_file, "--trace-file", trace_file, "--trace-level", "TIMESTAMPS", "--trace-rate", "1")
    with (
        running_server(repository, *arguments, *files, "--access-log", "1", faults=True) as server,
        blocking_stub(server.url) as stub,
    ):
        assert floats(stub.ModelInfer(row(), timeout=30)) == [2, 4, 6, 8]
        wait_until(lambda: trace_file.exists() and trace_file.stat().st_size > 2, "a trace")
        with limited(server, resource.RLIMIT_FSIZE, trace_file.stat().st_size + 10):
            stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="large"), timeout=60)
            for _ in range(50):
                assert floats(stub.ModelInfer(row(), timeout=30)) == [2, 4, 6, 8]
                assert floats(stub.ModelInfer(row(model="large"), timeout=30)) == [1, 2, 3, 4]
            assert server.process.poll() is None
            assert [path.name for path in cache.rglob("*.onnx")] == []
        size = log_file.stat().st_size
        stub.ModelInfer(row(), timeout=30)  # with room on the disk log and traces go on
        wait_until(lambda: log_file.stat().st_size > size, "a line in the log")
    assert server.text.count("lines of") == 1
    events = json.loads(trace_file.read_text())
    assert 4 <= len(events) < 100, "the first request's trace, the last one's, and what waited for the disk; no more"


@TRANSPORTS
def test_without_file_descriptors_those_who_are_connected_are_served_and_the_server_recovers(
    repository: Path, transport: str
) -> None:
    with (
        running_server(repository, "--transport", transport, faults=True) as server,
        blocking_stub(server.url) as stub,
        ExitStack() as opened,
    ):
        assert floats(stub.ModelInfer(row(), timeout=30)) == [2, 4, 6, 8]
        pid = server.process.pid
        _, descriptors = threads_and_descriptors(pid)
        with limited(server, resource.RLIMIT_NOFILE, descriptors + 4):
            for url, count in ((server.url, 12), (server.metrics_url.split("/")[2], 4)):
                host, port = url.split(":")
                for _ in range(count):
                    opened.enter_context(socket.create_connection((host, int(port)), timeout=30))
            wait_until(lambda: threads_and_descriptors(pid)[1] >= descriptors + 4, "nothing left")
            spent: list[float] = []
            while not spent or (spent[-1] >= 0.5 and len(spent) < 3):  # the machine may have been busy for a moment
                before = cpu_s(pid)
                for _ in range(20):
                    assert floats(stub.ModelInfer(row(), timeout=30)) == [2, 4, 6, 8]
                    threading.Event().wait(0.05)  # time to waste, were it waited for in a loop
                spent.append(cpu_s(pid) - before)
            assert spent[-1] < 0.5, "it asks for descriptors again and again"
            opened.close()
            with blocking_stub(server.url) as late:
                assert floats(late.ModelInfer(row(), timeout=30, wait_for_ready=True)) == [2, 4, 6, 8]
            wait_until(lambda: threads_and_descriptors(pid)[1] <= descriptors + 3, "descriptors came back")
