"""Models from a real S3 API: served, polled, resumed, refused, and missed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from engines.errors import LoadFailed
from engines.repository.layout import scan
from engines.repository.sources import manifest
from engines.repository.sources.fetch import Patience, Progress
from engines.repository.sources.files import SourceError
from engines.repository.sources.objects import ObjectStore
from engines.repository.sources.opening import SourceOptions, Sources
from server.cli import cli
from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.support import onnx_models
from tests.support.object_store import SECRET, Bucket, ObjectServer
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import start_server, wait_until

pytestmark = [
    pytest.mark.integration,
    # botocore and its pools leave closing connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

NAMES = count()
PIECE = 1000


@pytest.fixture(scope="module")
def shared() -> Iterator[ObjectServer]:
    server = ObjectServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def store(shared: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    for name, value in shared.environment.items():
        monkeypatch.setenv(name, value)
    shared.ranges.clear()
    yield shared
    if shared._server is None:
        shared.start()


@pytest.fixture
def bucket(store: ObjectServer) -> Bucket:
    return store.bucket(f"bucket{next(NAMES)}")


def sources(bucket: Bucket, tmp_path: Path, *keys: Path, progress: Progress | None = None) -> Sources:
    options = SourceOptions(uris=(bucket.uri,), cache_dir=tmp_path / "cache", signing_keys=keys, settle_s=0.0)
    return Sources(options, progress, Patience(attempts=2, pause_s=0.0))


def content(source: Sources, path: str) -> bytes:
    return (source.roots[0] / path).read_bytes()


def test_a_server_follows_a_bucket_and_outlives_it(store: ObjectServer, bucket: Bucket, tmp_path: Path) -> None:
    local = onnx_models.write(tmp_path / "local", "scaled", config=ONE_ENGINE, proto=onnx_models.scale())
    bucket.upload(local)
    arguments = ("--model-repository", bucket.uri, "--model-control-mode", "poll", "--repository-poll-secs", "0.05")
    server = start_server(*arguments, "--cache-dir", tmp_path / "cache", env=store.environment)
    try:
        server.wait_ready()
        with grpc.insecure_channel(server.url) as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]

            def ready() -> list[str]:
                rows = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), timeout=10).models
                return [row.version for row in rows]

            assert ready() == ["1"]
            bucket.put("scaled/2/model.onnx", onnx_models.scale(3.0).SerializeToString())
            wait_until(lambda: ready() == ["2"], "version 2 in place of version 1")
            store.stop()
            server.wait_for("models stay as they are")
            assert ready() == ["2"]
        server.send(signal.SIGTERM)
        assert server.wait() == 0
        assert SECRET not in server.text
    finally:
        server.end()


def test_what_was_broken_off_goes_on_where_it_was(store: ObjectServer, bucket: Bucket, tmp_path: Path) -> None:
    body = bytes(range(256)) * 40
    bucket.put("m/1/model.onnx", body)

    def leave(_name: str, done: int, _total: int) -> None:
        if done == 4 * PIECE:
            store.stop()

    first = sources(bucket, tmp_path, progress=leave)
    small_pieces(first, bucket)
    with pytest.raises(LoadFailed, match="cannot be read"):
        first.sync()
    store.start()
    second = sources(bucket, tmp_path)
    small_pieces(second, bucket)
    second.sync()
    assert content(second, "m/1/model.onnx") == body
    asked = [span for path, span in store.ranges if path.endswith("/m/1/model.onnx")]
    assert asked == [f"bytes={i}-{min(i + PIECE, len(body)) - 1}" for i in range(0, len(body), PIECE)]
    assert second.mirrors[0].statistics.fetched_bytes == len(body) - 4 * PIECE


def small_pieces(source: Sources, bucket: Bucket) -> None:
    source.mirrors[0].remote = ObjectStore(bucket.uri, PIECE)


def test_a_new_object_under_the_same_name_is_never_joined_to_the_old_one(
    store: ObjectServer, bucket: Bucket, tmp_path: Path
) -> None:
    bucket.put("m/1/model.onnx", b"a" * 5 * PIECE)

    def replace(_name: str, done: int, _total: int) -> None:
        if done == 2 * PIECE:
            bucket.put("m/1/model.onnx", b"b" * 5 * PIECE)

    source = sources(bucket, tmp_path, progress=replace)
    small_pieces(source, bucket)
    with pytest.raises(LoadFailed, match="has changed while it was fetched"):
        source.sync()
    source.sync()  # two looks must agree on what is new
    source.sync()
    assert content(source, "m/1/model.onnx") == b"b" * 5 * PIECE


def test_an_object_that_is_not_what_the_manifest_says_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    local, private, _ = signed_model(tmp_path)
    bucket.upload(local)
    source = sources(bucket, tmp_path)
    source.sync()
    (local / "2").mkdir()
    (local / "2" / "model.onnx").write_bytes(b"a better graph")
    manifest.sign(local, private)
    bucket.upload(local)
    bucket.put("m/2/model.onnx", b"a better grape")
    source.sync()
    source.sync()
    assert source.mirrors[0].statistics.refused == {"m/2": "'model.onnx' is not what the manifest says"}
    assert list(scan(source.roots).models["m"].versions) == [1], "what served stays"
    asked = source.mirrors[0].statistics.fetched_files
    source.sync()
    assert source.mirrors[0].statistics.fetched_files == asked, "what was refused is not fetched at each look"
    bucket.upload(local)
    source.sync()
    source.sync()
    assert source.mirrors[0].statistics.refused == {}
    assert list(scan(source.roots).models["m"].versions) == [1, 2]


def signed_model(tmp_path: Path) -> tuple[Path, Path, Path]:
    local = onnx_models.write(tmp_path / "local", "m", config="max_batch_size: 4")
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    manifest.make_keys(private, public)
    manifest.sign(local, private)
    return local, private, public


def forge(bucket: Bucket, local: Path, tmp_path: Path) -> None:
    manifest.make_keys(tmp_path / "other.pem", tmp_path / "other.pub")
    manifest.sign(local, tmp_path / "other.pem")
    bucket.upload(local)


def add_a_file(bucket: Bucket, local: Path, tmp_path: Path) -> None:
    bucket.put("m/1/more.bin", b"more")


def move(bucket: Bucket, local: Path, tmp_path: Path) -> None:
    (local / "1").rename(local / "2")
    bucket.upload(local)
    for name in ("model.onnx", "SHA256SUMS", "SHA256SUMS.sig"):
        bucket.delete(f"m/1/{name}")


def leave_unsigned(bucket: Bucket, local: Path, tmp_path: Path) -> None:
    bucket.delete("m/1/SHA256SUMS.sig")


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (forge, "from no key that is trusted"),
        (add_a_file, "'more.bin' is not in the signed manifest"),
        (move, "signed, but not for m/2"),
        (leave_unsigned, "not signed"),
    ],
)
def test_only_what_a_trusted_key_has_signed_for_its_place_is_taken(
    bucket: Bucket, tmp_path: Path, attack: Callable[[Bucket, Path, Path], None], said: str
) -> None:
    local, _, public = signed_model(tmp_path)
    bucket.upload(local)
    honest = sources(bucket, tmp_path / "honest", public)
    honest.sync()
    assert list(scan(honest.roots).models["m"].versions) == [1]
    attack(bucket, local, tmp_path)
    fooled = sources(bucket, tmp_path / "fooled", public)
    fooled.sync()
    assert any(said in reason for reason in fooled.mirrors[0].statistics.refused.values())
    assert not scan(fooled.roots).models


def test_copies_serve_at_a_start_without_the_source(store: ObjectServer, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("m/1/model.onnx", b"graph")
    sources(bucket, tmp_path).sync()
    store.stop()
    later = sources(bucket, tmp_path)
    later.sync()
    assert content(later, "m/1/model.onnx") == b"graph"
    with pytest.raises(SourceError) as gone:
        later.mirrors[0].sync()
    assert SECRET not in str(gone.value)
    with pytest.raises(LoadFailed, match="cannot be read"):
        sources(bucket, tmp_path / "elsewhere").sync()


def test_the_command_line_lists_and_pulls(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("m/1/model.onnx", b"graph")
    bucket.put("m/12/model.onnx", b"graphs")
    listed = CliRunner().invoke(cli, ["models", "list", bucket.uri, "--json"])
    assert listed.exit_code == 0, listed.output
    assert '"version": 12' in listed.output
    command = ["models", "pull", bucket.uri, str(tmp_path / "here"), "--source-cache-dir", str(tmp_path / "cache")]
    pulled = CliRunner().invoke(cli, command)
    assert pulled.exit_code == 0, pulled.output
    assert (tmp_path / "here" / "m" / "12" / "model.onnx").read_bytes() == b"graphs"
    missing = CliRunner().invoke(cli, ["models", "list", "s3://no-such-bucket/models"])
    assert missing.exit_code == 1
