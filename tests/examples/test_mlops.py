"""The parts of the loop that can go wrong quietly: whose digits are whose, and which label belongs to which image."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.mlops import learning
from examples.mlops.hook import Hook
from examples.mlops.world import CHANGED, Group, Style, World
from server.watch.cloudevents import signature_headers


def test_nobody_is_in_two_groups_and_everybody_in_one() -> None:
    members = [range(len(World.make().labels))[group.value] for group in Group]
    assert sorted(number for each in members for number in each) == list(range(1797))


def test_the_same_seed_draws_the_same_digits_and_styles_differ() -> None:
    world = World.make()
    first, labels = world.draw_many(Group.CALLERS, CHANGED, 30, np.random.default_rng(1))
    again, _ = world.draw_many(Group.CALLERS, CHANGED, 30, np.random.default_rng(1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (30, 1, 8, 8)
    assert first.dtype == np.float32
    assert set(labels) <= set(range(10))
    ink = {
        style: world.draw_many(Group.CALLERS, (style,), 50, np.random.default_rng(2))[0].mean()
        for style in (Style.CLEAN, Style.INVERTED)
    }
    assert ink[Style.INVERTED] == pytest.approx(16 - ink[Style.CLEAN], abs=1.0)


def test_captured_images_get_the_labels_of_their_own_outcomes(tmp_path: Path) -> None:
    images = np.arange(3 * 64, dtype=np.float32).reshape(3, 64)
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), 64)
    (tmp_path / "captured" / "1").mkdir(parents=True)
    pq.write_table(
        pa.table({"id": ["q7", "q8", "q9"], "input.image": pixels}), tmp_path / "captured" / "1" / "a.parquet"
    )
    pq.write_table(pa.table({"id": ["q9", "q7", "q8"], "label": ["4", "2", None]}), tmp_path / "outcomes.parquet")
    found, labels, numbers = learning.captured(tmp_path / "captured", tmp_path / "outcomes.parquet")
    np.testing.assert_array_equal(found.reshape(-1, 64), images[[0, 2]])
    assert labels.tolist() == [2, 4]
    assert numbers.tolist() == [7, 9]


def test_the_hook_takes_signed_events_once() -> None:
    hook = Hook("secret")
    body = b'{"id": "e1"}'

    def post(secret: str) -> int:
        request = urllib.request.Request(hook.url, body, signature_headers(secret, "e1", 5, body))
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)

    try:
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            post("another")
        refused.value.close()
        assert not hook.arrived.is_set()
        assert (post("secret"), post("secret")) == (204, 204)
        assert list(hook.events) == ["e1"]
    finally:
        hook.close()
