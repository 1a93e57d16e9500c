"""What is asked of a plan."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from engines.backends.tensorrt.plan import Profile, ProfileShapes
from engines.build.errors import BuildFailed
from engines.repository.graph import Graph

MAX_PROFILES: Final = 8
"""Each profile has a context with memory of its own in each instance, and is tuned by itself."""


class Portability(enum.Enum):
    """On what other GPUs a plan shall run; all but NONE cost speed."""

    NONE = "none"
    SAME_COMPUTE_CAPABILITY = "same-compute-capability"
    AMPERE_PLUS = "ampere-plus"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Options of the builder."""

    rows: Sequence[int] = (1, 8, 32)
    """Sizes that batches are padded up to, ascending; each is an optimisation profile. The last is the largest."""
    fixed_rows: bool = True
    """Whether only these sizes will come. False: any up to the largest, for which there is one profile."""
    shapes: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    """Least, best and most of the shape of a row of inputs that have free dimensions besides the batch."""
    workspace_bytes: int = 4 << 30
    """Device memory that a kernel may use for itself."""
    memory_bytes: int = 0
    """Host memory at which the builder is ended. 0: three quarters of the machine's."""
    optimization_level: int = 3
    """0 to 5: how long the builder searches."""
    version_compatible: bool = False
    """Whether later versions of TensorRT with the same major number run it."""
    portability: Portability = Portability.NONE
    weight_streaming: bool = False
    """Whether weights may stay on the host and be streamed, for models larger than the GPU's memory."""
    refit: bool = False
    """Whether weights can be replaced in the plan without building it again."""
    calibration_digest: str = ""
    """Of the data that the file's INT8 scales come from."""

    def names(self) -> list[str]:
        """All of it that changes a plan, by name."""
        found = [f"workspace:{self.workspace_bytes}", f"level:{self.optimization_level}"]
        found += [name for name in ("version_compatible", "weight_streaming", "refit") if getattr(self, name)]
        if self.portability is not Portability.NONE:
            found.append(f"hardware_compatible:{self.portability.name}")
        return found


def profiles_of(graph: Graph, options: PlanOptions) -> list[Profile]:
    """One profile for each number of rows, or one for all. Raises BuildFailed where a shape is left open."""
    sizes = sorted(set(options.rows))
    if not sizes or sizes[0] < 1:
        raise BuildFailed("rows are numbers of 1 or more")
    if not graph.batchable:
        return [_profile(graph, options, None)]
    if not options.fixed_rows:
        return [_profile(graph, options, (1, sizes[-1]))]
    if len(sizes) > MAX_PROFILES:
        raise BuildFailed(f"{len(sizes)} sizes of batches need as many profiles, and more than {MAX_PROFILES} are slow")
    return [_profile(graph, options, (rows, rows)) for rows in sizes]


def _profile(graph: Graph, options: PlanOptions, rows: tuple[int, int] | None) -> Profile:
    found: dict[str, ProfileShapes] = {}
    for tensor in graph.inputs:
        if tensor.has_default:
            continue
        dims = tensor.dims
        if dims is None:
            raise BuildFailed(f"input '{tensor.name}' does not say how many dimensions it has")
        row = dims if rows is None else dims[1:]
        given = options.shapes.get(tensor.name) or ((row, row, row) if -1 not in row else None)
        if given is None:
            raise BuildFailed(f"input '{tensor.name}' is {list(dims)}: give --shape {tensor.name}=LEAST:BEST:MOST")
        _check(tensor.name, row, given)
        lead: tuple[tuple[int, ...], ...] = ((), (), ()) if rows is None else ((rows[0],), (rows[1],), (rows[1],))
        least, best, most = ((*first, *size) for first, size in zip(lead, given, strict=True))
        found[tensor.name] = ProfileShapes(least=least, best=best, most=most)
    return found


def _check(name: str, row: Sequence[int], given: Sequence[Sequence[int]]) -> None:
    fits = len(given) == 3 and all(
        len(shape) == len(row) and all(want in (-1, size) and size > 0 for want, size in zip(row, shape, strict=True))
        for shape in given
    )
    if not fits or not all(a <= b <= c for a, b, c in zip(*given, strict=True)):
        raise BuildFailed(f"--shape {name}: {list(map(list, given))} are not LEAST:BEST:MOST of {list(row)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanJob:
    """What the builder's process is told."""

    model: Path
    plan: Path
    timing_cache: Path
    profiles: Sequence[Profile]
    options: PlanOptions

    def to_json(self) -> str:
        """As the process reads it."""
        plain = asdict(self) | {name: str(getattr(self, name)) for name in ("model", "plan", "timing_cache")}
        plain["options"]["portability"] = self.options.portability.value
        return json.dumps(plain)

    @classmethod
    def from_json(cls, text: str) -> PlanJob:
        """The inverse of `to_json`."""
        plain = json.loads(text)
        options = plain["options"] | {"portability": Portability(plain["options"]["portability"])}
        return cls(
            model=Path(plain["model"]),
            plan=Path(plain["plan"]),
            timing_cache=Path(plain["timing_cache"]),
            profiles=[
                {
                    name: ProfileShapes(**{key: tuple(dims) for key, dims in shapes.items()})
                    for name, shapes in one.items()
                }
                for one in plain["profiles"]
            ],
            options=PlanOptions(**options),
        )
