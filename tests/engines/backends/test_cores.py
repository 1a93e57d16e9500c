"""Cores by affinity and by the container's quota."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.backends import cores


@pytest.mark.parametrize(
    ("quota", "available"),
    [
        ("max 100000", 4),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("900000 100000", 4),
        ("nonsense", 4),
        (None, 4),
    ],
)
def test_the_lesser_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, available: int) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(4)))
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(quota + "\n")
    assert cores.available_cores(file) == available
