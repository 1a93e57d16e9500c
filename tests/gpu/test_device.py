"""The protocol's promises on a real device, with every installed way to CUDA."""

from __future__ import annotations

import numpy as np
import pytest

from engines.backends.cuda.api import CudaError, Feature
from engines.backends.cuda.find import Way, find_cuda
from engines.errors import LoadFailed

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("way", [Way.CUDA_PYTHON, Way.PYCUDA])
def test_bytes_come_back_through_two_streams_and_an_event(way: Way) -> None:
    try:
        device = find_cuda(way).device(0)
    except LoadFailed as error:
        pytest.skip(str(error))
    device.bind()
    try:
        there, back, event = device.stream(urgent=True), device.stream(), device.event()
        given, found = device.pinned(1 << 20), device.pinned(1 << 20)
        given[:] = np.random.default_rng(0).integers(0, 256, given.size)
        address = device.allocate(given.size)
        device.copy_in(address, given, there)
        device.record(event, there)
        device.wait(back, event)
        device.copy_out(found, address, back)
        device.synchronize(back)
        assert np.array_equal(found, given)
        assert device.memory_size(address) >= given.size
        assert device.info.total_bytes >= device.memory().total > device.memory().free > 0
        with pytest.raises(CudaError) as failure:
            device.allocate(1 << 50)
        assert failure.value.out_of_memory
        if Feature.GRAPHS in device.features:
            found[:] = 0
            device.begin_capture(back)
            device.copy_out(found, address, back)
            graph = device.end_capture(back)
            device.launch(graph, back)
            device.synchronize(back)
            assert np.array_equal(found, given)
            device.destroy_graph(graph)
        device.free(address)
        for memory in (given, found):
            device.free_pinned(memory)
        device.destroy_event(event)
        for stream in (there, back):
            device.destroy_stream(stream)
    finally:
        device.unbind()
