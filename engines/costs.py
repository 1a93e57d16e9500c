"""Learned costs on disk, so that a restart knows what an execution takes."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path

from engines.scheduling.latency import CostModel
from engines.spec import ModelSpec

log = logging.getLogger(__name__)


def costs_file(cache_dir: Path, spec: ModelSpec, instances: int, threads: int) -> Path:
    """Where the costs of a model version in one layout are kept."""
    return cache_dir / "costs" / f"{spec.name}-{spec.version}-{spec.digest[:16]}-{instances}x{threads}.json"


def load_costs(path: Path, cost: CostModel) -> bool:
    """Continue from the file. False where there is none, or a broken one, which the log names."""
    try:
        cost.restore(json.loads(path.read_text()))
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        log.warning("%s is not used: %s", path, error)
        return False
    return True


def save_costs(path: Path, cost: CostModel) -> None:
    """Write the file in one step; a disk that refuses costs nothing but knowledge."""
    scratch = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(cost.as_dict()))
        scratch.replace(path)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
