"""`kairos simulate`: what it prints, draws, answers and refuses."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from server.cli import cli

SMALL = ["--cost", "2ms+1.5ms", "--slo", "20ms,50ms,100ms", "--requests", "1500"]


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli, ["simulate", *arguments])


def records(*arguments: str) -> list[dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_a_table_for_each_load() -> None:
    result = run(*SMALL, "--load", "0.5,2")
    assert result.exit_code == 0, result.output
    assert "Capacity: 615.4 rows/s" in result.output
    assert len([line for line in result.output.splitlines() if "deadline" in line]) == 2


def test_policies_are_compared_on_the_same_requests() -> None:
    mine, fifo = records(*SMALL, "--load", "1.5", "--policy", "deadline,fifo")
    assert (mine["policy"], fifo["policy"]) == ("deadline", "fifo")
    assert mine["in_time"] > 0.6 > 0.2 > fifo["in_time"]
    assert set(mine["attainment"]) == {"20 ms", "50 ms", "100 ms"}


def test_a_recorded_trace_is_played(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [{"t": 5.0 + 0.1 * n, "rows": 2, "deadline": None if n % 2 else 0.5, "tenant": "a"} for n in range(40)]
    trace.write_text("\n".join(map(json.dumps, lines)))
    (found,) = records("--cost", "2ms+1.5ms", "--trace", str(trace))
    assert found["requests"] == 40
    assert found["in_time"] == 1.0
    assert found["load"] == pytest.approx(80 / 3.9 / 615.4, rel=0.01)
    assert found["attainment"] == {"500 ms": 1.0, "none": 1.0}


def test_measured_costs_are_taken_from_a_file(tmp_path: Path) -> None:
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps({"format": 1, "seconds": {"1": 0.003, "8": 0.010}}))
    assert "Capacity: 800.0 rows/s" in run("--cost", str(costs), "--max-rows", "8", "--requests", "100").output


def test_engines_are_counted() -> None:
    result = run(*SMALL, "--slo", "50ms", "--rate", "1500", "--engines-for", "0.95", "--json")
    found = json.loads(result.stdout)["deadline"]
    assert found["engines"] == 3
    assert found["tried"]["2"] < 0.95 <= found["tried"]["3"]


def test_a_chart_is_drawn(tmp_path: Path) -> None:
    chart = tmp_path / "chart.png"
    assert run(*SMALL, "--load", "0.5,1", "--plot", str(chart)).exit_code == 0
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    result = run(*SMALL, "--load", "0.5", "--plot", str(tmp_path / "chart.png"))
    assert result.exit_code == 1
    assert "pip install 'kairos[plots]'" in result.output


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--cost", "fast"], "neither like 2ms+1.5ms nor a file"),
        (["--cost", "2ms+oops"], "is not a time like"),
        (["--cost", "1ms+1ms", "--slo", "0"], "longer than nothing"),
        (["--cost", "1ms+1ms", "--slo", "5ms:-1"], "must not be negative"),
        (["--cost", "1ms+1ms", "--rows", "99"], "a request has 1 to 16 rows"),
        (["--cost", "1ms+1ms", "--load", "0"], "must be above 0"),
        (["--cost", "1ms+1ms", "--policy", "best"], "best is none of"),
        (["--cost", "1ms+1ms", "--allowed-rows", "1,8"], "the largest must be"),
        (["--cost", "1ms+1ms", "--engines-for", "0.9"], "needs --rate or --trace"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(arguments: list[str], fault: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert fault in " ".join(result.output.replace("│", " ").split())


def test_a_broken_trace_names_its_line(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"t": 1}\n{"rows": 1}\n')
    result = run("--cost", "1ms+1ms", "--trace", str(trace))
    assert result.exit_code == 2
    assert "line 2" in result.output
