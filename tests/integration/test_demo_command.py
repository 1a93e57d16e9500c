"""`kairos demo`, as a newcomer runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.integration


def test_the_demonstration_shows_accuracy_and_batches_and_ends_by_itself(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "COLUMNS": "120"}
    for variable in ("ORT_DISABLE_TELEMETRY", "CI"):  # ONNX Runtime does not report from where CI is set, either
        environment.pop(variable, None)
    command = [sys.executable, "-m", "server", "demo", "--verbose"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert "32 at once" in done.stdout
    assert "Batches that the server formed" in done.stdout
    assert "SIGTERM: draining" in done.stderr
    assert "Traceback" not in done.stderr
    # What it learned of its models, and nothing else: no library's reports to its maker, for one.
    kept = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()}
    assert kept <= {(".cache", "kairos")}
