"""The resources for KServe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from server.cli.serve import serve
from tests.support.kubernetes import ROOT, check_resource

FOLDER = ROOT / "deploy" / "kserve"
FILES = sorted(FOLDER.glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_resource_is_valid(path: Path) -> None:
    check_resource(read(path))


def test_fields_that_nobody_knows_are_found() -> None:
    runtime = read(FOLDER / "runtime.yaml")
    with pytest.raises(AssertionError, match="unheardOf"):
        check_resource(runtime | {"spec": runtime["spec"] | {"unheardOf": 1}})


def test_the_service_asks_for_what_the_runtime_offers() -> None:
    runtime = read(FOLDER / "runtime.yaml")
    model = read(FOLDER / "inference-service.yaml")["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    offered = [(each["name"], each["version"]) for each in runtime["spec"]["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in offered


def test_the_server_takes_the_arguments_and_probes_ask_its_port() -> None:
    spec = read(FOLDER / "runtime.yaml")["spec"]
    (container,) = spec["containers"]
    declared = {name for parameter in serve.params for name in parameter.opts}
    command, *arguments = container["args"]
    assert command == "serve"
    assert {argument.partition("=")[0] for argument in arguments} <= declared
    (port,) = container["ports"]
    assert f"--grpc-port={port['containerPort']}" in arguments
    probes = [container[name]["grpc"]["port"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert set(probes) == {port["containerPort"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
