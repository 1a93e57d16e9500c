"""`kairos label` against a real server that has little room, and killed in the middle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.support.digits import HELD_OUT, MODEL
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import running_server, wait_until

ROWS = 6000


@pytest.mark.integration
def test_a_killed_job_goes_on_and_a_busy_server_is_obeyed(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "digits" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(MODEL.read_bytes())
    queue = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
    (folder.parent / "config.pbtxt").write_text(f"max_batch_size: 8\n{queue}\n{ONE_ENGINE}")
    with np.load(HELD_OUT) as held_out:
        images = np.resize(held_out["images"].astype(np.float32), (ROWS, 1, 8, 8))
    np.savez(tmp_path / "rows.npz", image=images)
    result = tmp_path / "soft.npz"
    with running_server(tmp_path / "models") as server:
        command = [
            sys.executable,
            "-m",
            "server",
            "label",
            str(tmp_path / "rows.npz"),
            str(result),
            "--model",
            "digits",
        ]
        command += ["--url", server.url, "--in-flight", "16", "--outputs", "probabilities"]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: list(tmp_path.glob("soft.npz.parts/*.npz")) or first.poll() is not None, "a part")
        finally:
            first.kill()
            first.wait()
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=90)
        assert "digits version 1" in done.stdout
        assert "requests had to be sent again" in done.stdout
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    expected = np.asarray(session.run(["probabilities"], {"image": images})[0])
    with np.load(result) as found:
        assert found.files == ["probabilities"]
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    assert not list(tmp_path.glob("*.parts"))
