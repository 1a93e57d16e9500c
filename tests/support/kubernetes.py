"""The chart rendered by helm, and resources held against the schemas of those who read them."""

from __future__ import annotations

import ast
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.tools import FOLDER, missing, program

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "deploy" / "helm" / "kairos"
CRDS: Final = FOLDER.parent / "crds"
VERSIONS: Final = ("1.30", "1.37")
"""The oldest Kubernetes that the chart takes, and the newest whose schemas we have."""


def rendered(*arguments: str | Path) -> list[dict[str, Any]]:
    """All resources of a release `web` in the namespace `ml`; AssertionError with helm's words if it refuses."""
    helm = program("helm")
    command = [helm, "template", "web", CHART, "--namespace", "ml", "--kube-version", "1.33.0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [resource for resource in yaml.safe_load_all(done.stdout) if resource]


def check_resource(resource: Mapping[str, Any]) -> None:
    """Raise for what the resource's schema does not allow, unknown fields included."""
    group = resource["apiVersion"].partition("/")[0]
    if group == "serving.kserve.io":
        check_kserve(resource)
    elif group in {"keda.sh", "monitoring.coreos.com"}:
        jsonschema.validate(resource, _crd(group, resource["kind"]))
    else:
        for version in VERSIONS:
            kubernetes_validate.validate(dict(resource), version, strict=True)


@cache
def _crd(group: str, kind: str) -> dict[str, Any]:
    file = CRDS / f"{group}_{kind.lower()}s.yaml"
    if not file.exists():
        missing(f"{file.name} is missing: `make conformance` fetches it (needs Go)")
    (version,) = [each for each in yaml.safe_load(file.read_text())["spec"]["versions"] if each["storage"]]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    for each in _objects(schema):  # the API server drops fields it does not know: here they are faults
        if "properties" in each and not each.get("x-kubernetes-preserve-unknown-fields"):
            each.setdefault("additionalProperties", False)
    for name in ("apiVersion", "kind", "metadata"):
        schema["properties"][name] = {}
    return schema


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    """All schemas of properties and items. Those of anyOf and the like only narrow: nothing is added to them."""
    if not isinstance(schema, dict):
        return
    yield schema
    children = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for child in children:
        yield from _objects(child)


def check_kserve(resource: Mapping[str, Any]) -> None:
    """Hold a resource against the types of KServe's own Python package; its containers against Kubernetes'."""
    version = resource["apiVersion"].partition("/")[2].capitalize()
    _check_typed(dict(resource), f"{version}{resource['kind']}", resource["kind"])
    spec = resource["spec"]
    if "containers" in spec:
        pod = {"containers": spec["containers"], "volumes": spec.get("volumes", [])}
        check_resource({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kserve"}, "spec": pod})


def _check_typed(value: Any, type_name: str, where: str) -> None:
    if type_name.startswith("list["):
        assert isinstance(value, list), f"{where}: a list is wanted"
        for number, each in enumerate(value):
            _check_typed(each, type_name[5:-1], f"{where}[{number}]")
    elif type_name in {"str", "int", "bool"}:
        assert type(value).__name__ == type_name, f"{where}: {type_name} is wanted"
    elif (fields := _kserve_types().get(type_name)) is not None:
        unknown = set(value) - fields.keys()
        assert not unknown, f"{where}: unknown {unknown}"
        for name, each in value.items():
            _check_typed(each, fields[name], f"{where}.{name}")


@cache
def _kserve_types() -> dict[str, dict[str, str]]:
    """Types by name: their fields as they are written, each with its type."""
    wheels = sorted(CRDS.glob("kserve-*.whl"))
    if not wheels:
        missing("KServe's types are missing: `make conformance` fetches them (needs Go)")
    types = {}
    with zipfile.ZipFile(wheels[-1]) as wheel:
        for name in wheel.namelist():
            if not name.startswith("kserve/models/v1"):
                continue
            for node in ast.parse(wheel.read(name)).body:
                if isinstance(node, ast.ClassDef):
                    tables = {
                        each.targets[0].id: ast.literal_eval(each.value)
                        for each in node.body
                        if isinstance(each, ast.Assign)
                        and isinstance(each.targets[0], ast.Name)
                        and each.targets[0].id in {"openapi_types", "attribute_map"}
                    }
                    if len(tables) == 2:
                        written = tables["attribute_map"]
                        types[node.name] = {written[key]: kind for key, kind in tables["openapi_types"].items()}
    assert types
    return types


def of_kind(resources: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The only resource of a kind."""
    (found,) = [resource for resource in resources if resource["kind"] == kind]
    return found


def refused(*arguments: str) -> str:
    """Helm's words on values that it must not take."""
    with pytest.raises(AssertionError) as raised:
        rendered(*arguments)
    return str(raised.value)
