"""Where candidates are tried: each lies in a repository of its own and runs on the engine that would serve it."""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from google.protobuf import text_format

from engines.backends.onnxruntime import OnnxRuntimeEngine, Sessions, SessionSource
from engines.backends.options import Accelerator
from engines.backends.processor import Processor, this_processor
from engines.backends.sweep import THRIFTIEST, Layout, sample_inputs
from engines.build import graphs
from engines.build.data import Dataset
from engines.build.errors import BuildFailed
from engines.errors import InferError, LoadFailed
from engines.repository.config import DEFAULT_MAX_BATCH_SIZE, MODEL_FILE
from engines.repository.definition import Definition, define, read_config
from engines.repository.graph import read_graph
from engines.repository.layout import CONFIG_FILE, look, version_of
from engines.repository.settings import name_accelerator
from engines.tensor import Array
from server.pb import model_config_pb2 as pb

ROUNDS: Final = 9
"""Turns that each candidate gets in a measurement; the median of them counts."""
TURN_S: Final = 0.02
"""Length of a turn, at least one execution."""
_RUN_ROWS: Final = 32


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate as it would be served."""

    definition: Definition
    size_bytes: int

    @property
    def folder(self) -> Path:
        """The version's folder."""
        return self.definition.folder / str(self.definition.version)

    @property
    def accelerator(self) -> Accelerator | None:
        """What it runs on."""
        return self.definition.engine.accelerator

    def on(self, accelerator: Accelerator | None) -> Trial:
        """The same version as it would be if its configuration named this accelerator."""
        engine = replace(self.definition.engine, accelerator=accelerator)
        return replace(self, definition=replace(self.definition, engine=engine))


@dataclass(slots=True)
class Bench:
    """Stages candidates as versions of one model."""

    folder: Path
    """The model's folder; its name is the model's name."""
    processor: Processor = field(default_factory=this_processor)
    _staged: int = 0

    def furnish(self, published: Path) -> None:
        """Bring what lies beside the versions of the published model: its configuration, labels, warm-up data."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not published.is_dir():
            return
        for path in published.iterdir():
            if path.is_dir() and not version_of(path.name) and not path.name.startswith("."):
                shutil.copytree(path, self.folder / path.name)
            elif path.is_file():
                shutil.copy2(path, self.folder / path.name)

    def stage(self, model: onnx.ModelProto) -> Trial:
        """Write the model as the next version and read it as the server would. Raises BuildFailed."""
        self._staged += 1
        folder = self.folder / str(self._staged)
        folder.mkdir()
        graphs.save(model, folder / MODEL_FILE)
        if not (self.folder / CONFIG_FILE).exists():
            (self.folder / CONFIG_FILE).write_text(self._config(folder / MODEL_FILE))
        return open_version(folder)

    def discard(self, trial: Trial) -> None:
        """Remove a candidate that is no longer wanted."""
        shutil.rmtree(trial.folder)

    def _config(self, model_file: Path) -> str:
        rows = DEFAULT_MAX_BATCH_SIZE if read_graph(model_file).batchable else 0
        return (
            "# Written by `kairos build`. What is not said here, the server reads from the ONNX file or measures.\n"
            f'name: "{self.folder.name}"\nbackend: "onnxruntime"\nmax_batch_size: {rows}\n'
            + ("dynamic_batching { }\n" if rows else "")
        )

    def name_accelerator(self, accelerator: Accelerator) -> None:
        """Have the configuration say what all versions run on."""
        path = self.folder / CONFIG_FILE
        named = pb.ModelConfig()
        name_accelerator(named, accelerator)
        path.write_text(path.read_text() + text_format.MessageToString(named))

    def engine(self, trial: Trial) -> OnnxRuntimeEngine:
        """The candidate's engine, with one thread. Raises BuildFailed."""
        return open_engine(trial, THRIFTIEST, self.processor)


def open_version(folder: Path) -> Trial:
    """A version's folder, read as the server reads it. Raises BuildFailed."""
    parent = folder.parent
    try:
        model = look(parent.resolve().name, parent)
        version = model.versions[int(folder.name)]
        definition = define(model, version, read_config(model))
    except (InferError, KeyError, ValueError, OSError) as error:
        raise BuildFailed(f"{folder} does not make a version that can be served: {error}") from error
    files = {definition.model_file, *graphs.external_files(definition.model_file)}
    return Trial(definition, sum(path.stat().st_size for path in files))


def sessions_of(trial: Trial, processor: Processor) -> Sessions:
    """What the server would run the version with."""
    definition = trial.definition
    return Sessions(SessionSource(definition.model_file, definition.spec, definition.engine, processor=processor))


