"""Rows of real inputs, from whatever file they lie in, and their labels.

Promise: what `take` gives has the names, types and shapes of the model's inputs; anything else is refused at once, with
both shapes in the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engines.build import graphs
from engines.build.errors import BuildFailed
from engines.build.images import Preprocessing, find_images, read_image
from engines.build.parquet import read_parquet
from engines.spec import TensorSpec
from engines.tensor import Array, DType, array_of_bytes, join_bytes

Labels: TypeAlias = NDArray[np.int64]
Column: TypeAlias = Callable[[NDArray[np.int64]], Array]
"""Rows of one input by their indices."""

FOLDERS: Final = "folders"
"""Labels of a directory of images: each image's folder, numbered in order of names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Rows, read when they are needed."""

    source: str
    digest: str
    """SHA-256 over the inputs' bytes, or over the files of images and how they are prepared."""
    columns: Mapping[str, Column]
    index: NDArray[np.int64]
    """Which rows of the source these are."""
    labels: Labels | None = None
    """One class for each row of the source."""

    def __len__(self) -> int:
        return len(self.index)

    def take(self, start: int, stop: int) -> dict[str, Array]:
        """Rows `start` to `stop`, as arrays with the rows first."""
        rows = self.index[start:stop]
        return {name: column(rows) for name, column in self.columns.items()}

    @property
    def chosen_labels(self) -> Labels | None:
        """The labels of these rows."""
        return None if self.labels is None else self.labels[self.index]

    def spread(self, most: int) -> Dataset:
        """At most that many rows, evenly from all."""
        if len(self) <= most:
            return self
        return self._with(self.index[np.linspace(0, len(self) - 1, most).astype(np.int64)])

    def split(self, every: int = 4) -> tuple[Dataset, Dataset]:
        """All but every fourth row, and every fourth row."""
        held_out = np.arange(len(self)) % every == every - 1
        return self._with(self.index[~held_out]), self._with(self.index[held_out])

    def constant(self) -> bool:
        """Whether all rows are the same: nothing can be learnt from them."""
        if len(self) < 2:
            return False
        first = self.take(0, 1)
        for start in range(1, len(self), 64):
            rows = self.take(start, start + 64)
            if any(not np.array_equal(np.broadcast_to(first[name], rows[name].shape), rows[name]) for name in first):
                return False
        return True

    def _with(self, index: NDArray[np.int64]) -> Dataset:
        return Dataset(source=self.source, digest=self.digest, columns=self.columns, index=index, labels=self.labels)


def open_data(
    path: Path,
    inputs: Sequence[TensorSpec],
    labels: str = "",
    preprocessing: Path | None = None,
    *,
    as_served: bool = False,
) -> Dataset:
    """Rows for these inputs. Raises BuildFailed.

    With `as_served`, text and values that are not finite pass, as they do when they come in requests.

    `path` is an .npz, .npy or .parquet file, a directory of .parquet files, as a server captures them, or a directory
    of images, which need `preprocessing`. `labels` names an
    array or column of `path`, a .npy file or a text file with one number a line, or is FOLDERS for images.
    """
    if not path.exists():
        raise BuildFailed(f"{path} does not exist")
    captured = path.is_dir() and any(path.rglob("*.parquet"))
    if path.is_dir() and not captured:
        return _open_images(path, inputs, labels, preprocessing)
    arrays = read_parquet(path, inputs, labels) if captured else _read_arrays(path, inputs, labels)
    given = _labels(path, labels, arrays)
    columns = {
        spec.name: _fitted(spec, _pick(spec, inputs, arrays, labels, path), path, as_served=as_served)
        for spec in inputs
    }
    rows = {len(column) for column in columns.values()}
    if len(rows) != 1:
        raise BuildFailed(f"{path}: the inputs have different numbers of rows: {sorted(rows)}")
    return dataset_of(columns, given, source=str(path))


def dataset_of(columns: Mapping[str, Array], labels: Labels | None = None, *, source: str) -> Dataset:
    """Rows that are in memory already. Raises BuildFailed when there are none, or labels for other rows."""
    count = len(next(iter(columns.values())))
    if count == 0:
        raise BuildFailed(f"{source} has no rows")
    if labels is not None and len(labels) != count:
        raise BuildFailed(f"{source} has {count} rows, but there are {len(labels)} labels")
    digest = hashlib.sha256()
    for name, array in sorted(columns.items()):
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        if array.dtype == object:
            digest.update(join_bytes(array.ravel().tolist()))
        else:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return Dataset(
        source=source,
        digest=digest.hexdigest(),
        columns={name: array.__getitem__ for name, array in columns.items()},
        index=np.arange(count),
        labels=labels,
    )


