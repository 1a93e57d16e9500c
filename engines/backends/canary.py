"""Known answers that an engine must give before it is believed.

An engine may load and run, and be wrong: built for other weights, with a kernel that is broken on this GPU, with a
scale that was lost. A version folder may hold `canary.npz`: arrays `in:NAME` and `out:NAME`, and `tolerance`, the
largest ‖answer - known‖ / ‖known‖ of any output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from engines.engine import Engine
from engines.errors import LoadFailed
from engines.tensor import Array

CANARY_FILE: Final = "canary.npz"


@dataclass(frozen=True, slots=True)
class Canary:
    """Inputs of one execution and what must come of them."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    tolerance: float

    def check(self, engine: Engine) -> None:
        """Run it. Raises LoadFailed for an answer that is too far off; one that is not a number always is."""
        inputs = {tensor.name: self.inputs[tensor.name].astype(tensor.dtype.numpy) for tensor in engine.spec.inputs}
        answers = engine.execute(inputs, [tensor.name for tensor in engine.spec.outputs])
        for name, known in self.outputs.items():
            if name not in answers:
                continue
            error = distance(answers[name], known)
            if not error <= self.tolerance:
                raise LoadFailed(
                    f"output '{name}' of '{engine.spec.name}' is off by {error:.2g} from its known answer, "
                    f"and {self.tolerance:.2g} is allowed: the engine is not to be trusted"
                )

    def save(self, folder: Path) -> None:
        """Write it into a version's folder."""
        arrays: dict[str, Array] = {f"in:{name}": array for name, array in self.inputs.items()}
        arrays |= {f"out:{name}": array.astype(np.float64) for name, array in self.outputs.items()}
        np.savez_compressed(folder / CANARY_FILE, tolerance=np.float64(self.tolerance), **arrays)  # type: ignore[arg-type]


def read_canary(folder: Path) -> Canary | None:
    """The canary of a version, if it has one. Raises LoadFailed for one that cannot be read."""
    path = folder / CANARY_FILE
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Canary(
                {name.removeprefix("in:"): arrays[name] for name in arrays if name.startswith("in:")},
                {name.removeprefix("out:"): arrays[name] for name in arrays if name.startswith("out:")},
                float(arrays["tolerance"]),
            )
    except (OSError, ValueError, KeyError) as error:
        raise LoadFailed(f"{CANARY_FILE} cannot be read: {error}") from error


def distance(answer: Array, known: Array) -> float:
    """‖answer - known‖ / ‖known‖ in double precision; infinite for another shape, NaN for what is not a number."""
    if answer.shape != known.shape:
        return np.inf
    exact = known.astype(np.float64)
    difference = float(np.linalg.norm(answer.astype(np.float64) - exact))
    return difference / (float(np.linalg.norm(exact)) or 1.0)
