"""Baselines on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from server.watch.reference import ARRAYS, FILE, BadReference, Reference, load, save
from tests.support.watching import logits, reference, table, world

REFERENCE = reference(world(1, 600))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert save(REFERENCE, tmp_path) == tmp_path / FILE
    back = load(tmp_path)
    assert back is not None
    assert (back.source, back.inputs.rows, back.inputs.columns) == ("test", 600, REFERENCE.inputs.columns)
    assert np.array_equal(back.inputs.sample.rows, REFERENCE.inputs.sample.rows)
    assert back.answers is not None
    assert REFERENCE.answers is not None
    fresh = {"logits": logits(world(2, 50))}
    assert np.array_equal(back.answers.of_arrays(fresh, 50), REFERENCE.answers.of_arrays(fresh, 50))
    for mine, theirs in zip(back.inputs.sketches, REFERENCE.inputs.sketches, strict=True):
        assert mine.quantiles([0.1, 0.9]) == theirs.quantiles([0.1, 0.9])
        assert mine.counts.tolist() == theirs.counts.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, ARRAYS]


def test_the_json_is_for_people(tmp_path: Path) -> None:
    save(REFERENCE, tmp_path)
    told = json.loads((tmp_path / FILE).read_text())
    assert told["inputs"]["rows"] == 600
    assert told["inputs"]["columns"][0]["quantiles"]["0.5"] == pytest.approx(0, abs=0.2)
    assert sum(told["inputs"]["columns"][2]["counts"]) == 600


def test_none_is_none(tmp_path: Path) -> None:
    assert load(tmp_path) is None


def test_a_half_written_baseline_is_refused(tmp_path: Path) -> None:
    save(REFERENCE, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    save(Reference(inputs=table("x", world(9, 100)), answers=None), other)
    (tmp_path / ARRAYS).write_bytes((other / ARRAYS).read_bytes())
    with pytest.raises(BadReference, match=r"is not the file that baseline\.json was written with"):
        load(tmp_path)
    (tmp_path / ARRAYS).unlink()
    with pytest.raises(BadReference, match=r"baseline\.npz is not"):
        load(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: told.pop("inputs"),
        lambda told: told["inputs"].update(rows="many"),
        lambda told: told["inputs"]["plans"][0].update(kind="riddle"),
        lambda told: told["inputs"]["plans"][0]["columns"].pop(),
        lambda told: told["inputs"]["columns"].pop(),
        lambda told: told.update(format=99),
    ],
)
def test_damage_is_told(tmp_path: Path, damage: object) -> None:
    save(REFERENCE, tmp_path)
    told = json.loads((tmp_path / FILE).read_text())
    damage(told)  # type: ignore[operator]
    (tmp_path / FILE).write_text(json.dumps(told))
    with pytest.raises(BadReference):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "null"])
def test_nonsense_is_told(tmp_path: Path, text: str) -> None:
    save(REFERENCE, tmp_path)
    (tmp_path / FILE).write_text(text)
    with pytest.raises(BadReference):
        load(tmp_path)
