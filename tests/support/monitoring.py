"""What deploy/ holds for Grafana and Prometheus, and a Prometheus to try it on."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.servers import wait_until
from tests.support.tools import program

ROOT: Final = Path(__file__).resolve().parents[2]
GRAFANA: Final = ROOT / "deploy" / "grafana"
PROMETHEUS: Final = ROOT / "deploy" / "prometheus"

_NAME: Final = re.compile(r"\b(?:[a-z]+:)?kairos(?:[_:][a-z0-9_]+)+\b|\bprocess_\w+|\bpython_\w+|\bup\b(?=\{)")
_QUOTED: Final = re.compile(r'"[^"]*"')


def panels() -> list[tuple[str, dict[str, Any]]]:
    """All panels of all dashboards, rows left out, with the dashboard's title."""
    boards = [json.loads(file.read_text()) for file in sorted((GRAFANA / "dashboards").glob("*.json"))]
    return [(board["title"], panel) for board in boards for panel in board["panels"] if panel["type"] != "row"]


def rules(pattern: str) -> list[dict[str, Any]]:
    """All rules of the files that match."""
    files = sorted((PROMETHEUS / "rules").glob(pattern))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


ALERTS: Final = rules("alerts.yml")


def names_in(expression: str) -> set[str]:
    """The metrics that an expression reads."""
    return set(_NAME.findall(_QUOTED.sub('""', expression)))


def filled_in(expression: str) -> str:
    """With the variables of a dashboard as Grafana would send them."""
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".+").replace("$model", ".+")


class Prometheus:
    """One that runs."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API."""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and values, now."""
        data = self.get("query", query=expression)
        rows = [{"metric": {}, "value": data["result"]}] if data["resultType"] == "scalar" else data["result"]
        return [(row["metric"], float(row["value"][1])) for row in rows]


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """A Prometheus with our rules that scrapes the target every half second."""
    binary = program("prometheus", "install Debian's package prometheus")
    shutil.copytree(PROMETHEUS / "rules", folder / "rules")
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [binary, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={address}", "--enable-feature=exemplar-storage", "--log.level=warn"]
    log = folder / "prometheus.log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        running = Prometheus(f"http://{address}")
        try:
            wait_until(lambda: _ready(process, running.url, log), "Prometheus")
            yield running
        finally:
            process.terminate()


def _ready(process: subprocess.Popen[bytes], url: str, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with urllib.request.urlopen(f"{url}/-/ready") as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False
