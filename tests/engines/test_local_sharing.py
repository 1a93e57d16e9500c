"""Several LocalInferences on one device: whose turn it is, and that nobody holds the others up."""

from __future__ import annotations

import asyncio
from typing import Any

from engines.backends.fake import fake_spec
from engines.errors import EngineDied, Overloaded
from engines.local import LocalInference
from engines.request import InferResponse
from engines.scheduling.arbiter import Arbiter
from engines.scheduling.drain import DrainQueue
from engines.scheduling.latency import CostModel
from engines.scheduling.policy import DeadlineOptions, Limits
from tests.support.virtual import ManualPool, ask, run_virtual

SPEC = fake_spec()
COST_S = 0.010


class Model:
    """A model whose executions end when they are told to, and should take COST_S."""

    def __init__(self, device: Arbiter, load: float = 1.0, engines: int = 1) -> None:
        self.pool = ManualPool(SPEC, engines)
        pool: Any = self.pool
        limits = Limits(max_rows=4)
        cost = CostModel(4)
        cost.seed({1: COST_S, 4: COST_S})
        queue = DrainQueue(limits, cost, DeadlineOptions(reply_s=0.0), engines=engines)
        self.local = LocalInference(SPEC, pool, queue, limits)
        self.local.share(device, load)

    def start(self, name: str, **rest: Any) -> asyncio.Task[InferResponse]:
        return asyncio.ensure_future(self.local.infer(ask(name, **rest)))

    @property
    def ran(self) -> list[str]:
        return [name for batch in self.pool.batches for name in batch]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_models_take_turns_on_a_device_in_order_of_their_latest_starts() -> None:
    async def main() -> None:
        device = Arbiter(1)
        slow, loose, tight = Model(device), Model(device), Model(device)
        tasks = [slow.start("first")]
        await settle()
        tasks += [loose.start("loose", deadline=now() + 5.0), tight.start("tight", deadline=now() + 1.0)]
        await settle()
        assert (loose.ran, tight.ran) == ([], []), "one batch at a time"
        slow.pool.finish()
        await settle()
        assert (loose.ran, tight.ran) == ([], ["tight"])
        tight.pool.finish()
        await settle()
        assert loose.ran == ["loose"]
        loose.pool.finish()
        await asyncio.gather(*tasks)

    run_virtual(main)


def test_batches_run_side_by_side_as_far_as_the_device_goes() -> None:
    async def main() -> None:
        device = Arbiter(4)
        wide, narrow = Model(device, load=3, engines=2), Model(device, load=1, engines=2)
        tasks = [wide.start("a"), narrow.start("b")]
        await settle()
        tasks += [wide.start("c", deadline=now() + 1.0), narrow.start("d", deadline=now() + 2.0)]
        await settle()
        assert (wide.ran, narrow.ran) == (["a"], ["b"])
        narrow.pool.finish()
        await settle()
        assert narrow.ran == ["b"], "what does not fit yet keeps its turn"
        wide.pool.finish()
        await settle()
        assert (wide.ran, narrow.ran) == (["a", "c"], ["b", "d"])
        wide.pool.finish()
        narrow.pool.finish()
        await asyncio.gather(*tasks)

    run_virtual(main)


def test_those_without_deadlines_get_turns_beside_a_model_that_is_always_asked() -> None:
    async def main() -> None:
        device = Arbiter(1)
        busy, patient = Model(device), Model(device)
        tasks = [busy.start("0", deadline=now() + 0.1), patient.start("patient")]
        for number in range(1, 200):
            await settle()
            tasks.append(busy.start(str(number), deadline=now() + 0.1))
            await asyncio.sleep(COST_S)
            (busy if busy.pool.running else patient).pool.finish()
            if patient.ran:
                break
        assert patient.ran == ["patient"]
        assert len(busy.ran) > 50, "and not before their patience was over"
        await settle()
        for model in (busy, patient):
            while model.pool.running:
                model.pool.finish()
                await settle()
        await asyncio.gather(*tasks)

    run_virtual(main)


def test_a_stuck_engine_holds_up_only_its_own_model() -> None:
    async def main() -> None:
        device = Arbiter(1)
        stuck, other = Model(device), Model(device)
        hopeless = stuck.start("stuck")
        await settle()
        waiting = other.start("other", deadline=now() + 5.0)
        await settle()
        assert other.ran == []
        await asyncio.sleep(1.0)
        assert other.ran == ["other"]
        other.pool.finish()
        assert (await waiting).outputs
        stuck.pool.finish()
        await hopeless

    run_virtual(main)


def test_a_model_without_a_live_engine_does_not_keep_the_turn() -> None:
    async def main() -> None:
        device = Arbiter(1)
        broken, other = Model(device), Model(device)
        first = broken.start("dies")
        await settle()
        broken.pool._engines = 0
        retried = broken.start("waits", deadline=now() + 1.0)
        behind = other.start("other", deadline=now() + 2.0)
        await settle()
        broken.pool._idle = -1  # the engine that dies does not come back
        broken.pool.finish(error=EngineDied("gone"))
        await settle()
        assert other.ran == ["other"]
        other.pool.finish()
        await behind
        for task in (first, retried):
            task.cancel()
        await asyncio.gather(first, retried, return_exceptions=True)

    run_virtual(main)


def test_what_the_neighbours_make_impossible_is_refused_at_once() -> None:
    async def main() -> None:
        device = Arbiter(1)
        one, other = Model(device), Model(device)
        warm = other.start("warm")  # estimates that nothing has confirmed lately refuse nobody
        await settle()
        other.pool.finish()
        await warm
        running = one.start("running")
        await settle()
        late = other.start("late", deadline=now() + 1.5 * COST_S)
        await settle()
        assert isinstance(late.exception(), Overloaded)
        one.pool.finish()
        await running

    run_virtual(main)


def test_a_closed_model_leaves_the_device() -> None:
    async def main() -> None:
        device = Arbiter(1)
        model, other = Model(device), Model(device)
        await model.local.close()
        assert repr(device) == "<Arbiter [queues: 1 | running: 0 of 1]>"
        await other.local.close()

    run_virtual(main)
