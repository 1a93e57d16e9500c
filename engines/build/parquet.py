"""Rows from Parquet files: plain tables, tables with lists, and what a running server captured.

In captured files the inputs are the columns `input.NAME`; lines without one of them are left out. Where a model leaves
sizes open, the rows of the most frequent shape are taken, since only rows of one shape can run together.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines.build.errors import BuildFailed
from engines.spec import TensorSpec
from engines.tensor import Array

CAPTURED: Final = b"kairos.capture"
"""Key in the metadata of files that a server captured."""


def read_parquet(path: Path, inputs: Sequence[TensorSpec], labels: str) -> dict[str, Array]:
    """Columns by name, of one file or of all below a directory. Raises BuildFailed.

    Where no column is called like the only input, all but the labels side by side are that input.
    """
    files = sorted(path.rglob("*.parquet"), key=lambda file: file.name) if path.is_dir() else [path]
    tables = [_table(file) for file in files]
    if all(CAPTURED in (table.schema.metadata or {}) for table in tables):
        return _captured(tables, inputs, labels, path)
    parts = [_plain(table, inputs, labels, file) for table, file in zip(tables, files, strict=True)]
    if any(part.keys() != parts[0].keys() for part in parts):
        raise BuildFailed(f"{path}: its Parquet files have different columns")
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except ValueError as error:
        raise BuildFailed(f"{path}: the rows of its Parquet files have different shapes: {error}") from error


def _table(path: Path) -> Any:  # noqa: ANN401  (pyarrow is optional and has no types)
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise BuildFailed("Parquet files need pyarrow: pip install 'kairos[build]'") from error
    try:
        # As a single file: folders called `name=value` would else become columns.
        return parquet.ParquetFile(path).read()
    except (OSError, ValueError) as error:
        raise BuildFailed(f"{path} cannot be read: {error}") from error


def _plain(table: Any, inputs: Sequence[TensorSpec], labels: str, path: Path) -> dict[str, Array]:  # noqa: ANN401
    arrays = {name: _array(table.column(name), f"{path}: '{name}'") for name in table.column_names}
    if len(inputs) == 1 and inputs[0].name not in arrays:
        features = [array for name, array in arrays.items() if name != labels]
        if any(array.ndim != 1 for array in features):
            raise BuildFailed(f"{path} has no column '{inputs[0].name}', and its columns are not all plain numbers")
        arrays = {inputs[0].name: np.stack(features, axis=1)} | {n: a for n, a in arrays.items() if n == labels}
    return {
        name: array.reshape(-1, *_shape_of(name, inputs)) if array.ndim == 2 else array
        for name, array in arrays.items()
    }


def _captured(tables: Sequence[Any], inputs: Sequence[TensorSpec], labels: str, path: Path) -> dict[str, Array]:
    """The inputs of captured lines, under their own names."""
    columns = {spec.name: f"input.{spec.name}" for spec in inputs}
    for name, column in columns.items():
        if any(column not in table.column_names for table in tables):
            raise BuildFailed(f"{path}: input '{name}' was not captured")
        if any(b"redacted" in (table.schema.field(column).metadata or {}) for table in tables):
            raise BuildFailed(f"{path}: input '{name}' was captured as hashes, which nothing can be learnt from")
    if labels in tables[0].column_names:
        columns[labels] = labels
    table = _of_one_shape(_without_nulls(_joined(tables, columns.values(), path), columns.values()), columns.values())
    return dict(_shaped(table, columns, path))


def _joined(tables: Sequence[Any], columns: Iterable[str], path: Path) -> Any:  # noqa: ANN401
    """One table with these columns, and those of their shapes."""
    pa: Any = importlib.import_module("pyarrow")
    wanted = [name for column in columns for name in (column, f"{column}.shape") if name in tables[0].column_names]
    try:
        return pa.concat_tables([table.select(wanted) for table in tables])
    except (KeyError, ValueError) as error:
        raise BuildFailed(f"{path}: its files were captured from models with different inputs: {error}") from error


def _without_nulls(table: Any, columns: Iterable[str]) -> Any:  # noqa: ANN401
    for column in columns:
        if table.column(column).null_count:
            table = table.filter(table.column(column).is_valid())
    return table


def _of_one_shape(table: Any, columns: Iterable[str]) -> Any:  # noqa: ANN401
    """The lines with the most frequent shapes."""
    shapes = [f"{column}.shape" for column in columns if f"{column}.shape" in table.column_names]
    if not shapes or not table.num_rows:
        return table
    lines = [str(line) for line in zip(*(table.column(name).to_pylist() for name in shapes), strict=True)]
    ((frequent, _),) = Counter(lines).most_common(1)
    return table.filter(np.array([line == frequent for line in lines]))


def _shaped(table: Any, columns: dict[str, str], path: Path) -> Iterator[tuple[str, Array]]:  # noqa: ANN401
    for name, column in columns.items():
        array = _array(table.column(column), f"{path}: '{column}'")
        if f"{column}.shape" in table.column_names:
            shape = table.column(f"{column}.shape")[0].as_py() if table.num_rows else [0]
            array = array.reshape(-1, *shape)
        elif about := (table.schema.field(column).metadata or {}).get(b"shape"):
            array = array.reshape(-1, *json.loads(about))
        yield name, array


def _array(column: Any, what: str) -> Array:  # noqa: ANN401
    """A column as numpy has it; lists of one length become its second dimension."""
    pa: Any = importlib.import_module("pyarrow")
    kind = column.type
    if (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)) and not pa.types.is_nested(kind.value_type):
        if column.null_count:
            raise BuildFailed(f"{what} has lines without a value")
        flat = np.concatenate([np.asarray(chunk.flatten()) for chunk in column.chunks] or [np.empty(0)])
        sizes = {kind.list_size} if pa.types.is_fixed_size_list(kind) else set(_lengths(column))
        if len(sizes) > 1:
            raise BuildFailed(f"{what} has lists of different lengths: {sorted(sizes)[:5]}")
        return flat.reshape(len(column), -1) if len(column) else flat.reshape(0, *(sizes or {0}))
    try:
        return np.array(column.to_pylist())
    except ValueError as error:
        raise BuildFailed(f"{what} cannot become an array: {error}") from error


def _lengths(column: Any) -> list[int]:  # noqa: ANN401
    lengths: list[int] = importlib.import_module("pyarrow.compute").list_value_length(column).to_pylist()
    return lengths


def _shape_of(name: str, inputs: Sequence[TensorSpec]) -> tuple[int, ...]:
    """Lists in Parquet are flat; the input says their shape."""
    return next((spec.shape for spec in inputs if spec.name == name and spec.fixed), (-1,))
