"""The compose file: everything that it mounts is there, and everything that it names fits together."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import yaml
from click.testing import CliRunner

from server.cli import cli
from tests.support.monitoring import GRAFANA, PROMETHEUS, ROOT

FOLDER = ROOT / "deploy" / "compose"
SERVICES: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yml").read_text())["services"]


def test_what_is_mounted_exists_and_is_read_only() -> None:
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", ())]
    assert mounts
    for source, _, mode in mounts:
        assert (FOLDER / source).exists(), source
        assert mode == "ro"


def test_services_listen_on_this_host_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_hosts_that_are_named_are_services() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "kairos.yml").read_text())["datasources"]
    endpoint = SERVICES["kairos"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
    urls = [f"http://{target}", endpoint, *(source["url"] for source in sources)]
    assert {urlsplit(url).hostname for url in urls} <= SERVICES.keys()


def test_exemplars_lead_to_a_data_source_that_exists() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "kairos.yml").read_text())["datasources"]
    wanted = {
        to["datasourceUid"] for s in sources for to in s.get("jsonData", {}).get("exemplarTraceIdDestinations", ())
    }
    assert wanted <= {source["uid"] for source in sources}
    assert wanted


def test_the_server_knows_its_settings() -> None:
    arguments = SERVICES["kairos"]["command"]
    help_text = CliRunner().invoke(cli, [arguments[0], "--help"], terminal_width=200).output
    for flag in arguments[1:]:
        assert not flag.startswith("--") or flag in help_text
