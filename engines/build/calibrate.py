"""Learns from real rows which values flow through a model, once for all methods, precisions and targets.

Promise: collecting can be interrupted at any row; the next attempt with the same model and data goes on from there and
ends with the same histograms.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper

from engines.build import graphs
from engines.build.data import Dataset
from engines.build.errors import BuildFailed
from engines.build.histogram import Histogram, pack, unpack
from engines.build.ranges import Method, range_of
from engines.tensor import Array

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

FORMAT: Final = 1
BATCH: Final = 16
SAVE_EVERY: Final = 8
"""Batches between two saves of what has been learnt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The shared artefact: from it, and from the FP32 model, the INT8 graph for any target is made."""

    method: Method
    ranges: Mapping[str, tuple[float, float]]
    """Lowest and highest value by tensor."""
    model_digest: str
    data_digest: str
    rows: int

    def to_json(self) -> str:
        """As text that a person can read and a later build can take."""
        return json.dumps(
            {
                "format": FORMAT,
                "method": self.method.value,
                "model": self.model_digest,
                "data": self.data_digest,
                "rows": self.rows,
                "tensors": {name: list(bounds) for name, bounds in sorted(self.ranges.items())},
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str, source: str) -> Table:
        """The inverse of `to_json`. Raises BuildFailed, naming `source`."""
        try:
            values: dict[str, Any] = json.loads(text)
            if values["format"] != FORMAT:
                raise BuildFailed(f"{source} has the format {values['format']}, this version reads {FORMAT}")
            return cls(
                method=Method(values["method"]),
                ranges={name: (float(low), float(high)) for name, (low, high) in values["tensors"].items()},
                model_digest=values["model"],
                data_digest=values["data"],
                rows=int(values["rows"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BuildFailed(f"{source} is not a calibration table: {error!r}") from error


def table_of(
    histograms: Mapping[str, Histogram], method: Method, *, model_digest: str, data_digest: str, rows: int
) -> Table:
    """The ranges that a method makes of what was seen."""
    return Table(
        method=method,
        ranges={name: range_of(histogram, method) for name, histogram in histograms.items()},
        model_digest=model_digest,
        data_digest=data_digest,
        rows=rows,
    )


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """What can be calibrated: FP32 values that flow, in the order in which they come up."""
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    weights = graphs.initializers(model)
    named = [value.name for value in model.graph.input]
    named += [name for node in model.graph.node for name in node.output]
    return [name for name in named if kinds.get(name) == TensorProto.FLOAT and name not in weights]


@dataclass(slots=True)
class Collector:
    """Runs rows through a model and counts what it sees."""

    model: onnx.ModelProto
    model_digest: str
    folder: Path
    """For temporary files."""
    state_dir: Path
    """Where an interrupted collection is kept, and finished ones for the next build."""
    batched: bool = True
    """Whether rows can be run together."""

    def collect(self, data: Dataset, progress: Progress) -> dict[str, Histogram]:
        """Histograms by tensor, over all rows. Raises BuildFailed."""
        state = self._state_file(data)
        done, histograms = self._load(state)
        names = float_tensors(self.model)
        if done >= len(data):
            progress("calibrating", len(data), len(data))
            return histograms
        histograms = histograms or {name: Histogram() for name in names}
        run = self._open(names)
        step = BATCH if self.batched else 1
        unsaved = 0
        whole = True
        try:
            for start in range(done, len(data), step):
                progress("calibrating", start, len(data))
                rows = data.take(start, start + step)
                values = run(rows if self.batched else {name: array[0] for name, array in rows.items()})
                whole = False
                _count(values, histograms)
                done, unsaved = min(start + step, len(data)), unsaved + 1
                whole = True
                if unsaved == SAVE_EVERY:
                    _save(state, done, histograms)
                    unsaved = 0
        finally:
            if whole:  # else some tensors have counted a batch that others have not: the last save stands
                _save(state, done, histograms)
        progress("calibrating", len(data), len(data))
        return histograms

    def _state_file(self, data: Dataset) -> Path:
        parts = (self.model_digest, data.digest, repr(data.index.tolist()), onnx.__version__, str(FORMAT))
        name = hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
        return self.state_dir / f"calibration-{name}.npz"

    @staticmethod
    def _load(path: Path) -> tuple[int, dict[str, Histogram]]:
        try:
            arrays = graphs.read_arrays(path)
            return int(arrays["done"]), unpack(arrays)
        except FileNotFoundError:
            return 0, {}
        except (OSError, ValueError, KeyError):
            return 0, {}  # half a file of another version: learnt anew

    def _open(self, names: Collection[str]) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        """A function from rows to all the values that flow."""
        model = copy.deepcopy(self.model)
        present = {value.name for value in (*model.graph.output, *model.graph.input)}
        kind = TensorProto.FLOAT
        for name in names:
            if name not in present:
                model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
        session = graphs.open_session(graphs.save(model, self.folder / "calibrated.onnx"))
        inputs = {value.name for value in model.graph.input}
        asked = [name for name in names if name not in inputs]

        def run(rows: Mapping[str, Array]) -> dict[str, Array]:
            try:
                values = session.run(asked, dict(rows))
            except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
                raise BuildFailed(f"the model refuses the calibration data: {str(error).splitlines()[0]}") from error
            return dict(zip(asked, values, strict=True)) | {name: rows[name] for name in names if name in inputs}

        return run


def _count(values: Mapping[str, Array], histograms: Mapping[str, Histogram]) -> None:
    for name, histogram in histograms.items():
        try:
            histogram.add(values[name])
        except ValueError as error:
            raise BuildFailed(f"tensor '{name}' cannot be calibrated: {error}") from error


def _save(path: Path, done: int, histograms: Mapping[str, Histogram]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp.npz")
    np.savez_compressed(fresh, done=np.int64(done), **pack(histograms))  # type: ignore[arg-type]  # arrays by name
    fresh.replace(path)
