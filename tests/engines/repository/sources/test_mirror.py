"""A folder that follows a source which is made up here: what it takes, when, and what it leaves alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from engines.repository.layout import scan
from engines.repository.sources.blobs import Blobs
from engines.repository.sources.fetch import Patience
from engines.repository.sources.files import RemoteFile, SourceError
from engines.repository.sources.mirror import Mirror, MirrorOptions

SUMS = "m/1/SHA256SUMS"


class FakeRemote:
    """Files by path; breaks off after `breaks_after` bytes when that is set."""

    name = "fake://"

    def __init__(self, **files: bytes) -> None:
        self.files = dict(files)
        self.gone = False
        self.breaks_after: int | None = None
        self.sent = 0

    def list(self) -> Sequence[RemoteFile]:
        if self.gone:
            raise SourceError("gone")
        return [RemoteFile(path, len(body), hashlib.md5(body).hexdigest()) for path, body in self.files.items()]

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        return start, self._send(self.files[file.path][start:])

    def _send(self, body: bytes) -> Iterator[bytes]:
        for i in range(len(body)):
            if self.breaks_after is not None and self.sent >= self.breaks_after:
                self.breaks_after = None
                raise SourceError("broke off")
            self.sent += 1
            yield body[i : i + 1]

    def complete(self, model: Path) -> None:
        pass


class Setup:
    def __init__(self, folder: Path, keys: Sequence[bytes] = (), max_bytes: int = 1 << 20) -> None:
        self.folder = folder
        self.remote = FakeRemote()
        self.blobs = Blobs(folder / "blobs", max_bytes)
        self.options = MirrorOptions(keys=keys, settle_s=0.0)
        self.again()

    def again(self) -> None:
        """As after a restart."""
        patience = Patience(attempts=2, pause_s=0.0)
        self.mirror = Mirror(self.remote, self.folder / "trees", self.blobs, self.options, patience, lambda *_: None)

    def sync(self, times: int = 1) -> None:
        for _ in range(times):
            self.mirror.sync()

    def shown(self) -> dict[str, bytes]:
        root = self.mirror.root
        return {
            f"{name}/{path.relative_to(model.path).as_posix()}": path.read_bytes()
            for name, model in scan([root]).models.items()
            for path in model.path.resolve().rglob("*")
            if path.is_file()
            for path in [model.path / path.relative_to(model.path.resolve())]
        }


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def test_what_is_there_at_the_start_is_shown(setup: Setup) -> None:
    setup.remote.files = {"m/1/model.onnx": b"one", "m/config.pbtxt": b"max_batch_size: 1", "README": b"no model"}
    setup.sync()
    assert setup.shown() == {"m/1/model.onnx": b"one", "m/config.pbtxt": b"max_batch_size: 1"}


def test_a_version_shows_when_two_listings_agree_on_it(setup: Setup) -> None:
    setup.remote.files = {"m/1/model.onnx": b"one"}
    setup.sync()
    setup.remote.files["m/2/model.onnx"] = b"half of tw"
    setup.sync()
    setup.remote.files["m/2/model.onnx"] = b"two"
    setup.remote.files["m/2/weights"] = b"w"
    setup.sync()
    assert set(setup.shown()) == {"m/1/model.onnx"}, "it grew from one look to the next"
    setup.sync()
    assert setup.shown() == {"m/1/model.onnx": b"one", "m/2/model.onnx": b"two", "m/2/weights": b"w"}


def test_a_version_without_all_that_its_manifest_names_waits(setup: Setup) -> None:
    digest = hashlib.sha256(b"w").hexdigest()
    setup.remote.files = {"m/1/model.onnx": b"one", SUMS: f"{digest}  weights\n".encode()}
    setup.sync(2)
    assert not setup.shown()
    assert setup.mirror.statistics.refused == {"m/1": "'weights' is in the manifest but not there"}
    setup.remote.files["m/1/weights"] = b"w"
    setup.sync(2)
    assert setup.shown()["m/1/weights"] == b"w"


def test_what_is_gone_from_two_listings_is_taken_away(setup: Setup) -> None:
    setup.remote.files = {"m/1/model.onnx": b"one", "m/2/model.onnx": b"two", "n/1/model.onnx": b"n"}
    setup.sync()
    del setup.remote.files["m/2/model.onnx"], setup.remote.files["n/1/model.onnx"]
    setup.sync()
    assert set(setup.shown()) == {"m/1/model.onnx", "m/2/model.onnx", "n/1/model.onnx"}
    setup.sync()
    assert set(setup.shown()) == {"m/1/model.onnx"}


def test_versions_that_did_not_change_keep_their_fingerprint(setup: Setup) -> None:
    setup.remote.files = {"m/1/model.onnx": b"one"}
    setup.sync()
    before = scan([setup.mirror.root]).models["m"].versions[1]
    setup.remote.files["m/2/model.onnx"] = b"two"
    setup.sync(2)
    versions = scan([setup.mirror.root]).models["m"].versions
    assert versions[1].fingerprint == before.fingerprint
    assert 2 in versions


def test_a_source_that_is_gone_changes_nothing(setup: Setup) -> None:
    setup.remote.files = {"m/1/model.onnx": b"one"}
    setup.sync()
    setup.remote.gone = True
    setup.again()
    with pytest.raises(SourceError, match="gone"):
        setup.sync()
    assert set(setup.shown()) == {"m/1/model.onnx"}
    assert setup.mirror.statistics.failures == 1
    assert setup.mirror.holds


def test_nothing_is_fetched_twice(setup: Setup) -> None:
    setup.remote.files = {"m/1/model.onnx": b"0123456789"}
    setup.remote.breaks_after = 6
    setup.sync()
    assert setup.remote.sent == 10, "6 bytes, then the other 4"
    setup.again()
    setup.sync()
    setup.remote.files["m/2/model.onnx"] = b"0"
    setup.sync(2)
    assert setup.remote.sent == 11


def test_a_stop_ends_a_download_at_once_and_keeps_what_came(setup: Setup) -> None:
    setup.remote.files = {"m/1/model.onnx": b"0123456789"}
    patience = Patience(attempts=9, pause_s=60.0)

    def stop(_name: str, done: int, _total: int) -> None:
        if done == 3:
            patience.stopped.set()

    leaving = Mirror(setup.remote, setup.folder / "trees", setup.blobs, setup.options, patience, stop)
    with pytest.raises(SourceError, match="stopped"):
        leaving.sync()
    assert setup.remote.sent == 3
    setup.sync()
    assert setup.remote.sent == 10


def test_contents_that_are_here_under_another_name_are_not_fetched(setup: Setup) -> None:
    digest = hashlib.sha256(b"graph").hexdigest()
    setup.remote.files = {"m/1/model.onnx": b"graph"}
    setup.sync()
    setup.remote.files |= {"m/2/model.onnx": b"graph", "m/2/SHA256SUMS": f"{digest}  model.onnx".encode()}
    sent = setup.remote.sent
    setup.sync(2)
    assert setup.shown()["m/2/model.onnx"] == b"graph"
    assert setup.remote.sent - sent == len(setup.remote.files["m/2/SHA256SUMS"])


@pytest.mark.parametrize(
    "path", ["../../m/1/x", "m/../../x/1/y", "/etc/1/x", "m//1/x", "m/1/..\\x", "m/1/a\nb", "..", "m/./1/x"]
)
def test_no_name_leads_out_of_the_folder(setup: Setup, path: str) -> None:
    setup.remote.files = {path: b"evil", "m/1/model.onnx": b"one"}
    setup.sync()
    assert set(setup.shown()) == {"m/1/model.onnx"}
    everything = [found for found in setup.folder.rglob("*") if found.is_file() and found.stat().st_size == 4]
    assert not everything


def test_names_that_no_folder_can_hold_side_by_side_spoil_their_model_alone(setup: Setup) -> None:
    setup.remote.files = {"m/1/a": b"1", "m/1/a/b": b"2", "n/1/model.onnx": b"n"}
    setup.sync()
    assert set(setup.shown()) == {"n/1/model.onnx"}
    assert "m" in setup.mirror.statistics.refused
    del setup.remote.files["m/1/a/b"]
    setup.sync(2)
    assert setup.mirror.statistics.refused == {}
    assert set(setup.shown()) == {"m/1/a", "n/1/model.onnx"}


def test_a_name_too_long_for_the_disk_spoils_its_model_alone(setup: Setup) -> None:
    setup.remote.files = {f"m/1/{'a' * 300}": b"1", "n/1/model.onnx": b"n"}
    with pytest.raises(SourceError, match="'m' cannot be kept"):
        setup.sync()
    assert set(setup.shown()) == {"n/1/model.onnx"}


def test_the_bound_throws_away_what_was_longest_unused_but_nothing_in_use(tmp_path: Path) -> None:
    setup = Setup(tmp_path, max_bytes=25)
    setup.remote.files = {"m/1/model.onnx": b"0123456789", "old/1/x": b"0123456780", "older/1/x": b"0123456700"}
    setup.sync()
    assert setup.blobs.size_bytes() == 30, "all is in use"
    digests = {name: hashlib.sha256(setup.remote.files[f"{name}/1/x"]).hexdigest() for name in ("old", "older")}
    for age, digest in enumerate(digests.values(), start=1):
        path = setup.blobs.path(digest)
        os.utime(path, ns=(10**9 // age, path.stat().st_mtime_ns))
    del setup.remote.files["old/1/x"], setup.remote.files["older/1/x"]
    setup.sync(2)
    assert setup.blobs.size_bytes() == 30, "somebody may be loading them just now"
    setup.sync()
    assert setup.blobs.size_bytes() == 20
    assert not setup.blobs.has(digests["older"])
    assert setup.blobs.has(digests["old"])


def test_a_state_that_cannot_be_read_is_made_anew(setup: Setup) -> None:
    setup.remote.files = {"m/1/model.onnx": b"one"}
    setup.sync()
    next(setup.folder.rglob("state.json")).write_text("{")
    setup.again()
    setup.sync()
    assert setup.shown() == {"m/1/model.onnx": b"one"}


def test_a_mirror_says_how_it_stands(setup: Setup) -> None:
    setup.sync()
    assert repr(setup.mirror) == "<Mirror fake:// [1 looks, 0 failed]>"
