"""Two models side by side: what they answer to the same rows, how fast they are, and what they take."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.backends.options import Accelerator
from engines.backends.processor import Processor, this_processor
from engines.backends.sweep import THRIFTIEST
from engines.build.bench import (
    Bench,
    Trial,
    answers,
    cpu_seconds,
    memory_bytes,
    open_engine,
    open_version,
    usable_batches,
)
from engines.build.calibrate import Progress
from engines.build.compare import Comparison, compare
from engines.build.data import open_data
from engines.build.errors import BuildFailed
from engines.build.prepare import prepare
from engines.repository.layout import version_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two."""

    source: str
    size_bytes: int
    memory_bytes: int
    """Added to a process that opens it and runs 8 rows."""
    seconds: Mapping[int, float]
    """Processor time of an execution, by rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Versus:
    """The result."""

    a: Side
    b: Side
    comparison: Comparison
    max_drop: float

    @property
    def passes(self) -> bool:
        """Whether B may take A's place."""
        return self.comparison.drop <= self.max_drop


@dataclass(frozen=True, slots=True, kw_only=True)
class VersusOptions:
    """What to compare by."""

    data: Path
    labels: str = ""
    preprocessing: Path | None = None
    output: str = ""
    batches: tuple[int, ...] = (1, 8, 32)
    max_drop: float = 0.01
    rows: int = 4096
    """Most rows, taken evenly."""
    accelerator: Accelerator | None = None
    """What B runs on. None: what its configuration says."""


def versus(
    a: Path,
    b: Path,
    options: VersusOptions,
    progress: Progress = lambda *_: None,
    processor: Processor | None = None,
) -> Versus:
    """Compare two models, each a model file, a version's folder, or a model's folder for its newest version.

    Raises BuildFailed.
    """
    processor = processor or this_processor()
    with tempfile.TemporaryDirectory() as scratch:
        trials = {"a": _open(a, Path(scratch) / "a"), "b": _open(b, Path(scratch) / "b")}
        if options.accelerator is not None:
            trials["b"] = trials["b"].on(options.accelerator)
        data = open_data(options.data, trials["a"].definition.spec.inputs, options.labels, options.preprocessing)
        data = data.spread(options.rows)
        engines = {name: open_engine(trial, THRIFTIEST, processor) for name, trial in trials.items()}
        given = {}
        for count, (name, engine) in enumerate(engines.items()):
            progress("answering", count, len(engines))
            given[name] = answers(engine, data)
        progress("answering", len(engines), len(engines))
        comparison = compare(given["a"], given["b"], data.chosen_labels, options.output)
        progress("measuring", 0, 2)
        seconds = cpu_seconds(engines, usable_batches(list(trials.values()), options.batches), data)
        progress("measuring", 1, 2)
        sides = {
            name: Side(
                source=str(path),
                size_bytes=trials[name].size_bytes,
                memory_bytes=memory_bytes(trials[name]),
                seconds=seconds[name],
            )
            for name, path in (("a", a), ("b", b))
        }
        progress("measuring", 2, 2)
    return Versus(a=sides["a"], b=sides["b"], comparison=comparison, max_drop=options.max_drop)


def newest_version(folder: Path) -> Path:
    """The newest version in a model's folder. Raises BuildFailed when there is none."""
    numbers = [version_of(path.name) for path in folder.iterdir() if path.is_dir()]
    if not any(numbers):
        raise BuildFailed(f"{folder} holds no version")
    return folder / str(max(numbers))


def _open(path: Path, folder: Path) -> Trial:
    if path.is_dir():
        return open_version(path if version_of(path.name) else newest_version(path))
    folder.mkdir()
    return Bench(folder).stage(prepare(path, folder.parent, quantising=False).model)
