"""Engines on the event loop's own thread: who gets there, who has to leave."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Mapping
from types import SimpleNamespace

import pytest

from engines.backends import sweep
from engines.backends.fake import FakeEngine, fake_spec
from engines.engine import Engine
from engines.errors import EngineDied
from engines.pool import EnginePool
from engines.request import InferRequest
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import Array, DType, Tensor
from engines.worker import Job, Outcome

REQUEST = InferRequest(model="fake", version=1, inputs=(Tensor("x", DType.FP32, (1, 4), bytes(16)),), wanted=("y",))


class Threads:
    """Engines that remember which threads ran them."""

    def __init__(self, **faults: object) -> None:
        self.seen: list[int] = []
        self.faults = faults

    def open(self) -> Engine:
        return FakeEngine(fake_spec(), before=self.note, **self.faults)  # type: ignore[arg-type]

    def note(self, inputs: Mapping[str, Array]) -> None:
        self.seen.append(threading.get_ident())


async def run(pool: EnginePool) -> Outcome:
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    pool.submit(Job((REQUEST,), 1, ("y",)), outcome.set_result)
    return await outcome


def test_an_inline_engine_runs_on_the_loops_thread_and_answers_at_once() -> None:
    async def main() -> None:
        threads = Threads()
        pool = EnginePool(threads.open, 1, "fake", inline=True)
        await pool.open()
        done: list[Outcome] = []
        pool.submit(Job((REQUEST,), 1, ("y",)), done.append)
        assert threads.seen == [threading.get_ident()]
        assert done[0].outputs is not None
        assert pool.has_idle
        await pool.close()

    asyncio.run(main())


def test_an_inline_engine_that_holds_up_the_loop_moves_to_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.pool.INLINE_MAX_S", -1.0)

    async def main() -> None:
        threads = Threads()
        pool = EnginePool(threads.open, 1, "fake", inline=True)
        await pool.open()
        freed = asyncio.Event()
        pool.freed = freed.set
        assert (await run(pool)).error is None
        await freed.wait()
        await run(pool)
        assert threads.seen[0] == threading.get_ident() != threads.seen[1]
        await pool.close()

    asyncio.run(main())


def test_an_inline_engine_that_a_busy_machine_holds_up_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # a second from one look to the next, though nothing is computed
    monkeypatch.setattr("engines.worker.time", SimpleNamespace(monotonic=lambda: next(clock), thread_time=lambda: 0.0))

    async def main() -> None:
        threads = Threads()
        pool = EnginePool(threads.open, 1, "fake", inline=True)
        await pool.open()
        for _ in range(2):
            assert (await run(pool)).execute_s >= 1.0
        assert set(threads.seen) == {threading.get_ident()}
        await pool.close()

    asyncio.run(main())


def test_an_inline_engine_that_dies_is_replaced() -> None:
    async def main() -> None:
        pool = EnginePool(Threads(dies_on=1).open, 1, "fake", inline=True)
        await pool.open()
        freed = asyncio.Event()
        pool.freed = freed.set
        assert isinstance((await run(pool)).error, EngineDied)
        await freed.wait()
        assert pool.statistics().replaced == 1
        await pool.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("rate", "spec", "inline"),
    [
        (1e6, fake_spec(), True),
        (1e3, fake_spec(), False),
        (1e6, ModelSpec("text", 1, "fake", (TensorSpec("x", DType.BYTES, (1,)),), (), 8), False),
        (1e6, ModelSpec("any", 1, "fake", (TensorSpec("x", DType.FP32, (-1,)),), (), 8), False),
    ],
    ids=["quick", "slow", "strings of any length", "rows of any shape"],
)
def test_only_steady_and_quick_models_run_inline(
    monkeypatch: pytest.MonkeyPatch, rate: float, spec: ModelSpec, *, inline: bool
) -> None:
    monkeypatch.setattr(sweep, "_executions_per_second", lambda *_: rate)
    layout, _ = sweep.choose(spec, [sweep.Layout(1, 1)], lambda _: FakeEngine(spec, answer=dict))
    assert layout.inline is inline


def test_quick_models_get_no_second_engine_and_slow_ones_do_if_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = sweep.layouts(2, 0, 0)
    assert candidates == [sweep.Layout(1, 1), sweep.Layout(1, 2), sweep.Layout(2, 1)]
    for rates, best in (
        ({1: 5000.0, 2: 9e9}, sweep.Layout(1, 1)),  # quick: more is not even tried
        ({1: 100.0, 2: 105.0}, sweep.Layout(1, 1)),  # not worth a second core
        ({1: 100.0, 2: 180.0}, sweep.Layout(2, 1)),
    ):
        monkeypatch.setattr(
            sweep, "_executions_per_second", lambda engine, inputs, callers, rates=rates: rates[callers]
        )
        assert sweep.choose(fake_spec(), candidates, lambda _: FakeEngine(fake_spec()))[0] == best


@pytest.mark.parametrize(("cores", "instances", "threads"), [(1, 0, 0), (2, 0, 0), (6, 0, 0), (8, 2, 0), (8, 0, 4)])
def test_layouts_never_ask_for_more_cores_than_there_are(cores: int, instances: int, threads: int) -> None:
    found = sweep.layouts(cores, instances, threads)
    assert found
    assert all(layout.instances * layout.threads <= cores for layout in found)
    assert all(layout.instances == instances for layout in found if instances)
    assert all(layout.threads == threads for layout in found if threads)


def test_what_was_asked_for_is_obeyed_even_beyond_the_cores() -> None:
    assert sweep.layouts(2, 4, 2) == [sweep.Layout(4, 2)]
