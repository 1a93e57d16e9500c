"""Copies and computation side by side give right answers, because of every single wait between them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest

from engines.backends.cuda.api import CudaDevice, CudaError, Feature
from engines.backends.cuda.fake import EVERYTHING, FakeCuda, FakeDevice
from engines.backends.options import StreamOptions
from engines.backends.streamed import MAX_CAPTURE_FAILURES, StreamedEngine
from engines.engine import DeviceRows
from engines.errors import EngineDied, EngineFailed, InvalidRequest
from engines.tensor import DeviceMemory, DType
from tests.support.runners import DoubleRunner

SEEDS = range(12)
BATCHES = 24


class Forgetful(FakeDevice):
    """Leaves out one of the four waits between streams of each batch, or one of the waits of the host."""

    def __init__(self, forgets: str, seed: int) -> None:
        super().__init__(seed=seed)
        self._forgets = forgets
        self._waits = 0

    def wait(self, stream: int, event: int) -> None:
        name = ("consumed", "copied_in", "copied_out", "computed")[self._waits % 4]
        self._waits += 1
        if name != self._forgets:
            super().wait(stream, event)

    def wait_event(self, event: int) -> None:
        if self._forgets != "host":
            super().wait_event(event)


def engine_on(device: CudaDevice, **options: object) -> StreamedEngine:
    assert isinstance(device, FakeDevice)
    return StreamedEngine(device, DoubleRunner(device), StreamOptions(**options))  # type: ignore[arg-type]


class Landing:
    """A slot's `drained` whose `wait` lets the flights in front land, as a second thread would meanwhile."""

    def __init__(self, land: Callable[[], object]) -> None:
        self._land = land
        self._set = True

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def wait(self) -> None:
        while not self._set:
            self._land()


def right_answers(engine: StreamedEngine, batches: int = BATCHES, ahead: int = 2) -> bool:
    """Run batches of differing rows with `ahead` of them in flight; whether all answers are right."""
    noise = np.random.default_rng(0)
    flights: deque[tuple[Callable[[], object], np.ndarray]] = deque()
    right: list[bool] = []

    def finish() -> None:
        land, given = flights.popleft()
        right.append(np.array_equal(land()["y"], given * 2))  # type: ignore[index]

    for slot in engine._slots._slots:
        slot.drained = Landing(finish)  # type: ignore[assignment]
    for _ in range(batches):
        given = noise.standard_normal((int(noise.integers(1, 9)), 4)).astype(np.float32)
        gathered = engine.staging().array("x", DType.FP32, given.shape)
        gathered[:] = given
        flights.append((engine.start({"x": gathered}, ["y"]).finish, given))
        if len(flights) == ahead:
            finish()
    while flights:
        finish()
    return len(right) == batches and all(right)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_answers_are_right_in_every_legal_order(seed: int, graphs: bool, ahead: int) -> None:
    device = FakeDevice(seed=seed)
    engine = engine_on(device, graphs=graphs)
    assert right_answers(engine, ahead=ahead)
    engine.close()
    assert device.leaks == {}


@pytest.mark.parametrize("forgets", ["consumed", "copied_in", "copied_out", "computed", "host"])
def test_without_any_one_wait_some_order_gives_wrong_answers(forgets: str) -> None:
    engines = [engine_on(Forgetful(forgets, seed), graphs=False) for seed in range(60)]
    wrong = sum(not right_answers(engine, ahead=3) for engine in engines)
    assert wrong > 0


def test_an_engine_and_a_thread_that_finishes_run_three_batches_at_a_time() -> None:
    device = FakeDevice(seed=3)
    engine = engine_on(device, in_flight=3)
    landed: list[np.ndarray] = []
    flights: deque[object] = deque()
    space = threading.Semaphore(3)
    more = threading.Semaphore(0)

    def land() -> None:
        device.bind()
        for _ in range(30):
            more.acquire()
            landed.append(flights.popleft().finish()["y"])  # type: ignore[attr-defined]
            space.release()

    thread = threading.Thread(target=land)
    thread.start()
    for number in range(30):
        space.acquire()
        engine.staging()
        flights.append(engine.start({"x": np.full((2, 4), number, np.float32)}, ["y"]))
        more.release()
    thread.join()
    assert [float(answer[0, 0]) for answer in landed] == [2.0 * number for number in range(30)]
    engine.close()
    assert device.leaks == {}


def test_outputs_do_not_change_with_the_next_batch() -> None:
    engine = engine_on(FakeDevice())
    first = engine.execute({"x": np.ones((2, 4), np.float32)}, ["y"])["y"]
    for _ in range(4):
        engine.execute({"x": np.zeros((2, 4), np.float32)}, ["y"])
    assert np.array_equal(first, np.full((2, 4), 2, np.float32))


