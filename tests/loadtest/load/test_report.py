from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from array import array
from typing import Any

from loadtest.load.generator import Record
from loadtest.load.report import page
from loadtest.load.scenario import Kind, Scenario
from loadtest.load.summary import summarise
from loadtest.load.workers import Finished


def a_result(name: str, slip: float = 0.0) -> dict[str, Any]:
    count = 100
    record = Record(
        kind=array("H", [number % 2 for number in range(count)]),
        due=array("d", [number / 10 for number in range(count)]),
        slip=array("d", [slip] * count),
        latency=array("d", [0.01 + number / 1e4 for number in range(count)]),
        code=array("B", [0] * 90 + [4] * 10),
        deadline_s=array("d", [1.0] * count),
    )
    server = {"cpu_s": 1.0, "cores": [[0.5, 0.2], [1.5, 0.3]], "batches": {"1": 5.0, "4": 2.0}}
    scenario = Scenario(requests=(Kind(model="a"), Kind(model="<b>")), name=name)
    about = {"at": "now", "machine": "a machine"}
    return about | summarise(scenario, [Finished(record, 0.1, 10.0)], server)


def drawings(html: str) -> list[str]:
    found = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    for each in found:
        ET.fromstring(each)
    return found


def test_one_run_has_its_plots_and_nothing_from_elsewhere() -> None:
    html = page([a_result("quiet & <calm>")])
    assert len(drawings(html)) == 5
    assert "<script" not in html
    assert not re.search(r"(src|href)=[\"']https?:", html)
    assert "quiet &amp; &lt;calm&gt;" in html
    assert "&lt;b&gt;" in html
    assert "<td>10 DEADLINE_EXCEEDED" in html.replace("90 OK, ", "")
    assert "INVALID" not in html


def test_runs_are_compared_by_load() -> None:
    html = page([a_result("half"), a_result("full")])
    assert "goodput and throughput" in html
    assert len(drawings(html)) == 3 + 2 * 4


def test_what_may_not_be_believed_is_said_first() -> None:
    html = page([a_result("slow", slip=0.5)])
    assert html.index("INVALID") < html.index("<table")
