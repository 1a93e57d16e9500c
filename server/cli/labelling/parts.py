"""The answers to a dataset, as parts on disk: an interrupted job goes on where it was.

Promise: a part holds the answers to its own rows, all of them, or is not there; so no row is lost and none is there
twice, however often a job is cut short. A folder of parts belongs to one job, down to the bytes of data and model.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines.build.errors import BuildFailed
from engines.tensor import Array

ROWS: Final = 1024
"""Rows of a part: what an interruption may cost."""
_JOB: Final = "job.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be answered, and by whom. Parts of another job are never mixed in."""

    data: str
    """Digest of the rows."""
    rows: int
    model: str
    version: str
    digest: str
    """Of the model's files and configuration."""
    outputs: tuple[str, ...]
    part_rows: int = ROWS

    def ranges(self) -> Iterator[tuple[int, int]]:
        """First row and end of each part."""
        for start in range(0, self.rows, self.part_rows):
            yield start, min(self.rows, start + self.part_rows)


class Parts:
    """The folder beside the result."""

    def __init__(self, result: Path) -> None:
        self._result = result
        self.folder = result.with_name(result.name + ".parts")

    def begun(self) -> Job | None:
        """The job that left this folder; None when there is none. Raises BuildFailed when it cannot be read."""
        try:
            data = json.loads((self.folder / _JOB).read_text(encoding="utf-8"))
            return Job(**{**data, "outputs": tuple(data["outputs"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BuildFailed(f"{self.folder} cannot be read ({error}); remove it to begin anew") from error

    def begin(self, job: Job) -> list[tuple[int, int]]:
        """The ranges that are still to be answered. Raises BuildFailed when the folder is another job's."""
        before = self.begun()
        if before is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                _replace(self.folder / _JOB, json.dumps(asdict(job), indent=1).encode())
            except OSError as error:
                raise BuildFailed(f"{self.folder} cannot be written to: {error.strerror or error}") from error
        elif before != job:
            old, new = asdict(before), asdict(job)
            other = ", ".join(
                f"{name} {old[name]!r} instead of {new[name]!r}" for name in old if old[name] != new[name]
            )
            raise BuildFailed(f"{self.folder} holds parts of another job ({other}); remove it to begin anew")
        return [(start, stop) for start, stop in job.ranges() if not self._part(start).exists()]

    def write(self, start: int, answers: Mapping[str, Array]) -> None:
        """Keep the answers to the rows from `start` on."""
        path = self._part(start)
        fresh = path.with_suffix(".tmp")
        with fresh.open("wb") as file:
            np.savez(file, allow_pickle=False, **answers)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)

    def assemble(self, job: Job) -> dict[str, Array]:
        """All answers in order of the rows. Raises BuildFailed when parts do not fit together."""
        found = []
        for start, stop in job.ranges():
            with np.load(self._part(start), allow_pickle=False) as part:
                found.append({name: part[name] for name in job.outputs})
            if rows_of(found[-1]) != stop - start:
                raise BuildFailed(f"{self._part(start)} has {rows_of(found[-1])} rows instead of {stop - start}")
        return join(found)

    def finish(self, job: Job, answers: Mapping[str, Array]) -> None:
        """Write the result in one step, and remove the parts."""
        fresh = self._result.with_name(f".{self._result.name}.tmp")
        if self._result.suffix == ".parquet":
            write_parquet(fresh, job, answers)
        else:
            with fresh.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **answers)
        fresh.replace(self._result)
        shutil.rmtree(self.folder)

    def _part(self, start: int) -> Path:
        return self.folder / f"{start:012d}.npz"


def rows_of(answers: Mapping[str, Array]) -> int:
    """How many rows these are."""
    return len(next(iter(answers.values())))


def join(answers: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """One after the other. Raises BuildFailed for rows of different shapes."""
    try:
        return {name: np.concatenate([each[name] for each in answers]) for name in answers[0]}
    except ValueError as error:
        raise BuildFailed(f"answers differ in shape from row to row: {error}") from error


def write_parquet(path: Path, job: Job, answers: Mapping[str, Array]) -> None:
    """One column an output; rows of more than one number are lists, flat, their shape in the schema's metadata.

    Raises BuildFailed without pyarrow.
    """
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise BuildFailed("Parquet files need pyarrow: pip install 'kairos[build]'; .npz needs nothing") from error
    columns = {}
    for name, array in answers.items():
        flat = arrow.array(np.ascontiguousarray(array).reshape(-1))
        width = int(np.prod(array.shape[1:], dtype=np.int64))
        columns[name] = flat if array.ndim == 1 else arrow.FixedSizeListArray.from_arrays(flat, width)
    shapes: dict[str, Sequence[int]] = {name: array.shape[1:] for name, array in answers.items()}
    said: dict[str, Any] = {"model": job.model, "version": job.version, "digest": job.digest, "shapes": shapes}
    table = arrow.table(columns).replace_schema_metadata({"kairos": json.dumps(said)})
    parquet.write_table(table, path)


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_bytes(content)
    fresh.replace(path)
