"""The example of distillation, from the label to the way back: a student that learnt nothing harms nobody."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "distil" / "distil.py"


@pytest.mark.integration
def test_a_student_that_learnt_nothing_fails_the_gate_and_is_rolled_back_without_a_caller(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        "--shuffled",
        "--no-gate",
        "--epochs",
        "1",
        "--work",
        str(tmp_path / "work"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110, cwd="/")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "B fails" in done.stdout
    assert "ROLLED BACK" in done.stdout
    assert re.search(r"callers were answered by version 2: [\d,]+\n", done.stdout), done.stdout
