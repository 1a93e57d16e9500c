"""The measurements for a GPU run from end to end without one, so that they do not fail for the first time there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.integration
def test_both_parts_rehearse(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "WHEELS": str(tmp_path)}
    done = subprocess.run(
        [ROOT / "tests/gpu/run.sh", "all", "--dry-run"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    served = json.loads((tmp_path / "onnxruntime.json").read_text())
    assert served["rehearsal"]
    assert served["distance from the processor"] < 1e-6
    assert served["server"]["requests a second"] > 0
    plans = json.loads((tmp_path / "tensorrt.json").read_text())
    assert {"fp32", "fp16", "int8", "digits"} <= set(plans)
    assert all(plans[name]["distance from the processor"] < 1e-3 for name in ("fp32", "fp16", "int8", "digits"))
