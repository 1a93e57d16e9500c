"""Rows from files, and refusals of files that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from engines.build.data import dataset_of, open_data
from engines.build.errors import BuildFailed
from engines.spec import TensorSpec
from engines.tensor import DType

X = TensorSpec("x", DType.FP32, (2, 3))
IDS = TensorSpec("ids", DType.INT64, (4,))
ROWS = np.arange(30, dtype=np.float32).reshape(5, 2, 3)


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_npz_by_name_with_labels(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", x=ROWS, ids=np.ones((5, 4), np.int32), y=np.arange(5))
    data = open_data(path, [X, IDS], "y")
    assert len(data) == 5
    taken = data.take(1, 3)
    np.testing.assert_array_equal(taken["x"], ROWS[1:3])
    assert taken["ids"].dtype == np.int64
    assert data.chosen_labels is not None
    assert data.chosen_labels.tolist() == [0, 1, 2, 3, 4]


def test_a_lone_array_feeds_a_lone_input_whatever_its_name(tmp_path: Path) -> None:
    data = open_data(saved(tmp_path / "d.npz", images=ROWS.astype(np.uint8), y=np.zeros(5, int)), [X], "y")
    assert data.take(0, 5)["x"].dtype == np.float32


def test_npy_and_labels_beside_it(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS)
    (tmp_path / "y.txt").write_text("0\n1\n2\n1\n0\n")
    data = open_data(tmp_path / "x.npy", [X], str(tmp_path / "y.txt"))
    assert data.chosen_labels is not None
    assert data.chosen_labels.tolist() == [0, 1, 2, 1, 0]


def test_parquet_as_lists_and_as_columns_of_features(tmp_path: Path) -> None:
    lists = pa.table({"x": [row.ravel().tolist() for row in ROWS], "y": [0, 1, 0, 1, 0]})
    pq.write_table(lists, tmp_path / "lists.parquet")
    np.testing.assert_array_equal(open_data(tmp_path / "lists.parquet", [X], "y").take(0, 5)["x"], ROWS)
    columns = pa.table({"a": [1.0, 2.0], "b": [3.0, 4.0], "y": [0, 1]})
    pq.write_table(columns, tmp_path / "columns.parquet")
    data = open_data(tmp_path / "columns.parquet", [TensorSpec("features", DType.FP32, (2,))], "y")
    np.testing.assert_array_equal(data.take(0, 2)["features"], [[1, 3], [2, 4]])
    assert data.chosen_labels is not None
    assert data.chosen_labels.tolist() == [0, 1]


def pictures(folder: Path) -> Path:
    for kind, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (folder / kind).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (12, 8), colour).save(folder / kind / f"{number}.png")
    return folder


def test_images_by_declared_steps(tmp_path: Path) -> None:
    steps = tmp_path / "steps.toml"
    steps.write_text('resize = 4\ncrop = 4\nchannels = "BGR"\nmean = [0.5, 0.0, 0.0]\nstd = 0.5\n')
    data = open_data(pictures(tmp_path / "p"), [TensorSpec("x", DType.FP32, (3, 4, 4))], "folders", preprocessing=steps)
    rows = data.take(0, 4)["x"]
    assert rows.shape == (4, 3, 4, 4)
    np.testing.assert_allclose(rows[0, :, 0, 0], [-1.0, 0.0, 2.0])
    np.testing.assert_allclose(rows[2, :, 0, 0], [1.0, 0.0, 0.0])
    assert data.chosen_labels is not None
    assert data.chosen_labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sise = 3", "'sise' is not known"),
        ('layout = "CHW"', "layout must be one of"),
        ('channels = "CMYK"', "channels must be one of"),
        ("mean = [1, 2]", "mean has 2 values for 3"),
        ("std = 0.0", "std must not be 0"),
        ("crop = 99", "too few for a crop of 99"),
        ("resize =", "cannot be read"),
    ],
)
def test_steps_that_make_no_sense_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    steps = tmp_path / "steps.toml"
    steps.write_text(text)
    with pytest.raises(BuildFailed, match=complaint):
        open_data(pictures(tmp_path / "p"), [TensorSpec("x", DType.FP32, (3, 8, 12))], preprocessing=steps)


def test_images_without_declared_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="must be declared"):
        open_data(pictures(tmp_path / "p"), [X])


@pytest.mark.parametrize(
    ("arrays", "labels", "complaint"),
    [
        ({"x": np.zeros((5, 3, 2), np.float32)}, "", r"shape \[3, 2\], the model takes \[2, 3\]"),
        ({"x": np.zeros((5, 2, 3), complex)}, "", "is complex128, the model takes FP32"),
        ({"x": np.full((5, 2, 3), np.nan)}, "", "not finite"),
        ({"x": np.zeros((0, 2, 3))}, "", "has no rows"),
        ({"a": ROWS, "b": ROWS}, "", "no array 'x'; it has a, b"),
        ({"x": ROWS}, "y", "'y' is neither an array"),
        ({"x": ROWS, "y": np.zeros(4, int)}, "y", "5 rows, but there are 4 labels"),
        ({"x": ROWS, "y": np.zeros(5)}, "y", "one class number a row"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: Any, labels: str, complaint: str) -> None:
    with pytest.raises(BuildFailed, match=complaint):
        open_data(saved(tmp_path / "d.npz", **arrays), [X], labels)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("1,2")
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    for name, complaint in (("d.csv", "comes from .npz"), ("broken.npz", "cannot be read"), ("nowhere", "not exist")):
        with pytest.raises(BuildFailed, match=complaint):
            open_data(tmp_path / name, [X])


def test_splits_do_not_overlap_and_leave_nothing_out() -> None:
    data = dataset_of({"x": ROWS}, np.arange(5), source="rows")
    learnt, held_out = data.split(every=2)
    assert learnt.index.tolist() == [0, 2, 4]
    assert held_out.index.tolist() == [1, 3]
    np.testing.assert_array_equal(held_out.take(0, 9)["x"], ROWS[[1, 3]])
    assert data.spread(3).index.tolist() == [0, 2, 4]


def test_constant_rows_are_noticed() -> None:
    assert dataset_of({"x": np.ones((100, 3))}, source="ones").constant()
    assert not dataset_of({"x": np.eye(100)}, source="eye").constant()
    assert not dataset_of({"x": np.ones((1, 3))}, source="one row").constant()


def test_the_digest_follows_the_values() -> None:
    first, second = (dataset_of({"x": ROWS + bump}, source="rows").digest for bump in (0, 1))
    assert first != second
    assert first == dataset_of({"x": ROWS.copy()}, source="elsewhere").digest


def test_what_requests_may_hold_passes_as_served(tmp_path: Path) -> None:
    table = pa.table({"age": [1.0, None, 3.0], "town": ["Ulm", "Köln", "Ulm"], "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "d.parquet")
    inputs = [
        TensorSpec("age", DType.FP32, (1,)),
        TensorSpec("town", DType.BYTES, (1,)),
        TensorSpec("n", DType.INT64, (1,)),
    ]
    data = open_data(tmp_path / "d.parquet", inputs, as_served=True)
    found = data.take(0, 3)
    np.testing.assert_array_equal(found["age"], np.array([[1], [np.nan], [3]], np.float32))
    assert found["town"].ravel().tolist() == [b"Ulm", "Köln".encode(), b"Ulm"]
    assert found["n"].shape == (3, 1)
    assert data.digest != open_data(tmp_path / "d.parquet", inputs[:1], as_served=True).digest
    with pytest.raises(BuildFailed):
        open_data(tmp_path / "d.parquet", inputs)
    pq.write_table(pa.table({"town": ["Ulm", None]}), tmp_path / "d.parquet")
    with pytest.raises(BuildFailed, match="'town' is not all numbers"):
        open_data(tmp_path / "d.parquet", [TensorSpec("town", DType.FP32, (1,))], as_served=True)
