"""`kairos feedback` and `kairos triggers`: what they read, and what they refuse."""

from __future__ import annotations

import io
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from server.cli import cli
from server.cli.feedback import BadOutcome, read_outcomes
from server.watch.outcomes import FILE, SCHEMA
from server.watch.trigger_state import Delivery, TriggerStore
from server.watch.triggers import Event

RULE = '[[rule]]\nname = "r"\nsignal = "drift"\n'


def kairos(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin, env={"COLUMNS": "200"})


def test_csv_and_json_lines_mean_the_same() -> None:
    csv = "id,label,metric,value,time,row\na,7,,,,\nb,,cost,1.5,2026-01-01T00:00:00+00:00,2\n"
    lines = (
        '{"id": "a", "label": 7}\n\n'
        '{"id": "b", "metric": "cost", "value": 1.5, "time": "2026-01-01T00:00:00Z", "row": 2, "label": null}\n'
    )
    found = list(read_outcomes(io.StringIO(csv), "m"))
    assert found == list(read_outcomes(io.StringIO(lines), "m"))
    assert (found[0].model, found[0].id, found[0].label, found[0].time) == ("m", "a", "7", 0.0)
    assert (found[1].row, found[1].metric, found[1].value, found[1].time) == (2, "cost", 1.5, 1767225600.0)
    assert list(read_outcomes(io.StringIO("\n"), "m")) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id,label\na,1\n", "outcome 1: names no model"),
        ("model,label\nm,1\n", "has no id"),
        ("model,id,metric\nm,a,x\n", "a metric and its value go together"),
        ("model,id\nm,a\n", "has neither a label nor a metric"),
        ("model,id,label\nm,a,1\nm,b,1,2\n", "outcome 2 has more columns"),
        ("model,id,label,colour\nm,a,1,red\n", "unknown column 'colour'"),
        ("model,id,metric,value\nm,a,x,high\n", "could not convert"),
        ('{"model": "m", "id": "a", "label": "1", "time": "2026-01-01T00:00"}\n', "has no zone"),
        ('{"model": "m", "id": "a", "label": "1", "row": -1}\n', "outcome 1"),
        ('{"model": "m"\n', "outcome 1 is not JSON"),
        ('{"model": "m", "id": "a", "label": "1"}\n[1]\n', "outcome 2 is not a JSON object"),
    ],
)
def test_a_line_that_says_nothing_usable_is_named(text: str, reason: str) -> None:
    with pytest.raises(BadOutcome, match=reason):
        list(read_outcomes(io.StringIO(text)))
    done = kairos("feedback", "report", "-", "--url", "127.0.0.1:1", stdin=text)
    assert done.exit_code == 1
    assert "0 outcomes before it were sent" in done.output


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    for arguments in (["status"], ["report", "-"]):
        done = kairos("feedback", *arguments, "--url", "127.0.0.1:1", stdin="model,id,label\nm,a,1\n")
        assert done.exit_code == 1
        assert "127.0.0.1:1: " in done.output
    assert "cannot be read" in kairos("feedback", "export", tmp_path / "x", "--state-dir", tmp_path).output


def test_export(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA)
        for model in ("m", "n"):
            connection.execute("INSERT INTO predictions VALUES (?, 'a', 0, 1, 5.0, 3, 'three', 0.5)", (model,))
        connection.execute("INSERT INTO outcomes VALUES ('m', 'a', 0, '', '3', 0.0, 6.0, 7.0, 1)")
        connection.execute("INSERT INTO outcomes VALUES ('m', 'a', 0, 'cost', '', 2.5, 6.0, 7.0, 1)")
        connection.commit()
    assert kairos("feedback", "export", tmp_path / "all.parquet", "--state-dir", tmp_path).output.startswith("3 lines")
    assert kairos("feedback", "export", tmp_path / "m.parquet", "--state-dir", tmp_path, "--model", "m").exit_code == 0
    label, cost = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert label == {
        "model": "m", "version": 1, "id": "a", "row": 0, "predicted_at": 5.0, "predicted": 3,
        "predicted_label": "three", "confidence": 0.5, "metric": None, "label": "3", "value": None, "outcome_at": 6.0,
        "received_at": 7.0,
    }  # fmt: skip
    assert (cost["metric"], cost["value"], cost["label"]) == ("cost", 2.5, None)
    assert {path.name for path in tmp_path.iterdir()} == {"feedback", "all.parquet", "m.parquet"}


def test_a_file_of_rules_is_told_in_words(tmp_path: Path) -> None:
    file = tmp_path / "triggers.toml"
    file.write_text(
        f'{RULE}alarm = true\nfor = 3\n{RULE}below = 0.9\nclear = 0.95\nwindow = "1h"'.replace('"r"', '"q"', 1)
    )
    done = kairos("triggers", "check", file)
    assert done.exit_code == 0
    assert "drift is an alarm, 3 times" in done.output
    assert "mean of 3600 s of drift < 0.9" in done.output
    assert ">= 0.95" in done.output
    file.write_text(f"{RULE}abve = 1")
    done = kairos("triggers", "check", file)
    assert done.exit_code == 1
    assert "rule[1].abve: unknown key; did you mean 'above'?" in done.output
    file.write_text(f'{RULE}above = 1\n[action.x]\nkind = "kubernetes-job"\ntemplate = "job.yaml"\noutput = "-"')
    assert "action.x: [Errno 2]" in kairos("triggers", "check", file).output


def test_the_log_of_events(tmp_path: Path) -> None:
    assert "cannot be read" in kairos("triggers", "log", "--state-dir", tmp_path).output
    event = Event(
        id="0123456789abcdef", rule="costly", model="m", version=2, episode=1, signal="outcome.cost", value=2.5,
        threshold=1.0, samples=9, p_value=0.5, at=1767225600.0,
    )  # fmt: skip
    store = TriggerStore(tmp_path)
    store.open()
    store.save({}, [Delivery(event=event, action="hook", error="HTTP 500")]).result(10)
    output = kairos("triggers", "log", "--state-dir", tmp_path).output
    store.close()
    for word in ("2026-01-01 00:00:00Z", "0123456789ab", "costly", "m:2", "2.5", "hook", "pending"):
        assert word in output
