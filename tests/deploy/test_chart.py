"""The Helm chart: what it renders is valid, agrees with the server, and wrong values are refused."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from deploy.helm import make_readme
from server.cli import cli
from server.cli.serve import serve
from tests.support.kubernetes import CHART, check_resource, of_kind, refused, rendered
from tests.support.monitoring import names_in

VALUES = sorted((CHART / "ci").glob("*.yaml"))
CLAIM = ("--set", "models.existingClaim=models")


@pytest.fixture(params=VALUES, ids=lambda path: path.stem, scope="module")
def resources(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return rendered("--values", request.param)


def container_of(resources: list[dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = of_kind(resources, "Deployment")["spec"]["template"]["spec"]
    return dict(pod["containers"][0])


def test_all_resources_are_valid(resources: list[dict[str, Any]]) -> None:
    for resource in resources:
        check_resource(resource)


def test_fields_that_nobody_knows_are_found() -> None:
    resources = rendered("--values", CHART / "ci" / "gpu-keda.yaml")
    for kind in ("Deployment", "ScaledObject", "ServiceMonitor"):
        resource = of_kind(resources, kind)
        resource["spec"]["unheardOf"] = 1
        with pytest.raises(Exception, match="unheardOf"):
            check_resource(resource)


def test_the_server_takes_the_arguments(resources: list[dict[str, Any]], tmp_path: Path) -> None:
    command, *arguments = container_of(resources)["args"]
    assert command == "serve"
    declared = {name for parameter in serve.params for name in parameter.opts}
    assert {argument.partition("=")[0] for argument in arguments} <= declared
    # As click reads them, with files that exist in place of those of the pod.
    settings = tmp_path / "kairos.toml"
    settings.write_text(of_kind(resources, "ConfigMap")["data"]["kairos.toml"])
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).touch()
    given = [re.sub(r"/etc/kairos(/tls)?/", f"{tmp_path}/", argument) for argument in arguments]
    given = [re.sub("=(/models|/var/.*)$", f"={tmp_path}", argument) for argument in given]
    serve.make_context("kairos", given)


def test_settings_reach_the_server_as_they_are() -> None:
    resources = rendered("--values", CHART / "ci" / "gpu-keda.yaml")
    settings = tomllib.loads(of_kind(resources, "ConfigMap")["data"]["kairos.toml"])
    assert settings == {
        "redis-url": "redis://redis:6379",
        "response-cache-byte-size": 268435456,
        "redis-budget-ms": 1.5,
        "log-info": False,
    }


def test_probes_ports_and_services_agree(resources: list[dict[str, Any]]) -> None:
    container = container_of(resources)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert f"--grpc-port={ports['grpc']}" in container["args"]
    assert f"--metrics-port={ports['metrics']}" in container["args"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]
        if "grpc" in probe:
            assert probe["grpc"]["port"] == ports["grpc"]
        else:
            assert f"--url=127.0.0.1:{ports['grpc']}" in probe["exec"]["command"]
    for service in (each for each in resources if each["kind"] == "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports.keys()


def test_with_tls_probes_are_the_health_command() -> None:
    container = container_of(rendered("--values", CHART / "ci" / "mutual-tls-hpa.yaml"))
    command, *arguments = container["readinessProbe"]["exec"]["command"]
    assert command == "kairos"
    known = CliRunner().invoke(cli, ["health", "--help"], terminal_width=200).output
    assert all(argument.partition("=")[0] in known for argument in arguments[1:])
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    files = [argument.partition("=")[2] for argument in arguments if "/" in argument]
    assert {str(Path(file).parent) for file in files} <= mounts


def test_the_pod_outlives_the_drain(resources: list[dict[str, Any]]) -> None:
    pod = of_kind(resources, "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    flags = dict(argument.removeprefix("--").partition("=")[::2] for argument in container["args"])
    stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = math.ceil(float(flags["drain-delay-secs"])) + math.ceil(float(flags["exit-timeout-secs"]))
    assert pod["terminationGracePeriodSeconds"] >= stop + drain + 5


def test_nothing_is_privileged_and_what_is_written_has_a_volume(resources: list[dict[str, Any]]) -> None:
    pod = of_kind(resources, "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    flags = dict(argument.partition("=")[::2] for argument in container["args"])
    assert {flags["--cache-dir"], flags["--state-dir"], "/tmp"} <= writable
    assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}


def test_gpus_are_limits_and_choose_the_image() -> None:
    container = container_of(rendered("--values", CHART / "ci" / "gpu-keda.yaml"))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["image"].endswith("-gpu")
    assert "nvidia.com/gpu" not in container_of(rendered(*CLAIM))["resources"]["limits"]


def test_what_scales_sets_no_replicas_and_asks_for_series_that_exist() -> None:
    keda = rendered("--values", CHART / "ci" / "gpu-keda.yaml")
    assert "replicas" not in of_kind(keda, "Deployment")["spec"]
    documented = (CHART.parents[2] / "docs" / "operations.md").read_text()
    queries = [trigger["metadata"]["query"] for trigger in of_kind(keda, "ScaledObject")["spec"]["triggers"]]
    rules = yaml.safe_load((CHART.parents[1] / "prometheus" / "adapter.yml").read_text())["rules"]
    names = {name for query in queries for name in names_in(query)}
    names |= {rule["seriesQuery"].partition("{")[0] for rule in rules}
    for name in {re.sub("_(sum|bucket|count)$", "", name) for name in names}:
        assert f"`{name}" in documented, name
    hpa = of_kind(rendered("--values", CHART / "ci" / "mutual-tls-hpa.yaml"), "HorizontalPodAutoscaler")
    metrics = [metric[metric["type"].lower()]["metric"]["name"] for metric in hpa["spec"]["metrics"]]
    assert metrics == [rule["name"]["as"] for rule in rules]


def test_an_empty_list_of_callers_lets_nobody_in() -> None:
    closed = ("--set-json", "networkPolicy.clients=[]", "--set-json", "networkPolicy.monitoring=[]")
    assert not of_kind(rendered(*CLAIM, *closed), "NetworkPolicy")["spec"]["ingress"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((), "exactly one of"),
        ((*CLAIM, "--set", "models.hostPath=/srv"), "exactly one of"),
        ((*CLAIM, "--set", "replicas=3"), "replicas"),
        ((*CLAIM, "--set", "models.controlMode=sometimes"), "controlMode"),
        (("--set", "models.uris={ftp://somewhere}"), "uris"),
        ((*CLAIM, "--set", "settings.grpc-port=9"), "grpc-port"),
        ((*CLAIM, "--set", "image.digest=latest"), "digest"),
        ((*CLAIM, "--set", "autoscaling.kind=magic"), "kind"),
        ((*CLAIM, "--set", "autoscaling.busyShare=7"), "busyShare"),
        ((*CLAIM, "--set", "service.grpcPort=0"), "grpcPort"),
        ((*CLAIM, "--set", "gpu.count=-1"), "count"),
        ((*CLAIM, "--set", "drain.exitTimeoutSeconds=soon"), "exitTimeoutSeconds"),
    ],
)
def test_wrong_values_are_refused(values: tuple[str, ...], words: str) -> None:
    assert words in refused(*values)


def test_every_value_is_in_the_readme() -> None:
    assert (CHART / "README.md").read_text() == make_readme.readme(), "run `python deploy/helm/make_readme.py`"
