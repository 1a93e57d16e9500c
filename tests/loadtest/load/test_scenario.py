from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadtest.load.scenario import Scenario, ScenarioError, load, parse

REQUEST: dict[str, Any] = {"model": "m"}
SHIPPED = sorted((Path(__file__).resolve().parents[3] / "loadtest/scenarios").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_scenarios_that_are_shipped_are_read(path: Path) -> None:
    assert load(path).requests


def test_one_number_stands_for_a_table_of_one() -> None:
    (kind,) = parse({"requests": [{**REQUEST, "deadline_ms": 50, "rows": {"1": 3, "4": 1}}]}).requests
    assert kind.deadline_ms == {"50": 1.0}
    assert kind.rows == {"1": 3.0, "4": 1.0}


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({}, "requests: is missing"),
        ({"requests": []}, "requests: at least one"),
        ({"requests": [{}]}, r"requests\[0\].model: is missing"),
        ({"requests": [{"model": 3}]}, r"requests\[0\].model: must be text"),
        ({"requests": [REQUEST, {**REQUEST, "typo": 1}]}, r"requests\[1\].typo: no such key; there are cancel"),
        ({"requests": [{**REQUEST, "rows": {"x": 1}}]}, r"requests\[0\].rows: x = 1"),
        ({"requests": [{**REQUEST, "rows": {"1.5": 1}}]}, r"requests\[0\].rows: 1.5 = 1"),
        ({"requests": [{**REQUEST, "share": -1}]}, r"requests\[0\].share"),
        ({"requests": [{**REQUEST, "cancel": {"share": 2}}]}, r"requests\[0\].cancel.share"),
        ({"requests": [{**REQUEST, "send_timeout": True}]}, "no deadline to send"),
        ({"requests": [REQUEST], "seconds": "10"}, "seconds: must be a number"),
        ({"requests": [REQUEST], "processes": 0}, "processes: must be more than 0"),
        ({"requests": [REQUEST], "processes": True}, "processes: must be a whole number"),
        ({"requests": [REQUEST], "client": "curl"}, "client: 'curl' is none of http2, grpc.aio"),
        ({"requests": [REQUEST], "address": "localhost"}, "not host:port"),
        ({"requests": [REQUEST], "arrivals": {"kind": "often"}}, "arrivals.kind: 'often' is none of poisson"),
        ({"requests": [REQUEST], "arrivals": {"kind": "step"}}, "arrivals.steps: the rates"),
        ({"requests": [REQUEST], "arrivals": {"kind": "step", "steps": [1, "x"]}}, r"arrivals.steps\[1\]"),
        ({"requests": [REQUEST], "arrivals": {"kind": "ramp"}}, "arrivals.to_rate"),
        ({"requests": [REQUEST], "arrivals": {"kind": "trace"}}, "arrivals.trace"),
        ({"requests": [REQUEST], "arrivals": {"bursts": {"hi": 1.0}}}, "arrivals.bursts.hi: no such key"),
        ({"requests": [REQUEST], "arrivals": 3}, "arrivals: must be a table"),
    ],
)
def test_mistakes_are_named_with_their_place(data: dict[str, Any], place: str) -> None:
    with pytest.raises(ScenarioError, match=place):
        parse(data)


def test_files_are_named_and_traces_found_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    with pytest.raises(ScenarioError, match="No such file"):
        load(path)
    path.write_text("a = ")
    with pytest.raises(ScenarioError, match="not TOML"):
        load(path)
    path.write_text("seconds = 0\n[[requests]]\nmodel = 'm'")
    with pytest.raises(ScenarioError, match=r"s.toml: seconds: must be"):
        load(path)
    path.write_text("[arrivals]\nkind = 'trace'\ntrace = 't.jsonl'\n[[requests]]\nmodel = 'm'")
    found: Scenario = load(path)
    assert found.arrivals.trace == str(tmp_path / "t.jsonl")
