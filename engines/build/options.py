"""What is asked of a build, and what comes of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engines.build.bench import Trial
from engines.build.calibrate import Table
from engines.build.choose import Choice
from engines.build.compare import Comparison
from engines.build.quantize import Scheme
from engines.build.ranges import Method


class Precision(enum.Enum):
    """What to build."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT8_FP16 = "int8+fp16"
    """INT8 where it holds, FP16 elsewhere."""
    AUTO = "auto"
    """Whatever is fastest on the target within the allowed drop."""

    @property
    def quantises(self) -> bool:
        """Whether it needs calibration."""
        return self in (Precision.INT8, Precision.INT8_FP16)


class Target(enum.Enum):
    """What the version will run on."""

    CPU = "cpu"
    TENSORRT = "tensorrt"
    AUTO = "auto"
    """TensorRT where an NVIDIA driver is, else the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What is asked for."""

    model: Path
    name: str
    repository: Path
    precision: Precision = Precision.AUTO
    target: Target = Target.AUTO
    calibration: Path | None = None
    """Representative rows, or a calibration table of an earlier build (.json)."""
    data: Path | None = None
    """Rows that the gate judges by. None: every fourth row of the calibration data, which is then not calibrated on."""
    labels: str = ""
    """Labels of those rows; see `engines.build.data.open_data`."""
    preprocessing: Path | None = None
    """How images become inputs."""
    max_drop: float = 0.01
    """Largest loss that is published: of accuracy with labels, else of agreement, else of explained variance."""
    method: Method | None = None
    """How ranges are chosen. None: all ways are measured."""
    calibration_rows: int = 512
    """Most rows to calibrate on, taken evenly. More cost time and rarely change a range."""
    tries: int = 8
    """Most attempts at keeping sensitive layers in higher precision. 0: none is kept."""
    batches: tuple[int, ...] = (1, 32)
    """Rows at which speed is measured."""
    output: str = ""
    """The output with the scores. Empty: recognised."""
    state_dir: Path
    """Where what was learnt from the data is kept, between attempts and for the next build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Something that was built and measured."""

    label: str
    precision: Precision
    trial: Trial
    comparison: Comparison
    scheme: Scheme | None = None
    table: Table | None = None
    kept: tuple[str, ...] = ()
    """Layers that INT8 would have hurt, in higher precision."""
    layers: Mapping[str, str] = field(default_factory=dict)
    """Precision of each layer."""
    seconds: Mapping[int, float] = field(default_factory=dict)
    """Processor time of an execution, by rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What came of a build."""

    published: Path
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    choice: Choice
    notes: tuple[str, ...]
    target: Target
    judged_rows: int
