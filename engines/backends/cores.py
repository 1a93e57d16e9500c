"""How many processor cores this process may really use."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")


def available_cores(quota_file: Path = _CGROUP_V2) -> int:
    """Cores by affinity, or by the container's quota where that is less; at least 1."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
    except (OSError, ValueError):
        return max(1, cores)
    if quota == "max":
        return max(1, cores)
    return max(1, min(cores, round(int(quota) / int(period))))
