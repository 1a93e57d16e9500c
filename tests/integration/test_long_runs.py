"""The long runs of loadtest/ in their short form: nothing is lost, and nothing grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.tools import program

pytestmark = pytest.mark.integration

LOADTEST = Path(__file__).resolve().parents[2] / "loadtest"
TRANSPORTS = pytest.mark.parametrize("transport", ["http2", "grpcio"])


def run(tmp_path: Path, script: str, *arguments: str) -> dict[str, Any]:
    """The figures of a run."""
    out = tmp_path / "figures.json"
    command = [sys.executable, str(LOADTEST / script), *arguments, "--out", str(out)]
    done = subprocess.run(
        command, check=False, timeout=240, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert out.exists(), done.stderr[-3000:]
    figures: dict[str, Any] = json.loads(out.read_text())
    return figures


@TRANSPORTS
def test_a_rolling_restart_behind_a_proxy_loses_nothing(tmp_path: Path, transport: str) -> None:
    haproxy = program("haproxy", "apt-get install haproxy")
    figures = run(
        tmp_path, "rolling.py", "--rounds", "1", "--callers", "4", "--transport", transport, "--haproxy", haproxy
    )
    assert figures["restarts"] == 2
    assert figures["exit_statuses"] == [0]
    assert figures["answered"] == figures["sent"] > 100
    assert figures["lost"] == 0, figures


def test_mixed_traffic_and_reloads_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    figures = run(tmp_path, "soak.py", "--seconds", "8", "--swap-pause", "0.3", "--callers", "3")
    assert figures["swaps"] >= 5
    for kind in ("callers", "streams"):
        assert figures[kind]["answered"] == figures[kind]["sent"] > 100, figures
    misbehaving = figures["misbehaving"]
    assert {"CANCELLED", "INVALID_ARGUMENT", "NOT_FOUND"} <= set(misbehaving["ends"])
    assert "INTERNAL" not in misbehaving["ends"]
    assert misbehaving["sent"] == misbehaving["answered"] + sum(misbehaving["ends"].values())
    before, after = figures["before"], figures["after"]
    assert after["descriptors"] <= before["descriptors"] + 2
    assert after["threads"] <= before["threads"] + 2
    assert after["tasks"] <= before["tasks"] + 2
    assert after["resident_mb"] < before["resident_mb"] + 60
