"""The load tools as their README shows them, for a moment each, against a running server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import RunningServer, running_server
from tests.support.tools import program

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
DIGITS = str(ROOT / "loadtest/scenarios/digits.toml")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(ROOT / "examples/models") as running:
        yield running


def loadtest(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.parametrize("client", ["http2", "grpc.aio"])
def test_a_run_sends_its_schedule_and_leaves_json_and_html(server: RunningServer, tmp_path: Path, client: str) -> None:
    result, page = tmp_path / "run.json", tmp_path / "run.html"
    ran = loadtest(
        "run", DIGITS, "--address", server.url, "--metrics", server.metrics_url, "--seconds", "1.5", "--rate", "60",
        "--client", client, "--processes", "2", "--json", str(result), "--html", str(page),
    )  # fmt: skip
    assert ran.returncode in {0, 3}, ran.stderr  # 3: a busy machine held the generator up, and it says so
    (told,) = json.loads(result.read_text())["results"]
    assert ran.returncode == (0 if told["valid"] else 3)
    assert ("INVALID" in ran.stderr) == (not told["valid"])
    assert sum(told["codes"].values()) == told["sent"] > 40
    assert told["codes"].get("OK", 0) > 0
    assert told["server"]["cpu_s"] > 0
    assert sum(told["server"]["batches"].values()) > 0
    assert "<svg" in page.read_text()

    compared = loadtest("compare", str(result), str(result))
    assert compared.returncode == 0, compared.stderr
    assert "1.000" in compared.stdout
    again = tmp_path / "again.html"
    assert loadtest("report", str(result), "--html", str(again)).returncode == 0
    assert again.read_text() == page.read_text()


def test_a_sweep_finds_capacity_and_asks_multiples_of_it(server: RunningServer, tmp_path: Path) -> None:
    result = tmp_path / "sweep.json"
    ran = loadtest(
        "sweep", DIGITS, "--address", server.url, "--metrics", "", "--seconds", "0.7", "--loads", "0.05,0.1",
        "--callers", "4", "--json", str(result),
    )  # fmt: skip
    assert ran.returncode in {0, 3}, ran.stderr
    low, high = json.loads(result.read_text())["results"]
    assert (low["load"], high["load"]) == (0.05, 0.1)
    assert high["scenario"]["arrivals"]["rate"] == pytest.approx(0.1 * high["capacity"])


def test_mistakes_are_told_in_a_sentence(server: RunningServer, tmp_path: Path) -> None:
    scenario = tmp_path / "s.toml"
    scenario.write_text("[[requests]]\nmodel = 'nobody'\n")
    ran = loadtest("run", str(scenario), "--address", server.url)
    assert ran.returncode == 1
    assert "NOT_FOUND" in ran.stderr
    assert "Traceback" not in ran.stderr
    nobody = loadtest("run", str(scenario), "--address", "127.0.0.1:1")
    assert nobody.returncode == 1
    assert "UNAVAILABLE" in nobody.stderr


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_ghz(server: RunningServer, kind: str) -> None:
    program("ghz", "loadtest/ghz/install.sh builds it (needs Go)")
    ran = subprocess.run(
        [ROOT / "loadtest/ghz/run.sh", kind, "--host", server.url, "-z", "1s", "-t", "10s", "-c", "4", "-O", "json"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    told = json.loads(ran.stdout)
    assert told["statusCodeDistribution"] == {"OK": told["count"]}
    assert told["count"] > 0


def test_ghz_sends_its_timeout_as_the_deadline(server: RunningServer) -> None:
    program("ghz", "loadtest/ghz/install.sh builds it (needs Go)")
    ran = subprocess.run(
        [ROOT / "loadtest/ghz/run.sh", "unary", "--host", server.url, "-z", "1s", "-t", "20us", "-O", "json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "OK" not in json.loads(ran.stdout)["statusCodeDistribution"]


def test_locust(server: RunningServer, tmp_path: Path) -> None:
    locust = Path(sys.executable).with_name("locust")
    if not locust.exists():
        program("locust", "pip install 'kairos[load]'")
    ran = subprocess.run(
        [
            locust, "-f", ROOT / "loadtest/locust/locustfile.py", "--host", server.url, "--headless", "-u", "3",
            "-r", "3",            "-t", "2s", "--only-summary", "--json", "--deadline-ms", "10000",
        ],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    (told,) = json.loads(ran.stdout)
    assert (told["method"], told["name"]) == ("grpc", "ModelInfer digits")
    assert told["num_requests"] > 0
    assert told["num_failures"] == 0


def test_mlperf_loadgen_scores_both_scenarios(server: RunningServer) -> None:
    ran = subprocess.run(
        [
            sys.executable, "-m", "loadtest.mlperf", "--address", server.url, "--model", "digits", "--seconds", "0.3",
            "--runs", "2", "--bound-ms", "1000",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "Server/Offline" in ran.stdout
    assert ", 0 failed" in ran.stdout