def _read_arrays(path: Path, inputs: Sequence[TensorSpec], labels: str) -> dict[str, Array]:
    try:
        if path.suffix == ".npz":
            return graphs.read_arrays(path)
        if path.suffix == ".npy":
            return {inputs[0].name: np.load(path, allow_pickle=False)}
    except (OSError, ValueError) as error:
        raise BuildFailed(f"{path} cannot be read: {error}") from error
    if path.suffix == ".parquet":
        return read_parquet(path, inputs, labels)
    raise BuildFailed(
        f"{path}: data comes from .npz, .npy and .parquet files, and from directories of images or of Parquet files"
    )


def _pick(
    spec: TensorSpec, inputs: Sequence[TensorSpec], arrays: Mapping[str, Array], labels: str, path: Path
) -> Array:
    if spec.name in arrays:
        return arrays[spec.name]
    others = [name for name in arrays if name != labels]
    if len(inputs) == 1:
        fitting = [name for name in others if _fits(arrays[name].shape[1:], spec.shape) and arrays[name].ndim > 0]
        if len(fitting) == 1:
            return arrays[fitting[0]]
        if len(others) == 1:
            return arrays[others[0]]
    raise BuildFailed(f"{path} has no array '{spec.name}'; it has {', '.join(sorted(arrays)) or 'none'}")


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, size) for size, want in zip(shape, wanted, strict=True))


def _fitted(spec: TensorSpec, array: Array, path: Path, *, as_served: bool = False) -> Array:
    if as_served and spec.shape == (1,) and array.ndim == 1:  # a column of a table
        array = array.reshape(-1, 1)
    if as_served and array.dtype == object and np.issubdtype(spec.dtype.numpy, np.floating):
        try:
            array = array.astype(np.float64)  # where a table has no value there is None, which becomes NaN
        except (TypeError, ValueError) as error:
            raise BuildFailed(f"{path}: input '{spec.name}' is not all numbers: {error}") from error
    if array.ndim == 0 or not _fits(array.shape[1:], spec.shape):
        raise BuildFailed(
            f"{path}: rows for input '{spec.name}' have the shape {list(array.shape[1:])}, "
            f"the model takes {list(spec.shape)}"
        )
    wanted = spec.dtype.numpy
    if as_served and spec.dtype is DType.BYTES and array.dtype.kind in "USO":
        texts = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel().tolist()]
        return array_of_bytes(texts, array.shape)
    if spec.dtype is DType.BYTES or not (array.dtype == wanted or np.can_cast(array.dtype, wanted, "same_kind")):
        raise BuildFailed(f"{path}: input '{spec.name}' is {array.dtype}, the model takes {spec.dtype.label}")
    converted = array.astype(wanted)
    if not as_served and np.issubdtype(wanted, np.floating) and not np.isfinite(converted).all():
        raise BuildFailed(f"{path}: input '{spec.name}' has values that are not finite")
    return converted


def _labels(path: Path, labels: str, arrays: Mapping[str, Array]) -> Labels | None:
    if not labels:
        return None
    if labels in arrays:
        found = arrays[labels]
    elif Path(labels).is_file():
        try:
            found = (
                np.load(labels, allow_pickle=False)
                if labels.endswith(".npy")
                else np.loadtxt(labels, dtype=np.int64, ndmin=1)
            )
        except (OSError, ValueError) as error:
            raise BuildFailed(f"labels: {labels} cannot be read: {error}") from error
    else:
        raise BuildFailed(f"labels: '{labels}' is neither an array of {path} ({', '.join(sorted(arrays))}) nor a file")
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise BuildFailed(f"labels: '{labels}' must be one class number a row, not {found.dtype}{list(found.shape)}")
    return found.astype(np.int64)


def _open_images(path: Path, inputs: Sequence[TensorSpec], labels: str, declared: Path | None) -> Dataset:
    if len(inputs) != 1:
        raise BuildFailed(f"{path}: images can feed a model with one input; this one has {len(inputs)}")
    if declared is None:
        raise BuildFailed(
            f"{path}: how images become inputs must be declared: give --preprocessing FILE.toml with resize, crop, "
            "channels, scale, mean, std and layout, as the model was trained"
        )
    steps = Preprocessing.read(declared)
    files = find_images(path)
    spec = inputs[0]
    if labels not in ("", FOLDERS):
        raise BuildFailed(f"labels: for images only '{FOLDERS}' is known, not '{labels}'")
    classes = {name: number for number, name in enumerate(sorted({file.parent.name for file in files}))}
    digest = hashlib.sha256(repr(steps).encode())
    for file in files:
        digest.update(f"{file.relative_to(path)}\0".encode())
        digest.update(file.read_bytes())

    def read(rows: NDArray[np.int64]) -> Array:
        return _fitted(spec, np.stack([read_image(files[row], steps) for row in rows]), path)

    read(np.arange(1))
    return Dataset(
        source=str(path),
        digest=digest.hexdigest(),
        columns={spec.name: read},
        index=np.arange(len(files)),
        labels=np.array([classes[file.parent.name] for file in files]) if labels else None,
    )
