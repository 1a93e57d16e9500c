"""The reference: what a model's inputs and answers looked like when all was well, kept beside the model version.

Two files: `baseline.json`, which people can read, and `baseline.npz` with samples and sketches. The first names the
second by its SHA-256 and is renamed into place last, so that a reader sees a whole baseline, an older one, or none.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines.tensor import Array
from server.watch.plan import Plan
from server.watch.sketch import ColumnSketch, Sample
from server.watch.table import Table

FORMAT: Final = 1
FILE: Final = "baseline.json"
ARRAYS: Final = "baseline.npz"
_SHOWN: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class BadReference(ValueError):
    """A baseline that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Tables of the inputs and of the answers, and where they come from."""

    inputs: Table
    answers: Table | None
    model_digest: str = ""
    """Of the model's files when the answers were made. Empty: learned from requests to the model itself."""
    data_digest: str = ""
    source: str = ""
    """What people call the data."""
    made: float = 0.0
    """Seconds since 1970."""


def save(reference: Reference, folder: Path) -> Path:
    """Write the baseline into a version's folder, in place of an older one; returns the JSON file."""
    arrays: dict[str, Array] = {}
    tables = {"inputs": _table_json(reference.inputs, "inputs", arrays)}
    if reference.answers is not None:
        tables["answers"] = _table_json(reference.answers, "answers", arrays)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    data = buffer.getvalue()
    told = {
        "format": FORMAT,
        "model_digest": reference.model_digest,
        "data": {"source": reference.source, "sha256": reference.data_digest},
        "made": reference.made,
        "arrays_sha256": hashlib.sha256(data).hexdigest(),
        **tables,
    }
    _replace(folder / ARRAYS, data)
    _replace(folder / FILE, (json.dumps(told, indent=1) + "\n").encode())
    return folder / FILE


def load(folder: Path) -> Reference | None:
    """The baseline in this folder, or None where there is none. Raises BadReference."""
    try:
        text = (folder / FILE).read_bytes()
        data = (folder / ARRAYS).read_bytes()
    except FileNotFoundError as error:
        if error.filename == str(folder / FILE):
            return None
        raise BadReference(f"{FILE} is there, but {ARRAYS} is not") from error
    except OSError as error:
        raise BadReference(f"the baseline cannot be read: {error.strerror or error}") from error
    try:
        return _parsed(json.loads(text), data)
    except BadReference:
        raise
    except (KeyError, TypeError, ValueError, IndexError, OSError) as error:
        raise BadReference(f"the baseline is damaged: {error!r}") from error


def _parsed(told: Mapping[str, Any], data: bytes) -> Reference:
    if told["format"] != FORMAT:
        raise BadReference(f"the baseline has format {told['format']!r}, and this server reads {FORMAT}")
    if told["arrays_sha256"] != hashlib.sha256(data).hexdigest():
        raise BadReference(f"{ARRAYS} is not the file that {FILE} was written with")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Reference(
            inputs=_table_of(told["inputs"], "inputs", arrays),
            answers=_table_of(told["answers"], "answers", arrays) if "answers" in told else None,
            model_digest=str(told["model_digest"]),
            data_digest=str(told["data"]["sha256"]),
            source=str(told["data"]["source"]),
            made=float(told["made"]),
        )


def _table_json(table: Table, prefix: str, arrays: dict[str, Array]) -> dict[str, Any]:
    arrays[f"{prefix}.sample"], arrays[f"{prefix}.keys"] = table.sample.rows, table.sample.keys
    for index, plan in enumerate(table.plans):
        arrays[f"{prefix}.positions.{index}"], arrays[f"{prefix}.signs.{index}"] = plan.positions, plan.signs
    columns = []
    for index, sketch in enumerate(table.sketches):
        arrays[f"{prefix}.sketch.{index}"] = np.frombuffer(sketch.to_bytes(), np.uint8)
        told: dict[str, Any] = {"name": sketch.column.name, "missing": sketch.missing}
        if sketch.column.categories:
            told["counts"] = sketch.counts.tolist()
        else:
            told["quantiles"] = dict(zip(map(str, _SHOWN), sketch.quantiles(_SHOWN), strict=False))
        columns.append(told)
    plans = [plan.as_json() for plan in table.plans]
    return {"rows": table.rows, "sample_size": table.sample.size, "plans": plans, "columns": columns}


def _table_of(told: Mapping[str, Any], prefix: str, arrays: Mapping[str, Array]) -> Table:
    plans = [
        Plan.from_json(plan, arrays[f"{prefix}.positions.{index}"], arrays[f"{prefix}.signs.{index}"])
        for index, plan in enumerate(told["plans"])
    ]
    sample = Sample(arrays[f"{prefix}.sample"], arrays[f"{prefix}.keys"], int(told["sample_size"]))
    table = Table(plans, sample)
    if sample.rows.shape != (len(sample.keys), len(table.columns)):
        raise ValueError(f"a sample of shape {sample.rows.shape} for {len(table.columns)} columns")
    table.rows = int(told["rows"])
    table.sketches = [
        ColumnSketch.from_bytes(
            column, arrays[f"{prefix}.sketch.{index}"].tobytes(), int(each["missing"]), each.get("counts", ())
        )
        for index, (column, each) in enumerate(zip(table.columns, told["columns"], strict=True))
    ]
    return table


def _replace(path: Path, data: bytes) -> None:
    """Write through a file that servers ignore, for its dot, so that nobody sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
