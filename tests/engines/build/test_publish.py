"""Versions appear in a repository all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.build.errors import BuildFailed
from engines.build.publish import check_name, publish, workshop
from engines.repository.layout import scan


def staged(folder: Path, name: str) -> Path:
    version = folder / "staged" / name / "7"
    version.mkdir(parents=True)
    (version / "model.onnx").write_text("model")
    (version.parent / "config.pbtxt").write_text("new")
    return version


def test_a_new_model_comes_with_its_configuration(tmp_path: Path) -> None:
    with workshop(tmp_path) as folder:
        version = staged(folder, "m")
        assert scan([tmp_path]).models == {}  # a server sees nothing of it yet
        assert publish(version, tmp_path, "m") == tmp_path / "m" / "1"
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "m",
        "m/1",
        "m/1/model.onnx",
        "m/config.pbtxt",
    ]


def test_the_next_version_leaves_the_configuration_alone(tmp_path: Path) -> None:
    (tmp_path / "m" / "12").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text("old")
    with workshop(tmp_path) as folder:
        assert publish(staged(folder, "m"), tmp_path, "m") == tmp_path / "m" / "13"
    assert (tmp_path / "m" / "config.pbtxt").read_text() == "old"
    assert list(scan([tmp_path]).models["m"].versions) == [12, 13]


def test_a_configuration_is_added_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    with workshop(tmp_path) as folder:
        publish(staged(folder, "m"), tmp_path, "m")
    assert (tmp_path / "m" / "config.pbtxt").read_text() == "new"


def test_a_version_that_is_taken_in_the_meantime_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def raced(self: Path, target: Path) -> Path:
        if Path(target) == tmp_path / "m" / "2" and not target.exists():
            target.mkdir()
            (target / "model.onnx").write_text("theirs")
        return rename(self, target)

    (tmp_path / "m" / "1").mkdir(parents=True)
    monkeypatch.setattr(Path, "rename", raced)
    with workshop(tmp_path) as folder:
        assert publish(staged(folder, "m"), tmp_path, "m") == tmp_path / "m" / "3"
    assert (tmp_path / "m" / "2" / "model.onnx").read_text() == "theirs"


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with workshop(tmp_path) as folder:
            staged(folder, "m")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".m", "a/b", "..", "-m", "a b"])
def test_names_that_make_no_folder_are_refused(name: str) -> None:
    with pytest.raises(BuildFailed, match="no model name"):
        check_name(name)
