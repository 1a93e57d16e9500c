"""Where instances go: by memory, by name, within what is left; and what happens when a device is lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from engines.backends.canary import Canary
from engines.backends.cuda.api import CudaDevice, CudaError
from engines.backends.cuda.fake import FakeCuda, FakeDevice
from engines.backends.fake import fake_spec
from engines.backends.gpus import Gpus, Seats
from engines.backends.options import GpuGroup, GpuOptions, StreamOptions
from engines.backends.streamed import StreamedEngine
from engines.errors import LoadFailed
from tests.support.runners import DoubleRunner

MIB = 1 << 20


def gpus_of(*total_mib: int) -> tuple[Gpus, list[FakeDevice], list[str]]:
    cuda, lost = FakeCuda(len(total_mib)), []  # type: ignore[var-annotated]
    for device, total in zip(cuda.devices, total_mib, strict=True):
        object.__setattr__(device.info, "total_bytes", total * MIB)
    return Gpus(lambda: cuda, lost.append), cuda.devices, lost


def open_on(device: CudaDevice) -> StreamedEngine:
    assert isinstance(device, FakeDevice)
    return StreamedEngine(device, DoubleRunner(device), StreamOptions())


def placed(gpus: Gpus, groups: Sequence[GpuGroup], size_mib: int) -> list[int]:
    return [device.info.index for device in gpus.place(groups, size_mib * MIB)]


def test_instances_go_where_most_memory_is_left() -> None:
    gpus, _, _ = gpus_of(100, 160)
    assert placed(gpus, [GpuGroup(4)], 50) == [1, 1, 0, 1]


def test_groups_name_devices_by_index_and_by_uuid() -> None:
    gpus, _, _ = gpus_of(100, 100, 100)
    assert placed(gpus, [GpuGroup(2, ("2",)), GpuGroup(1, ("GPU-fake-0", "1"))], 10) == [2, 2, 0, 1]
    with pytest.raises(LoadFailed, match="there is no GPU '7': this process sees 0"):
        gpus.place([GpuGroup(1, ("7",))], 0)
    with pytest.raises(LoadFailed, match="more than one GPU 'GPU-fake'"):
        gpus.place([GpuGroup(1, ("GPU-fake",))], 0)


def test_what_does_not_fit_is_not_admitted() -> None:
    gpus, devices, _ = gpus_of(100)
    with pytest.raises(LoadFailed, match=r"needs about 60 MiB.*has 40 MiB left"):
        gpus.place([GpuGroup(2)], 60 * MIB)
    with gpus.promised(devices[0], 50 * MIB):
        assert gpus.free_bytes(devices[0]) == 50 * MIB
        with pytest.raises(LoadFailed, match="has 50 MiB left"):
            gpus.place([GpuGroup(1)], 60 * MIB)
    assert placed(gpus, [GpuGroup(1)], 60) == [0]


def test_without_a_gpu_it_says_what_is_missing() -> None:
    def find() -> FakeCuda:
        raise LoadFailed("a GPU needs cuda-python: install kairos[gpu]")

    with pytest.raises(LoadFailed, match=r"kairos\[gpu\]"):
        Gpus(find).devices()


def test_each_instance_has_its_seat_and_its_successor_gets_the_same() -> None:
    gpus, devices, _ = gpus_of(100, 100)
    seats = Seats(gpus, GpuOptions(groups=(GpuGroup(1, ("0", "1")),)), MIB, open_on)
    assert (len(seats), seats.devices) == (2, ["cuda:0", "cuda:1"])
    first, second = seats(), seats()
    assert (first.device, second.device) == (0, 1)
    with pytest.raises(LoadFailed, match="all 2 instances"):
        seats()
    second.close()
    again = seats()
    assert again.device == 1
    for engine in (first, again):
        engine.close()
    assert [device.leaks for device in devices] == [{}, {}]


def test_an_instance_that_fails_its_canary_is_closed() -> None:
    gpus, devices, _ = gpus_of(100)
    seats = Seats(gpus, GpuOptions(), MIB, open_on)
    given = {"x": np.ones((2, 4), np.float32)}
    seats.canary = Canary(given, {"y": np.full((2, 4), 3.0)}, 0.01)
    with pytest.raises(LoadFailed, match="not to be trusted"):
        seats()
    assert devices[0].leaks == {}
    seats.canary = Canary(given, {"y": np.full((2, 4), 2.0)}, 0.01)
    assert seats().spec == fake_spec()


def test_memory_that_runs_out_and_devices_that_are_lost_are_told_apart() -> None:
    gpus, devices, lost = gpus_of(100)
    seats = Seats(gpus, GpuOptions(), MIB, open_on)
    devices[0].fail("allocate", "CUDA_ERROR_OUT_OF_MEMORY")
    with pytest.raises(LoadFailed, match="too little memory left"):
        seats()
    assert lost == []
    for _ in range(2):
        devices[0]._lost = CudaError("CUDA_ERROR_ECC_UNCORRECTABLE")
        with pytest.raises(LoadFailed, match="cannot be used: CUDA_ERROR_ECC_UNCORRECTABLE"):
            seats()
    assert lost == ["Fake GPU (GPU-fake-0) is lost to this process: CUDA_ERROR_ECC_UNCORRECTABLE"]
