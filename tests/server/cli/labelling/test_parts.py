"""Parts: nothing lost, nothing twice, nothing mixed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from engines.build.errors import BuildFailed
from server.cli.labelling.parts import Job, Parts

JOB = Job(data="d", rows=10, model="m", version="1", digest="x", outputs=("y",), part_rows=4)


def rows(start: int, stop: int) -> dict[str, np.ndarray]:
    return {"y": np.arange(start, stop, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)}


def test_what_is_missing_is_asked_for_and_the_result_is_in_order(tmp_path: Path) -> None:
    result = tmp_path / "soft.npz"
    parts = Parts(result)
    assert (parts.begun(), parts.begin(JOB)) == (None, [(0, 4), (4, 8), (8, 10)])
    parts.write(4, rows(4, 8))
    (parts.folder / "000000000000.tmp").write_bytes(b"half a part")
    again = Parts(result)
    assert again.begun() == JOB
    assert again.begin(JOB) == [(0, 4), (8, 10)]
    again.write(8, rows(8, 10))
    again.write(0, rows(0, 4))
    again.finish(JOB, again.assemble(JOB))
    with np.load(result) as found:
        assert np.array_equal(found["y"], rows(0, 10)["y"])
    assert [path.name for path in tmp_path.iterdir()] == ["soft.npz"]


@pytest.mark.parametrize("other", [{"data": "e"}, {"digest": "z"}, {"outputs": ("y", "z")}, {"version": "2"}])
def test_parts_of_another_job_are_never_mixed_in(tmp_path: Path, other: dict[str, object]) -> None:
    parts = Parts(tmp_path / "soft.npz")
    parts.begin(JOB)
    with pytest.raises(BuildFailed, match=f"another job.*{next(iter(other))}"):
        parts.begin(replace(JOB, **other))  # type: ignore[arg-type]


def test_damage_is_told(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "soft.npz")
    parts.begin(JOB)
    for start, stop in ((0, 4), (4, 7), (8, 10)):
        parts.write(start, rows(start, stop))
    with pytest.raises(BuildFailed, match="has 3 rows instead of 4"):
        parts.assemble(JOB)
    parts.write(4, {"y": np.zeros((4, 1), np.float32)})
    with pytest.raises(BuildFailed, match="differ in shape"):
        parts.assemble(JOB)
    (parts.folder / "job.json").write_text("{")
    with pytest.raises(BuildFailed, match="cannot be read"):
        parts.begun()


def test_parquet_rows_are_flat_lists_with_their_shape_beside_them(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "soft.parquet")
    parts.begin(JOB)
    parts.finish(JOB, {**rows(0, 10), "label": np.arange(10)})
    table = pq.read_table(tmp_path / "soft.parquet")
    assert table["label"].to_pylist() == list(range(10))
    assert table["y"][3].as_py() == [3.0] * 6
    said = json.loads(table.schema.metadata[b"kairos"])
    assert (said["model"], said["version"], said["shapes"]["y"]) == ("m", "1", [2, 3])
