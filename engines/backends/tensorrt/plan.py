"""What is kept beside a plan, so that it is known to fit before TensorRT looks at it.

A plan runs only on the kind of GPU and with the version of TensorRT that it was built for. Reading a wrong one costs
a load at best; so `model.plan` has a `model.plan.json` beside it, with the digest of the plan, all that the plan
depends on, and what it takes and gives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from engines.backends.cuda.api import DeviceInfo
from engines.errors import LoadFailed

FORMAT: Final = 1
PLAN_FILE: Final = "model.plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileShapes:
    """One input's shapes in one optimisation profile, the batch dimension included."""

    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]


Profile = Mapping[str, ProfileShapes]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """Everything that a plan depends on: equal keys mean that the same plan would come out."""

    onnx_digest: str
    calibration_digest: str
    tensorrt: str
    """All of its version: plans are not portable between builds of the library either."""
    gpu: str
    sm: str
    driver: str
    profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]]
    flags: Sequence[str]
    """Names of builder flags and other options, in order."""

    def digest(self) -> str:
        """A name for files."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def misfit(self, tensorrt: str, device: DeviceInfo) -> str:
        """Why a plan with this key cannot run here; empty when it can."""
        portable = {name.partition(":")[0] for name in self.flags}
        if "version_compatible" in portable:
            if tensorrt.partition(".")[0] != self.tensorrt.partition(".")[0]:
                return f"it was built with TensorRT {self.tensorrt}, and this is {tensorrt}"
        elif tensorrt != self.tensorrt:
            return f"it was built with TensorRT {self.tensorrt}, and this is {tensorrt}"
        sm = f"{device.sm[0]}.{device.sm[1]}"
        if "hardware_compatible:AMPERE_PLUS" in self.flags:
            return "" if device.sm >= (8, 0) else f"it needs compute capability 8.0, and {device.name} has {sm}"
        if sm != self.sm:
            return f"it was built for compute capability {self.sm} ({self.gpu}), and {device.name} has {sm}"
        if "hardware_compatible:SAME_COMPUTE_CAPABILITY" not in self.flags and device.name != self.gpu:
            return f"it was built for {self.gpu}, and this is {device.name}"
        return ""


def key_of(
    *,
    onnx_digest: str,
    calibration_digest: str,
    tensorrt: str,
    device: DeviceInfo,
    profiles: Sequence[Profile],
    flags: Sequence[str],
) -> PlanKey:
    """The key of a plan built for this device."""
    return PlanKey(
        onnx_digest=onnx_digest,
        calibration_digest=calibration_digest,
        tensorrt=tensorrt,
        gpu=device.name,
        sm=f"{device.sm[0]}.{device.sm[1]}",
        driver=device.driver,
        profiles=[
            {name: [list(s.least), list(s.best), list(s.most)] for name, s in sorted(profile.items())}
            for profile in profiles
        ],
        flags=sorted(flags),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTensor:
    """An input or output; `dims` count the batch dimension, -1 is any size."""

    name: str
    dtype: str
    """The protocol's name."""
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCard:
    """The file beside a plan."""

    key: PlanKey
    plan_sha256: str
    inputs: Sequence[PlanTensor] = field(default_factory=tuple)
    outputs: Sequence[PlanTensor] = field(default_factory=tuple)

    def write(self, plan_file: Path) -> None:
        """Put it beside the plan."""
        card_of(plan_file).write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n")


def card_of(plan_file: Path) -> Path:
    """Where a plan's card is."""
    return plan_file.with_name(plan_file.name + ".json")


def read_card(plan_file: Path) -> PlanCard | None:
    """The plan's card; None where there is none, as beside plans of other tools. Raises LoadFailed for a bad one."""
    path = card_of(plan_file)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise LoadFailed(f"{path.name} cannot be read: {error}") from error
    try:
        raw: dict[str, Any] = json.loads(text)
        if raw.pop("format") != FORMAT:
            raise LoadFailed(f"{path.name} is of a format that this version does not know: build the plan again")
        tensors = {
            kind: tuple(PlanTensor(name=t["name"], dtype=t["dtype"], dims=tuple(t["dims"])) for t in raw.pop(kind))
            for kind in ("inputs", "outputs")
        }
        key = PlanKey(**raw["key"])
        return PlanCard(key=key, plan_sha256=raw["plan_sha256"], inputs=tensors["inputs"], outputs=tensors["outputs"])
    except (ValueError, KeyError, TypeError) as error:
        raise LoadFailed(f"{path.name} is not the card of a plan: {error}") from error


def read_plan(plan_file: Path, tensorrt: str, device: DeviceInfo) -> bytes:
    """The plan, once its card says that it fits here. Raises LoadFailed, saying why it does not."""
    card = read_card(plan_file)
    if card is not None and (why := card.key.misfit(tensorrt, device)):
        raise LoadFailed(f"{plan_file.name} does not fit: {why}; build it again on this machine")
    try:
        plan = plan_file.read_bytes()
    except OSError as error:
        raise LoadFailed(f"{plan_file.name} cannot be read: {error.strerror or error}") from error
    if card is not None and hashlib.sha256(plan).hexdigest() != card.plan_sha256:
        raise LoadFailed(f"{plan_file.name} is not the plan that its card describes: build it again")
    return plan
