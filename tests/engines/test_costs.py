"""Learned costs on disk, and the sweep that starts them."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest

from engines.backends.fake import FakeEngine, fake_spec
from engines.backends.sweep import measure_costs
from engines.costs import load_costs, save_costs
from engines.scheduling.latency import CostModel


def test_what_was_saved_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "costs" / "model.json"
    cost = CostModel(8)
    assert not load_costs(path, cost)
    cost.seed({1: 0.001, 8: 0.004})
    save_costs(path, cost)
    again = CostModel(8)
    assert load_costs(path, again)
    assert again.means == pytest.approx(cost.means)
    assert [found.name for found in path.parent.iterdir()] == ["model.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "seconds": {"x": 1}, "ratios": []}'])
def test_a_broken_file_is_named_and_not_used(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "model.json"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert not load_costs(path, CostModel(8))
    assert "model.json is not used" in caplog.text


def test_a_disk_that_refuses_is_only_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "costs").write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING):
        save_costs(tmp_path / "costs" / "model.json", CostModel(8))
    assert "cannot be written" in caplog.text


def test_what_a_full_disk_took_of_a_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, text: str) -> int:
        path.write_bytes(text.encode()[:5])
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    save_costs(tmp_path / "model.json", CostModel(8))
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_times_every_size_it_can_afford() -> None:
    spec = fake_spec()
    seconds = measure_costs(FakeEngine(spec), spec, [1, 2, 8])
    assert list(seconds) == [1, 2, 8]
    assert min(seconds.values()) > 0.0
