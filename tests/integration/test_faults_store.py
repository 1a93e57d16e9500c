"""An object store that is gone, silent, or breaks off: what serves goes on, and a start says what it lacks."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.support import onnx_models
from tests.support.calls import blocking_stub, floats, row
from tests.support.object_store import SECRET, Bucket, Mood, ObjectServer
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import RunningServer, start_server, wait_until

pytestmark = [
    pytest.mark.integration,
    # botocore and its pools leave closing connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

NAMES = count()


@pytest.fixture
def store() -> Iterator[ObjectServer]:
    server = ObjectServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(store: ObjectServer, tmp_path: Path) -> Bucket:
    """With a model `scale` that doubles."""
    made = store.bucket(f"faults{next(NAMES)}")
    local = onnx_models.write(tmp_path / "local", "scale", config=ONE_ENGINE, proto=onnx_models.scale())
    made.upload(local)
    return made


def start(store: ObjectServer, bucket: Bucket, tmp_path: Path) -> RunningServer:
    """A server that polls the bucket and keeps its copies in tmp_path; the caller's to end."""
    arguments = ("--model-repository", bucket.uri, "--model-control-mode", "poll", "--repository-poll-secs", "0.05")
    return start_server(*arguments, "--source-cache-dir", tmp_path / "copies", env=store.environment)


def stop(server: RunningServer) -> None:
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert SECRET not in server.text
    assert "Traceback" not in server.text


def factor(stub: GRPCInferenceServiceStub) -> float:
    """What the version that serves multiplies with."""
    return floats(stub.ModelInfer(row(), timeout=30))[0]


def test_the_store_is_gone_at_a_start_that_has_copies(store: ObjectServer, bucket: Bucket, tmp_path: Path) -> None:
    first = start(store, bucket, tmp_path)
    try:
        first.wait_ready()
        stop(first)
    finally:
        first.end()
    store.stop()
    second = start(store, bucket, tmp_path)
    try:
        second.wait_ready()
        second.wait_for("models stay as they are")
        with blocking_stub(second.url) as stub:
            assert factor(stub) == 2
            store.start()
            bucket.put("scale/2/model.onnx", onnx_models.scale(3.0).SerializeToString())
            wait_until(lambda: factor(stub) == 3, "the store is back, and followed again")
        stop(second)
    finally:
        second.end()


def test_the_store_is_gone_at_a_start_that_has_nothing(store: ObjectServer, bucket: Bucket, tmp_path: Path) -> None:
    store.stop()
    server = start(store, bucket, tmp_path)
    try:
        assert server.wait() == 1
        assert "the model source cannot be read: " + bucket.uri in server.text.replace("\n", " ")
        assert SECRET not in server.text
        assert "Traceback" not in server.text
    finally:
        server.end()


def test_the_store_says_nothing_while_it_is_polled(store: ObjectServer, bucket: Bucket, tmp_path: Path) -> None:
    server = start(store, bucket, tmp_path)
    try:
        server.wait_ready()
        with blocking_stub(server.url) as stub:
            store.mood = Mood.SILENT
            wait_until(lambda: store.troubled > 0, "it is asked")
            for _ in range(50):
                assert factor(stub) == 2
        stop(server)
        assert "a model source says nothing; leaving without its answer" in server.text
    finally:
        server.end()


def test_the_store_breaks_off_in_the_middle_of_a_file(store: ObjectServer, bucket: Bucket, tmp_path: Path) -> None:
    server = start(store, bucket, tmp_path)
    try:
        server.wait_ready()
        with blocking_stub(server.url) as stub:
            store.mood = Mood.CUTTING
            bucket.put("scale/2/model.onnx", onnx_models.scale(3.0).SerializeToString())
            server.wait_for("models stay as they are")
            assert store.troubled >= 4, "it was asked again before that"
            assert factor(stub) == 2
            store.mood = Mood.GOOD
            wait_until(lambda: factor(stub) == 3, "the whole file serves, without a word from anybody")
        stop(server)
    finally:
        server.end()


def test_who_is_stopped_while_it_starts_does_not_wait_for_a_store(
    store: ObjectServer, bucket: Bucket, tmp_path: Path
) -> None:
    store.mood = Mood.SILENT
    server = start(store, bucket, tmp_path)
    try:
        wait_until(lambda: store.troubled > 0, "it is asked")
        stop(server)
        assert "a model source says nothing; leaving without its answer" in server.text
    finally:
        server.end()
