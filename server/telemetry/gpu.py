"""Metrics of NVIDIA GPUs, through NVML; none where there is no driver or the `gpu` extra is not installed."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

from prometheus_client.core import Metric

from server.telemetry.families import Series, counter, gauge

log = logging.getLogger(__name__)

LABELS: Final = ("gpu", "gpu_uuid")


class Gpus:
    """All GPUs that NVML shows to this process. Reading one takes some hundred microseconds."""

    def __init__(self, nvml: Any) -> None:  # noqa: ANN401  (a module without types)
        """Make it from the module pynvml, initialised."""
        self._nvml = nvml
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        self._handles = [((str(index), nvml.nvmlDeviceGetUUID(h)), h) for index, h in enumerate(handles)]

    @classmethod
    def found(cls) -> Gpus | None:
        """The GPUs of this machine, if there are any to be seen."""
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            gpus = cls(nvml)
        except Exception as error:  # noqa: BLE001  (no package, no driver, no permission: no metrics either way)
            log.debug("no GPU metrics: %s", error)
            return None
        return gpus if gpus._handles else None

    def metrics(self) -> Iterator[Metric]:
        """A source for the exporter."""
        return self._families()

    def _families(self) -> Iterator[Metric]:
        nvml = self._nvml
        use = self._read(nvml.nvmlDeviceGetUtilizationRates)
        memory = self._read(nvml.nvmlDeviceGetMemoryInfo)
        gauges: dict[str, tuple[str, list[Series]]] = {
            "utilization_ratio": ("Share of time with a kernel running.", [(gpu, u.gpu / 100) for gpu, u in use]),
            "memory_used_bytes": ("Device memory in use.", [(gpu, m.used) for gpu, m in memory]),
            "memory_total_bytes": ("Device memory.", [(gpu, m.total) for gpu, m in memory]),
            "power_watts": ("Power drawn.", _scaled(self._read(nvml.nvmlDeviceGetPowerUsage), 1e-3)),
            "power_limit_watts": ("Power allowed.", _scaled(self._read(nvml.nvmlDeviceGetEnforcedPowerLimit), 1e-3)),
        }
        for name, (text, series) in gauges.items():
            yield gauge(f"kairos_gpu_{name}", text, series, LABELS)
        energy = _scaled(self._read(nvml.nvmlDeviceGetTotalEnergyConsumption), 1e-3)
        ecc = self._read(self._uncorrected)
        yield gauge("kairos_gpu_uncorrected_ecc_errors", "Memory errors since the driver was loaded.", ecc, LABELS)
        sick = [(gpu, int(pending or failed)) for gpu, (_, _, pending, failed) in self._read(self._remapped)]
        yield gauge(
            "kairos_gpu_needs_reset", "Whether rows of memory wait to be, or cannot be, remapped.", sick, LABELS
        )
        yield counter("kairos_gpu_energy_joules", "Energy used since the driver was loaded.", energy, LABELS)

    def _uncorrected(self, handle: Any) -> int:  # noqa: ANN401  (an opaque handle)
        nvml = self._nvml
        kinds = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
        return int(nvml.nvmlDeviceGetTotalEccErrors(handle, *kinds))

    def _remapped(self, handle: Any) -> tuple[int, int, int, int]:  # noqa: ANN401  (as above)
        corrected, uncorrected, pending, failed = self._nvml.nvmlDeviceGetRemappedRows(handle)
        return corrected, uncorrected, pending, failed

    def _read(self, get: Callable[[Any], Any]) -> list[tuple[tuple[str, str], Any]]:
        """One figure of all GPUs that have it: not all do, and a GPU may fall off the bus."""
        found = []
        for labels, handle in self._handles:
            try:
                found.append((labels, get(handle)))
            except self._nvml.NVMLError as error:
                log.debug("GPU %s: %s", labels[0], error)
        return found


def _scaled(read: list[tuple[tuple[str, str], Any]], factor: float) -> list[Series]:
    return [(labels, value * factor) for labels, value in read]
