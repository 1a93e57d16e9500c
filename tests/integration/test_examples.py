"""Every example client, and the demonstration, as a reader runs them: against a server in its own process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import PATIENCE_S, running_server
from tests.support.tools import program

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
UNREACHABLE = "127.0.0.1:1"  # a port that nobody may listen on without being root, and nobody does

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the example models; it must not have logged a fault when all is over."""
    with running_server(EXAMPLES / "models") as server:
        yield server.url


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of examples/ from another folder, as its users may."""
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd="/", check=False)


def output(script: str, *arguments: str) -> str:
    done = run(script, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_sync_client_reads_with_both_versions_and_draws_what_it_reads(url: str) -> None:
    said = output("clients/sync_client.py", "--url", url)
    assert said.count("█") > 4
    assert re.search(r"version 1: 355 images, 94\.\d\d% read correctly, \d+\.\d\d ms", said)
    assert re.search(r"version 2: 355 images, 98\.\d\d% read correctly, \d+\.\d\d ms", said)


def test_the_asyncio_client_counts_what_came_in_time(url: str) -> None:
    said = output("clients/asyncio_client.py", "--url", url, "--callers", "8", "--deadlines-ms", "-1000", "30000")
    lost, kept = said.splitlines()[1:]
    assert "  0.0% in time, 0 read correctly" in lost
    assert "100.0% in time, 351 read correctly" in kept


def test_the_streaming_client_gets_its_answers_in_order(url: str) -> None:
    written, read, summary = output("clients/streaming_client.py", "--url", url, "--count", "50").splitlines()
    assert written.removeprefix("written:") == read.removeprefix("read:   ")
    assert re.fullmatch(r"50 digits in order over one stream in \d+ ms, 0 misread", summary)


def test_the_stub_client_gets_labels_and_strings(url: str) -> None:
    said = output("clients/stub_client.py", "--url", url)
    assert re.findall(r"a (\d):  (\w+) [01]\.\d+   \w+ 0\.\d+   \w+ 0\.\d+", said) == [
        ("5", "five"),
        ("0", "zero"),
        ("9", "nine"),
    ]
    assert "'will it rain tomorrow?': 4 words, a question" in said
    assert "'zwölf boxkämpfer': 2 words, no question" in said


def test_the_shell_client_lists_and_calls_through_reflection(url: str) -> None:
    folder = Path(program("grpcurl")).parent
    script = EXAMPLES / "clients" / "grpcurl.sh"
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [script, "--url", url], capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for service in ("inference.GRPCInferenceService", "grpc.health.v1.Health"):
        assert f"\n{service}\n" in done.stdout
    assert '"ready": true' in done.stdout
    assert '"AwAAAAAAAAA="' in done.stdout  # three words, INT64 little-endian, in base64


def test_the_shell_client_says_what_it_misses() -> None:
    script = EXAMPLES / "clients" / "grpcurl.sh"
    done = subprocess.run(
        ["/bin/bash", script], capture_output=True, text=True, timeout=PATIENCE_S, check=False, env={"PATH": ""}
    )
    assert done.returncode == 127
    assert done.stderr.startswith("grpcurl is not installed")


def test_the_demonstration_measures_accuracy_deadlines_and_batches(url: str) -> None:
    said = output("demo.py", "--url", url, "--calls", "400", "--callers", "16", "--deadline-ms", "30000")
    alone, together = (line.split() for line in said.splitlines() if "one by one" in line or ", 16 at once" in line)
    assert alone[:5] == ["355,", "one", "by", "one", "98.87%"]
    assert together[:5] == ["400,", "16", "at", "once", "99.00%"]
    assert alone[-1] == together[-1] == "100.0%"
    shares = [float(share) for share in re.findall(r"([\d.]+)% *$", said.split("Batches that")[1], re.MULTILINE)]
    assert sum(shares) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize("script", [*sorted(EXAMPLES.glob("clients/*.py")), EXAMPLES / "demo.py"], ids=lambda p: p.stem)
def test_programs_explain_themselves_and_say_when_there_is_no_server(script: Path) -> None:
    assert "--url" in output(str(script.relative_to(EXAMPLES)), "--help")
    done = run(str(script.relative_to(EXAMPLES)), "--url", UNREACHABLE)
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    assert "Traceback" not in done.stderr
