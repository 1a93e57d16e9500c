"""Regions of shared memory: only what lies in the one folder, never beyond what was registered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import AlreadyExists, InferError, InvalidRequest, NotFound
from server.transport.shared_memory import Placement, Region, SystemSharedMemory


@pytest.fixture
def regions(tmp_path: Path) -> SystemSharedMemory:
    folder = tmp_path / "shm"
    folder.mkdir()
    (folder / "object").write_bytes(bytes(range(100)))
    (tmp_path / "secret").write_bytes(b"s" * 100)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    return SystemSharedMemory(folder)


@pytest.mark.parametrize("key", ["object", "/object"])
def test_a_region_shows_its_part_of_the_object(regions: SystemSharedMemory, key: str) -> None:
    regions.register("mine", key, 10, 50)
    assert bytes(regions.get("mine").view(0, 3)) == bytes([10, 11, 12])
    assert bytes(regions.get("mine").view(48, 2)) == bytes([58, 59])


@pytest.mark.parametrize(
    "key",
    ["", "/", ".", "..", "/..", "../secret", "/../secret", "a/../../secret", "//object", "a\0b", "x" * 300,
     "link", "folder", "pipe", "absent"],
)  # fmt: skip
def test_keys_that_lead_elsewhere_or_nowhere(regions: SystemSharedMemory, key: str) -> None:
    with pytest.raises(InvalidRequest, match="shared memory region"):
        regions.register("mine", key, 0, 10)
    assert regions.status() == []


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 101), (100, 1), (1, 100), (-1, 10), (0, 0), (0, -1), (2**63, 1), (0, 2**63), (2**64 - 1, 1)],
)
def test_registering_more_than_the_object_has(regions: SystemSharedMemory, offset: int, size: int) -> None:
    with pytest.raises(InvalidRequest):
        regions.register("mine", "object", offset, size)


@given(offset=st.integers(-(2**65), 2**65), size=st.integers(-(2**65), 2**65))
def test_no_view_ever_reaches_beyond_its_region(offset: int, size: int) -> None:
    region = Region("mine", "object", 10, 50, memoryview(bytes(50)))
    try:
        view = region.view(offset, size)
    except InferError:
        assert offset < 0 or size < 0 or offset + size > 50
    else:
        assert len(view) == size


def test_names_are_used_once(regions: SystemSharedMemory) -> None:
    regions.register("mine", "object", 0, 10)
    with pytest.raises(AlreadyExists):
        regions.register("mine", "object", 0, 10)
    with pytest.raises(NotFound):
        regions.status("other")
    regions.unregister("other")
    regions.unregister("mine")
    regions.register("mine", "object", 0, 20)
    assert [region.size for region in regions.status()] == [20]
    regions.unregister_all()
    assert regions.status() == []


def test_a_region_outlives_its_name_for_those_who_read_it(regions: SystemSharedMemory) -> None:
    regions.register("mine", "object", 0, 10)
    view = Placement(regions.get("mine"), 0, 10).read()
    regions.unregister("mine")
    assert bytes(view) == bytes(range(10))


def test_outputs_are_written_in_place_or_not_at_all(regions: SystemSharedMemory, tmp_path: Path) -> None:
    regions.register("mine", "object", 0, 100)
    Placement(regions.get("mine"), 4, 6).write("y", b"abc")
    with pytest.raises(InvalidRequest, match=r"output 'y'.*should be at least 7 bytes"):
        Placement(regions.get("mine"), 4, 6).write("y", b"1234567")
    content = (tmp_path / "shm" / "object").read_bytes()
    assert content == bytes(range(4)) + b"abc" + bytes(range(7, 100))
