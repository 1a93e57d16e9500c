"""Writes kairos/README.md, the table of all values of the chart, from the comments of kairos/values.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent / "kairos"
HEAD = """# The Kairos chart

    helm install web deploy/helm/kairos --set models.existingClaim=models

How to size, scale, upgrade and call what it installs is in [docs/kubernetes.md](../../../docs/kubernetes.md). Values
that are not in this table are refused.

<!-- Written by deploy/helm/make_readme.py from values.yaml. -->

| value | default | meaning |
|---|---|---|
"""


def rows() -> Iterator[tuple[str, Any, str]]:
    """Each value's path, default and meaning; ValueError for one without a meaning."""
    text = (CHART / "values.yaml").read_text()
    lines = text.splitlines()
    for path, node in leaves(yaml.compose(text)):
        above = lines[node.start_mark.line - 1].strip()
        if not above.startswith("# -- "):
            raise ValueError(f"{path} has no comment")
        value = yaml.safe_load(text)
        for name in path.split("."):
            value = value[name]
        yield path, value, above.removeprefix("# -- ")


def leaves(node: Any, path: str = "", *, lines: Any = None) -> Iterator[tuple[str, Any]]:  # noqa: ANN401  (yaml's nodes)
    """Paths of what has a meaning of its own: mappings are gone into, unless they are explained as a whole."""
    text = lines if lines is not None else (CHART / "values.yaml").read_text().splitlines()
    for key, value in node.value:
        here = f"{path}.{key.value}".removeprefix(".")
        explained = text[key.start_mark.line - 1].strip().startswith("# -- ")
        if isinstance(value, yaml.MappingNode) and value.value and not explained:
            yield from leaves(value, here, lines=text)
        else:
            yield here, key


def readme() -> str:
    """The whole file."""
    return HEAD + "".join(f"| `{path}` | `{json.dumps(value)}` | {meaning} |\n" for path, value, meaning in rows())


if __name__ == "__main__":
    (CHART / "README.md").write_text(readme())
