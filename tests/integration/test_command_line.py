"""The `kairos` command as a user has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import onnx_models
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import running_server

pytestmark = pytest.mark.integration

KAIROS = Path(sys.executable).with_name("kairos")


def kairos(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120", **env}
    return subprocess.run(
        [KAIROS, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment
    )


def test_models_of_a_running_server(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "good", (1, 2), config=f"version_policy {{ all {{}} }}\n{ONE_ENGINE}")
    broken = onnx_models.write(tmp_path, "broken", config=ONE_ENGINE)
    (broken / "1" / "model.onnx").write_bytes(b"no model")
    with running_server(tmp_path, faults=True) as server:
        rows = json.loads(kairos("models", "--url", server.url, "--json").stdout)
        assert [(row["name"], row["version"], row["state"]) for row in rows] == [
            ("broken", "1", "UNAVAILABLE"),
            ("good", "1", "READY"),
            ("good", "2", "READY"),
        ]
        assert rows[0]["reason"]
        table = kairos("models", KAIROS_URL=server.url)
        assert table.returncode == 0
        assert "good" in table.stdout
        assert "UNAVAILABLE" in table.stdout


def test_models_of_no_server() -> None:
    gone = kairos("models", "--url", "127.0.0.1:1", "--timeout", "20")
    assert gone.returncode == 1
    assert "127.0.0.1:1 does not answer" in gone.stderr
    assert "Traceback" not in gone.stderr


def test_completion_knows_commands_and_settings() -> None:
    commands = kairos(_KAIROS_COMPLETE="bash_complete", COMP_WORDS="kairos s", COMP_CWORD="1")
    assert "plain,serve" in commands.stdout.split()
    settings = kairos(_KAIROS_COMPLETE="bash_complete", COMP_WORDS="kairos serve --grpc", COMP_CWORD="2")
    assert "plain,--grpc-port" in settings.stdout.split()
    script = kairos(_KAIROS_COMPLETE="bash_source")
    assert "complete -o nosort -F" in script.stdout


def test_version_and_help() -> None:
    assert kairos("--version").stdout.startswith("kairos, version ")
    assert "serve" in kairos("--help").stdout
    assert kairos("serve").returncode == 2
