"""The whole loop, from a first version to the next one, with a server that is killed in each of its steps."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

LOOP = Path(__file__).resolve().parents[2] / "examples" / "mlops" / "loop.py"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_the_loop_ends_well_though_the_server_is_killed_in_each_step(tmp_path: Path) -> None:
    picture, work = tmp_path / "story.png", tmp_path / "work"
    command = [sys.executable, LOOP, "--source", "folder", "--brief", "--kill", "--timeout", "240"]
    command += ["--work", work, "--picture", picture]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280, cwd="/")
    log = work / "server.log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text()[-3000:] if log.exists() else "")
    story = done.stdout
    # The alarm, the event, the wait for the candidate, the copies, the canary, the end: a kill after each of the five.
    assert story.count("killed by SIGKILL, and started again") == 5
    assert "webhook kairos.trigger.raised of digits/1: drift is" in story
    assert re.search(r"rollout: promoted: 0.0% of \d+ requests failed", story)
    found = re.search(r"none failed; ([\d,]+) outcomes reported, ([\d,]+) kept; 1 event; killed 5 times", story)
    assert found, story
    assert found[1] == found[2]
    before, after, now = (float(share) for share in re.findall(r"([\d.]+)%(?= before| after| now)", story))
    assert before > 85
    assert after < 60
    assert now > after + 15
    assert picture.read_bytes().startswith(PNG)
