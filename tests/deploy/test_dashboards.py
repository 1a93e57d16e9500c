"""Dashboards and rules as files: complete, written by their script, and speaking only of metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.monitoring import ALERTS, GRAFANA, PROMETHEUS, ROOT, names_in, panels, rules
from tests.support.tools import program

MANUAL = ROOT / "docs" / "operations.md"
PANELS = [pytest.param(panel, id=f"{board}: {panel['title']}") for board, panel in panels()]


def test_the_dashboards_are_what_their_script_writes() -> None:
    subprocess.run([sys.executable, GRAFANA / "generate.py", "--check"], check=True)


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_says_what_it_shows_in_which_unit_and_what_is_worrying(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["description"].endswith(".")
    assert defaults["unit"]
    assert defaults["thresholds"]["steps"][0]["value"] is None
    limits = [step["value"] for step in defaults["thresholds"]["steps"][1:]]
    assert limits == sorted(limits)
    assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


@pytest.mark.parametrize("file", sorted((GRAFANA / "dashboards").glob("*.json")), ids=lambda file: file.stem)
def test_panels_do_not_overlap(file: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(file.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_identifiers_are_unique() -> None:
    boards = [json.loads(file.read_text()) for file in (GRAFANA / "dashboards").glob("*.json")]
    assert len({board["uid"] for board in boards}) == len(boards) == 6
    for board in boards:
        identifiers = [panel["id"] for panel in board["panels"]]
        assert len(set(identifiers)) == len(identifiers)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_has_a_section_in_the_runbook(alert: dict[str, Any]) -> None:
    file, anchor = alert["annotations"]["runbook"].split("#")
    assert ROOT / file == MANUAL
    headings = re.findall(r"^#+ (.+)$", MANUAL.read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["alert"] in MANUAL.read_text()


def test_every_alert_is_tested() -> None:
    tested = {
        check["alertname"]
        for file in (PROMETHEUS / "tests").glob("*.yml")
        for test in yaml.safe_load(file.read_text())["tests"]
        for check in test.get("alert_rule_test", ())
        if check["exp_alerts"]
    }
    assert tested == {alert["alert"] for alert in ALERTS}


def test_every_series_of_triton_is_made() -> None:
    made = {rule["record"] for rule in rules("triton.yml")}
    requests = {f"nv_inference_{name}" for name in ("request_success", "request_failure", "count", "exec_count")}
    phases = ("request", "queue", "compute_input", "compute_infer", "compute_output")
    durations = {f"nv_inference_{phase}_duration_us" for phase in phases}
    caches = {f"nv_cache_{name}_per_model" for name in ("num_hits", "num_misses", "hit_duration", "miss_duration")}
    gauges = {"nv_inference_pending_request_count", "nv_model_load_duration_secs", "nv_energy_consumption"}
    gpus = {f"nv_gpu_{n}" for n in ("utilization", "memory_total_bytes", "memory_used_bytes")}
    power = {"nv_gpu_power_usage", "nv_gpu_power_limit"}
    cpus = {f"nv_cpu_{name}" for name in ("utilization", "memory_total_bytes", "memory_used_bytes")}
    assert made == requests | durations | caches | gauges | gpus | power | cpus


def test_the_names_in_an_expression_are_found() -> None:
    expression = 'sum by (model) (rate(kairos_a_total{m="kairos"}[5m])) / kairos:b:objective - model:kairos_c:p99'
    assert names_in(expression) == {"kairos_a_total", "kairos:b:objective", "model:kairos_c:p99"}


@pytest.mark.integration
@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "tests/*.yml")])
def test_promtool_finds_no_fault(arguments: tuple[str, ...]) -> None:
    promtool = program("promtool", "install Debian's package prometheus")
    *command, pattern = arguments
    files = [str(file.relative_to(PROMETHEUS)) for file in sorted(PROMETHEUS.glob(pattern))]
    done = subprocess.run([promtool, *command, *files], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
