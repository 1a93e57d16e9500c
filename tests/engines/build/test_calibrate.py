"""What is learnt from rows, also when learning is interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.build import calibrate
from engines.build.calibrate import Collector, Table, float_tensors, table_of
from engines.build.data import Dataset, dataset_of
from engines.build.errors import BuildFailed
from engines.build.histogram import Histogram
from engines.build.prepare import prepare
from engines.build.ranges import Method
from tests.support import networks

ROWS = np.random.default_rng(0).normal(0, 1, (70, 3, 8, 8)).astype(np.float32)


def watched(seen: list[int], stop_at: int = 10**9) -> Dataset:
    """Rows that note which of them were read, and interrupt the reader at one of them."""
    whole = dataset_of({"x": ROWS}, source="rows")

    def read(index: np.ndarray) -> np.ndarray:
        if (index >= stop_at).any():
            raise KeyboardInterrupt
        seen.extend(index.tolist())
        return ROWS[index]

    return Dataset(source="rows", digest=whole.digest, columns={"x": read}, index=whole.index)


@pytest.fixture
def collector(tmp_path: Path) -> Callable[[str], Collector]:
    path = tmp_path / "model.onnx"
    path.write_bytes(networks.residual_cnn().SerializeToString())
    prepared = prepare(path, tmp_path, quantising=True)
    return lambda state: Collector(prepared.model, prepared.source_digest, tmp_path, tmp_path / state)


def ranges(histograms: dict[str, Histogram]) -> dict[str, tuple[float, float]]:
    return dict(table_of(histograms, Method.MSE, model_digest="m", data_digest="d", rows=70).ranges)


def quiet(*_: object) -> None:
    """No progress."""


def test_all_that_flows_in_fp32_is_seen(collector: Callable[[str], Collector]) -> None:
    made = collector("state")
    found = made.collect(dataset_of({"x": ROWS}, source="rows"), quiet)
    assert list(found) == float_tensors(made.model)
    assert {"x", "logits", "probabilities"} <= found.keys()
    assert (found["x"].low, found["x"].high) == (ROWS.min(), ROWS.max())
    assert found["probabilities"].counts.sum() == 70 * 5


def test_an_interrupted_collection_goes_on_where_it_was(
    collector: Callable[[str], Collector], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "SAVE_EVERY", 2)
    with pytest.raises(KeyboardInterrupt):
        collector("state").collect(watched([], stop_at=50), quiet)
    again: list[int] = []
    resumed = collector("state").collect(watched(again), quiet)
    assert again[0] == 48  # whole batches of 16 were kept
    assert ranges(resumed) == ranges(collector("elsewhere").collect(watched([]), quiet))
    third: list[int] = []
    collector("state").collect(watched(third), quiet)
    assert third == []


def test_an_interruption_between_two_tensors_counts_nothing_twice(
    collector: Callable[[str], Collector], monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = Histogram.add, []

    def interrupted(self: Histogram, values: np.ndarray) -> None:
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        add(self, values)

    monkeypatch.setattr(calibrate, "SAVE_EVERY", 1)
    with monkeypatch.context() as patched:
        patched.setattr(Histogram, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collector("state").collect(watched([]), quiet)
    resumed = collector("state").collect(watched([]), quiet)
    assert {histogram.counts.sum() for name, histogram in resumed.items() if name == "x"} == {ROWS.size}
    assert ranges(resumed) == ranges(collector("elsewhere").collect(watched([]), quiet))


def test_half_a_file_is_learnt_anew(collector: Callable[[str], Collector], tmp_path: Path) -> None:
    collector("state").collect(watched([]), quiet)
    (state,) = (tmp_path / "state").iterdir()
    state.write_bytes(state.read_bytes()[:100])
    seen: list[int] = []
    collector("state").collect(watched(seen), quiet)
    assert len(seen) == 70


def test_other_rows_are_another_collection(collector: Callable[[str], Collector], tmp_path: Path) -> None:
    whole = dataset_of({"x": ROWS}, source="rows")
    collector("state").collect(whole, quiet)
    collector("state").collect(whole.spread(10), quiet)
    assert len(list((tmp_path / "state").iterdir())) == 2


def test_tables_survive_the_file() -> None:
    table = Table(method=Method.ENTROPY, ranges={"x": (-1.5, 0.25)}, model_digest="m", data_digest="d", rows=3)
    assert Table.from_json(table.to_json(), "t.json") == table


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "method": "guess"}'])
def test_other_files_are_no_tables(text: str) -> None:
    with pytest.raises(BuildFailed, match=r"t\.json"):
        Table.from_json(text, "t.json")
