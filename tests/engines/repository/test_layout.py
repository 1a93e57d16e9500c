"""What a scan sees, what it ignores, and what changes a fingerprint."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.errors import LoadFailed
from engines.repository import layout
from engines.repository.layout import DUPLICATE, Scan, look, resolve_inside, scan, settle, version_of, write_model
from tests.support import onnx_models


def fingerprint(root: Path) -> str:
    return scan([root]).models["m"].versions[1].fingerprint


def test_versions_are_positive_integers_and_all_else_is_ignored(tmp_path: Path) -> None:
    for folder in ("1", "12", "0", "-3", "007", "1.5", "v2", ".3", "tmp", "٣", "9" * 19):
        (tmp_path / "m" / folder).mkdir(parents=True)
    (tmp_path / "m" / "7").write_text("a file, not a folder")
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    (tmp_path / "README").write_text("not a model")
    found = scan([tmp_path])
    assert list(found.models) == ["m"]
    assert list(found.models["m"].versions) == [1, 12]


@pytest.mark.parametrize(("name", "number"), [("1", 1), ("10", 10), ("01", 0), ("", 0), ("²", 0), ("1_0", 0)])
def test_version_of(name: str, number: int) -> None:
    assert version_of(name) == number


def test_a_version_knows_its_files(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m")
    (tmp_path / "m" / "1" / "parts").mkdir()
    (tmp_path / "m" / "1" / "parts" / "a.bin").write_bytes(b"a")
    (tmp_path / "m" / "1" / ".upload").write_bytes(b"half of it")
    version = scan([tmp_path]).models["m"].versions[1]
    assert version.files == ("model.onnx", "parts/a.bin")
    assert version.holds("model.onnx")
    assert version.holds("parts")
    assert not version.holds("part")


def touch(root: Path) -> None:
    os.utime(root / "m" / "1" / "model.onnx", ns=(1, 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda root: (root / "m" / "1" / "model.onnx").write_bytes(b"other"),
    "time": touch,
    "one more file": lambda root: (root / "m" / "1" / "weights.bin").write_bytes(b""),
    "a file gone": lambda root: (root / "m" / "1" / "model.onnx").unlink(),
    "configuration": lambda root: (root / "m" / "config.pbtxt").write_text("max_batch_size: 2"),
    "labels": lambda root: (root / "m" / "labels.txt").write_text("cat"),
    "warm-up data": lambda root: write_model(root / "m", {"warmup/x": b"1"}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_changes_the_fingerprint(tmp_path: Path, change: Callable[[Path], object]) -> None:
    onnx_models.write(tmp_path, "m")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    change(tmp_path)
    assert fingerprint(tmp_path) != before


def test_another_version_is_none_of_its_business(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m")
    before = fingerprint(tmp_path)
    onnx_models.write(tmp_path, "m", (2,))
    assert fingerprint(tmp_path) == before


def test_a_model_in_two_repositories_is_a_problem(tmp_path: Path) -> None:
    for root in ("a", "b", "c"):
        onnx_models.write(tmp_path / root, "m")
    onnx_models.write(tmp_path / "b", "only")
    found = scan([tmp_path / root for root in "abc"])
    assert list(found.models) == ["only"]
    assert found.problems == {"m": DUPLICATE}


def test_a_missing_root_is_told_apart_from_an_empty_one(tmp_path: Path) -> None:
    found = scan([tmp_path, tmp_path / "gone"])
    assert found.models == {}
    assert list(found.unreadable) == [tmp_path / "gone"]


def test_links_may_stand_for_models_and_versions_and_never_lead_in_circles(tmp_path: Path) -> None:
    onnx_models.write(tmp_path / "elsewhere", "real")
    root = tmp_path / "root"
    root.mkdir()
    (root / "m").symlink_to(tmp_path / "elsewhere" / "real")
    (root / "m" / "2").symlink_to(root / "m" / "1")
    (root / "m" / "1" / "again").symlink_to(root / "m" / "1")
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    found = scan([root])
    assert list(found.models) == ["m"]
    assert list(found.models["m"].versions) == [1, 2]
    assert found.models["m"].versions[2].files == ("again/model.onnx", "model.onnx")


def test_a_look_does_not_wander_over_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = onnx_models.write(tmp_path / "root", "m")
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "deep" / "file").touch()
    (tmp_path / "outside" / "model.onnx").touch()
    (folder / "1" / "assets").symlink_to(tmp_path / "outside")
    (folder / "2").symlink_to(tmp_path / "outside")
    found = look("m", folder).versions
    assert found[1].files == ("model.onnx",)
    assert found[2].files == ("deep/file", "model.onnx")  # a version folder may be a link
    monkeypatch.setattr(layout, "MAX_ENTRIES", 3)
    onnx_models.write(tmp_path / "root", "n")
    assert scan([tmp_path / "root"]).problems == {
        "m": "the model folder cannot be read: it holds more than 3 files and folders"
    }


def test_a_mounted_volume_resolves_inside(tmp_path: Path) -> None:
    data = tmp_path / "m" / "..2024"
    (data / "1").mkdir(parents=True)
    (data / "1" / "model.onnx").write_bytes(b"m")
    (tmp_path / "m" / "..data").symlink_to("..2024")
    (tmp_path / "m" / "1").symlink_to("..data/1")
    assert look("m", tmp_path / "m").versions[1].files == ("model.onnx",)
    assert resolve_inside(tmp_path / "m" / "1", "model.onnx", "it") == data / "1" / "model.onnx"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", ".", "a\\b", "a\0b", ".."])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LoadFailed, match=r"what: .* is not a relative path"):
        resolve_inside(tmp_path, name, "what")
    with pytest.raises(LoadFailed, match="is not a relative path"):
        write_model(tmp_path / "into", {"1/model.onnx": b"", name: b""})
    assert list(tmp_path.iterdir()) == []


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "labels.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(LoadFailed, match="leads out of the model's folder"):
        resolve_inside(tmp_path / "m", "labels.txt", "label_filename")


def test_only_what_two_looks_agree_on_is_settled(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m", (1, 2))
    first = scan([tmp_path])
    assert settle("m", first, None, []).versions == first.models["m"].versions
    assert settle("m", first, Scan(), []).versions == {}
    (tmp_path / "m" / "2" / "model.onnx").write_bytes(b"more")
    onnx_models.write(tmp_path, "m", (3,))
    second = scan([tmp_path])
    seen = settle("m", second, first, serving=[1, 2])
    assert list(seen.versions) == [1]
    assert seen.kept == {2}
    assert list(settle("m", scan([tmp_path]), second, serving=[1, 2]).versions) == [1, 2, 3]


def test_a_vanished_version_is_kept_for_one_look(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m")
    there, gone = scan([tmp_path]), Scan()
    assert settle("m", gone, there, serving=[1]).kept == {1}
    assert settle("m", gone, gone, serving=[1]).kept == frozenset()