def open_engine(trial: Trial, layout: Layout, processor: Processor) -> OnnxRuntimeEngine:
    """The engine that would serve the version. Raises BuildFailed."""
    return engine_of(sessions_of(trial, processor), layout)


def engine_of(sessions: Sessions, layout: Layout) -> OnnxRuntimeEngine:
    """An engine for the layout. Raises BuildFailed."""
    try:
        return sessions.engine(layout)
    except LoadFailed as error:
        raise BuildFailed(str(error)) from error
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        raise BuildFailed(f"ONNX Runtime cannot run the model: {str(error).splitlines()[0]}") from error


def answers(engine: OnnxRuntimeEngine, data: Dataset) -> dict[str, Array]:
    """All outputs for all rows, rows first. Raises BuildFailed when the model refuses them."""
    spec = engine.spec
    wanted = [tensor.name for tensor in spec.outputs]
    step = min(spec.max_rows, _RUN_ROWS) if spec.batched else 1
    parts: list[Mapping[str, Array]] = []
    for start in range(0, len(data), step):
        rows = data.take(start, start + step)
        try:
            if spec.batched:
                parts.append(engine.execute(rows, wanted))
            else:
                given = engine.execute({name: array[0] for name, array in rows.items()}, wanted)
                parts.append({name: array[None] for name, array in given.items()})
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise BuildFailed(f"the model refuses the data: {str(error).splitlines()[0]}") from error
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in wanted}
    except ValueError as error:
        raise BuildFailed(f"rows are answered in different shapes and cannot be compared: {error}") from error


def cpu_seconds(
    engines: Mapping[str, OnnxRuntimeEngine], batches: Sequence[int], data: Dataset | None = None
) -> dict[str, dict[int, float]]:
    """Seconds of processor time that an execution takes, by engine and rows; engines must have one thread.

    Engines take turns, and processor time is counted, so that what else the machine does falls on all alike. It is
    that of the whole process, as accelerators may work on threads of their own.
    """
    measured: dict[str, dict[int, float]] = {name: {} for name in engines}
    for rows in batches:
        turns: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(ROUNDS):
            for name, engine in engines.items():
                turns[name].append(_turn(engine, _rows(engine, rows, data)))
        for name, seconds in turns.items():
            measured[name][rows] = statistics.median(seconds)
    return measured


def _rows(engine: OnnxRuntimeEngine, rows: int, data: Dataset | None) -> dict[str, Array]:
    spec = engine.spec
    if data is None:
        return sample_inputs(spec, rows)
    if not spec.batched:
        return {name: array[0] for name, array in data.take(0, 1).items()}
    taken = data.take(0, min(rows, len(data)))
    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in taken.items()}


def _turn(engine: OnnxRuntimeEngine, inputs: Mapping[str, Array]) -> float:
    wanted = [tensor.name for tensor in engine.spec.outputs]
    engine.execute(inputs, wanted)
    count = 0
    began = time.process_time()
    while (spent := time.process_time() - began) < TURN_S:
        engine.execute(inputs, wanted)
        count += 1
    return spent / count


def usable_batches(trials: Collection[Trial], wanted: Sequence[int]) -> tuple[int, ...]:
    """Those batch sizes that all of them take; 1 for models without a batch dimension."""
    most = min(max(1, trial.definition.spec.max_rows) for trial in trials)
    return tuple(sorted({min(rows, most) for rows in wanted}))


_MEMORY_SCRIPT: Final = """
import sys
from pathlib import Path
from engines.backends.options import Accelerator
from engines.backends.processor import this_processor
from engines.backends.sweep import THRIFTIEST, sample_inputs
from engines.build.bench import open_engine, open_version, resident_bytes
trial = open_version(Path(sys.argv[1])).on(Accelerator(sys.argv[2]) if sys.argv[2] else None)
before = resident_bytes()
engine = open_engine(trial, THRIFTIEST, this_processor())
spec = engine.spec
engine.execute(sample_inputs(spec, min(8, max(1, spec.max_rows))), [tensor.name for tensor in spec.outputs])
print(resident_bytes() - before)
"""


def resident_bytes() -> int:
    """The memory that this process holds now. Raises BuildFailed where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError) as error:
        raise BuildFailed("memory cannot be measured here: there is no /proc/self/statm") from error
    return pages * resource.getpagesize()


def memory_bytes(trial: Trial) -> int:
    """What opening the model and running 8 rows adds to a process of its own. Raises BuildFailed."""
    accelerator = trial.accelerator.value if trial.accelerator else ""
    command = [sys.executable, "-c", _MEMORY_SCRIPT, str(trial.folder), accelerator]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise BuildFailed(f"memory cannot be measured: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout)
