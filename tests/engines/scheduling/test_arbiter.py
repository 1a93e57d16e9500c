"""Arbiter: whose turn it is, who is woken."""

from __future__ import annotations

import math

import pytest

from engines.scheduling.arbiter import Arbiter
from engines.scheduling.drain import DrainQueue
from engines.scheduling.latency import CostModel
from engines.scheduling.policy import DeadlineOptions, Limits
from engines.scheduling.report import BatchReport, Pending, Turn


class Bench:
    """An arbiter with two queues, `a` twice as slow as `b`; wakes are noted."""

    def __init__(self, **limits: float) -> None:
        self.arbiter = Arbiter()
        self.woken: list[str] = []
        self.a = self.queue("a", 0.020, **limits)
        self.b = self.queue("b", 0.010)

    def queue(self, name: str, took: float, **limits: float) -> DrainQueue:
        cost = CostModel(4)
        cost.seed({1: took, 4: took})
        queue = DrainQueue(Limits(max_rows=4, **limits), cost, DeadlineOptions(reply_s=0.0))  # type: ignore[arg-type]
        self.arbiter.join(queue, lambda: self.woken.append(name))
        return queue

    def ask(self, queue: DrainQueue, left: float = math.inf, now: float = 0.0) -> None:
        queue.offer(Pending(rows=1, arrived=now, deadline=now + left, due=now + left), now)

    def end(self, queue: DrainQueue, turn: Turn, now: float) -> None:
        batch = turn.batch
        assert batch is not None
        queue.learn(
            BatchReport(
                model="m", version=1, device="", rows=batch.rows, padded_rows=batch.padded_rows,
                closed_by=batch.closed_by, opened=0.0, started=0.0, finished=now, gather_s=0.0, execute_s=0.0,
                scatter_s=0.0, number=batch.number,
            )
        )  # fmt: skip


def test_the_earliest_latest_start_goes_first_not_the_earliest_deadline() -> None:
    bench = Bench()
    bench.ask(bench.b, 0.100)  # must start by 90 ms
    bench.ask(bench.a, 0.105)  # must start by 85 ms
    assert bench.b.take(0.0).batch is None
    assert bench.woken == ["a"]
    turn = bench.a.take(0.0)
    assert turn.batch is not None
    assert bench.b.take(0.001).batch is None, "the device is taken"
    bench.woken.clear()
    bench.end(bench.a, turn, 0.020)
    assert bench.woken == ["b"]
    assert bench.b.take(0.020).batch is not None
    assert repr(bench.arbiter) == "<Arbiter [queues: 2 | running: 1 of 1]>"


def test_an_alone_queue_is_not_held_up() -> None:
    bench = Bench()
    bench.ask(bench.a)
    assert bench.a.take(0.0).batch is not None
    bench.arbiter.leave(bench.b)
    bench.ask(bench.b)
    assert bench.b.take(0.0).batch is not None


def test_who_waits_for_company_holds_nobody_up() -> None:
    bench = Bench(max_wait_s=1.0)
    bench.ask(bench.a, 3.0)
    bench.ask(bench.b, 9.0)
    assert bench.a.take(0.0).wake_at == 1.0
    assert bench.b.take(0.0).batch is not None


def test_refusals_found_on_the_way_are_told_by_their_own_queue() -> None:
    bench = Bench()
    bench.ask(bench.a, now=-1.0)
    bench.end(bench.a, bench.a.take(-1.0), 0.0)
    bench.ask(bench.a, 0.030)
    bench.ask(bench.b, 9.0)
    assert bench.b.take(0.029).batch is not None
    assert bench.woken == ["a"]
    assert len(bench.a.expire(0.029)) == 1


def test_the_share_goes_by_what_waits() -> None:
    bench = Bench()
    assert bench.arbiter.share(bench.a) == 1.0
    for _ in range(3):
        bench.ask(bench.a)
    bench.ask(bench.b)
    assert bench.arbiter.share(bench.a) == pytest.approx(60 / 70)
    assert bench.arbiter.share(bench.b) == pytest.approx(10 / 70)