def test_a_graph_is_captured_after_a_warm_up_and_then_replaces_the_launches() -> None:
    device = FakeDevice()
    runner = DoubleRunner(device)
    engine = StreamedEngine(device, runner, StreamOptions(slots=1))
    for _ in range(5):
        engine.execute({"x": np.ones((2, 4), np.float32)}, ["y"])
    assert runner.enqueued == 3  # twice as usual, and the capture
    assert device.calls["launch"] == 3
    assert repr(engine) == "<StreamedEngine fake:1 on GPU-fake-0 [slots: 1, graphs: 1]>"


def test_a_capture_that_fails_is_done_without() -> None:
    device = FakeDevice()
    engine = StreamedEngine(device, DoubleRunner(device, capturable=False), StreamOptions())
    assert right_answers(engine)
    assert device.calls["end_capture"] == MAX_CAPTURE_FAILURES
    assert "graphs: off" in repr(engine)


def test_without_the_feature_there_are_no_graphs() -> None:
    device = FakeDevice(features=EVERYTHING & ~Feature.GRAPHS)
    assert right_answers(engine_on(device))
    assert "begin_capture" not in device.calls


@pytest.mark.parametrize("seed", SEEDS)
def test_outputs_whose_shape_depends_on_the_data_come_back_whole(seed: int) -> None:
    device = FakeDevice(seed=seed)
    engine = StreamedEngine(device, DoubleRunner(device, late=True), StreamOptions(graphs=False, slots=2))
    assert right_answers(engine)
    engine.close()
    assert device.leaks == {}


def test_buffers_grow_where_sizes_are_not_known_before() -> None:
    device = FakeDevice(seed=5)
    engine = engine_on(device)
    for rows in (1, 20, 3, 40):
        for _ in range(3):
            given = np.full((rows, 4), rows, np.float32)
            assert np.array_equal(engine.execute({"x": given}, ["y"])["y"], given * 2)
    engine.close()
    assert device.leaks == {}


def test_parts_on_the_device_never_touch_the_host() -> None:
    device, client = FakeDevice(), FakeCuda(seed=9).devices[0]
    client.bind()
    engine = engine_on(device)
    lent, target = client.allocate(32), client.allocate(32)
    client.view(lent, 32).view(np.float32)[:] = np.arange(8)
    given = DeviceMemory(0, device.open_memory(client.export_memory(lent)), 32, owner=None)  # type: ignore[arg-type]
    taken = DeviceMemory(0, device.open_memory(client.export_memory(target)), 32, owner=None)  # type: ignore[arg-type]
    rows = DeviceRows((2, 4), DType.FP32, [(0, given)], None)
    flight = engine.start({"x": rows}, [], {"y": [(0, taken)]})
    assert flight.finish() == {}
    assert np.array_equal(client.view(target, 32).view(np.float32), np.arange(8) * 2)
    assert "copy_in" not in device.calls
    assert "copy_out" not in device.calls


def test_a_lost_device_ends_the_engine_and_an_ordinary_error_only_the_batch() -> None:
    device = FakeDevice()
    engine = engine_on(device)
    given = {"x": np.ones((2, 4), np.float32)}
    device.fail("copy_in", "CUDA_ERROR_INVALID_VALUE")
    with pytest.raises(EngineFailed, match="INVALID_VALUE") as failure:
        engine.execute(given, ["y"])
    assert failure.value.retryable
    assert right_answers(engine)
    device.fail("record", "CUDA_ERROR_ILLEGAL_ADDRESS", after=2)
    with pytest.raises(EngineDied, match="ILLEGAL_ADDRESS"):
        engine.execute(given, ["y"])
    with pytest.raises(EngineDied):
        engine.execute(given, ["y"])
    engine.close()


def test_a_kernel_that_writes_where_it_must_not_is_found_when_the_batch_is_finished() -> None:
    device = FakeDevice(seed=1)
    engine = engine_on(device)

    def astray() -> None:
        device.view(1, 1)

    device.run(engine._compute, astray)
    with pytest.raises(EngineDied, match="ILLEGAL_ADDRESS"):
        engine.execute({"x": np.ones((2, 4), np.float32)}, ["y"])


def test_memory_that_cannot_be_had_leaves_nothing_behind() -> None:
    for after in range(8):
        device = FakeDevice()
        device.fail("allocate" if after % 2 else "pinned", "CUDA_ERROR_OUT_OF_MEMORY", after=after // 2)
        with pytest.raises(CudaError, match="OUT_OF_MEMORY"):
            engine_on(device)
        assert device.leaks == {}


def test_wrong_shapes_fail_the_batch_and_not_the_next() -> None:
    engine = engine_on(FakeDevice())
    with pytest.raises(InvalidRequest, match="too many"):
        engine.execute({"x": np.ones((101, 4), np.float32)}, ["y"])
    assert right_answers(engine)
