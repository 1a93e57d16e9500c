"""What is written beside a built version: where it came from, how it was made, and how it was measured."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort

from engines.build import graphs

MANIFEST_FILE: Final = "build.json"
TABLE_FILE: Final = "calibration.json"
FORMAT: Final = 1


def tools() -> dict[str, str]:
    """Versions of all that had a hand in it."""
    try:
        own = metadata.version("kairos")
    except metadata.PackageNotFoundError:
        own = "unknown"
    return {
        "kairos": own,
        "onnx": onnx.__version__,
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def write(folder: Path, facts: Mapping[str, object]) -> None:
    """Write the manifest into a version's folder; digests of the files in it are added."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST_FILE)
    manifest = {
        "format": FORMAT,
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "tools": tools(),
        "files": {path.name: {"sha256": graphs.file_digest(path), "bytes": path.stat().st_size} for path in files},
        **facts,
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(plain(manifest), indent=2) + "\n", encoding="utf-8")


def plain(value: Any) -> Any:  # noqa: ANN401  (any tree of data classes and containers)
    """The same out of JSON's own types: no data classes, tuples, paths, or numbers that are not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Path):
        return str(value)
    return value
