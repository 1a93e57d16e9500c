"""The cost model's measurements, for a moment each, against real servers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.sizing.cli import QUICK
from loadtest.sizing.parts import rows_of
from loadtest.sizing.study import Study

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


def test_a_look_at_callers_and_processes_leaves_figures(tmp_path: Path) -> None:
    path = tmp_path / "sizing.json"
    ran = subprocess.run(
        [sys.executable, "-m", "loadtest.sizing", "--quick", "--parts", "callers,processes", "--json", str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    study = Study.of(json.loads(path.read_text()))
    expected = rows_of(QUICK)
    assert len(study.base) + len(study.loads) == expected["callers"] + expected["processes"]
    callers = study.pick("callers")
    assert [load.x for load in callers] == list(QUICK.callers)
    assert all(load.refused == 0.0 and load.answers_per_s > 0 and load.cpu_us >= load.loop_us > 0 for load in callers)
    assert callers[0].rows_per_batch == 1.0
    assert 1.0 < (callers[-1].rows_per_batch or 0.0) <= QUICK.callers[-1]
    alone, two = study.pick("processes")
    assert alone.least_share == pytest.approx(1.0)
    assert 0.0 < two.least_share < 1.0, "both processes worked, one more than the other"
    assert study.base[0].rss_kib > study.base[0].pss_kib > 0
