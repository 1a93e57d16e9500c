"""Whatever happens to it, the deadline scheduler keeps its promises."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engines.errors import DeadlineExceeded, Overloaded
from engines.scheduling.arrivals import Arrival
from engines.scheduling.drain import DrainQueue
from engines.scheduling.latency import CostModel
from engines.scheduling.policy import DeadlineOptions, Limits, QueuePolicy
from engines.scheduling.report import Batch, BatchReport, Pending, Refusal
from engines.scheduling.simulate import Outcome, Simulation, Station

MAX_ROWS = 8
MOST = 30


def seconds(rows: int) -> float:
    return 0.1 + 0.05 * rows


def build(allowed: tuple[int, ...] = (), engines: int = 1, max_wait_s: float = 0.0, most: int = MOST) -> DrainQueue:
    limits = Limits(
        max_rows=MAX_ROWS, allowed_rows=allowed, levels=2, default_level=1, max_wait_s=max_wait_s,
        policy=QueuePolicy(max_requests=most),
    )  # fmt: skip
    cost = CostModel(MAX_ROWS, allowed)
    cost.seed({rows: seconds(rows) for rows in cost.sizes})
    return DrainQueue(limits, cost, DeadlineOptions(reply_s=0.0, floor=0.3), engines=engines)


class DrainMachine(RuleBasedStateMachine):
    """Two engines; offers, withdrawals, turns and ends of executions in any order, against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = build(engines=2, allowed=(2, 4, 8))
        self.now = 0.0
        self.waiting: list[Pending] = []
        self.running: list[tuple[Batch, float]] = []

    def gone(self, member: Pending) -> None:
        assert member in self.waiting, "left twice, or never came"
        self.waiting.remove(member)

    def refused(self, refusals: list[Refusal]) -> None:
        for refusal in refusals:
            pending = refusal.pending
            over = min(pending.deadline, pending.start_by) <= self.now
            assert isinstance(refusal.error, DeadlineExceeded if over else Overloaded)
            self.gone(pending)

    @rule(
        rows=st.integers(1, MAX_ROWS), left=st.sampled_from([0.0, 0.2, 0.5, 1.0, 3.0, math.inf]),
        level=st.integers(1, 2), key=st.integers(0, 1), tenant=st.sampled_from("ab"),
        timeout=st.sampled_from([math.inf, math.inf, 0.4]), delays=st.booleans(),
    )  # fmt: skip
    def offer(self, rows: int, left: float, level: int, key: int, tenant: str, timeout: float, delays: bool) -> None:
        deadline = self.now + left
        member = Pending(
            rows=rows, arrived=self.now, deadline=deadline, level=level, key=key, tenant=tenant,
            due=min(deadline, self.now + timeout) if delays else deadline,
            start_by=math.inf if delays else self.now + timeout,
        )  # fmt: skip
        try:
            self.queue.offer(member, self.now)
        except DeadlineExceeded:
            assert left == 0.0
        except Overloaded as refusal:
            hint = refusal.retry_after_s or 0.0
            full = sum(other.level == level for other in self.waiting) >= MOST
            assert 0.0 <= hint < math.inf
            assert full or min(left, timeout) < math.inf
        else:
            assert left > 0.0
            self.waiting.append(member)

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        if self.waiting:
            member = data.draw(st.sampled_from(self.waiting))
            assert self.queue.withdraw(member)
            assert not self.queue.withdraw(member)
            self.gone(member)

    @rule()
    def take(self) -> None:
        if len(self.running) == 2:
            return
        turn = self.queue.take(self.now)
        self.refused(list(turn.refusals))
        if turn.batch is None:
            assert not self.waiting, "an idle engine, nothing to wait for, and work left lying"
            return
        members = list(turn.batch.members)
        assert 0 < turn.batch.rows == sum(member.rows for member in members) <= MAX_ROWS
        assert turn.batch.padded_rows == min(size for size in (2, 4, 8) if size >= turn.batch.rows)
        assert len({member.key for member in members}) == 1
        for member in members:
            assert member.deadline > self.now, "an expired request was to run"
            assert member.start_by > self.now, "a request was to run after its queue timeout"
            self.gone(member)
        self.running.append((turn.batch, self.now))

    @rule(factor=st.sampled_from([0.7, 1.0, 1.0, 1.6]), which=st.integers(0, 1), failed=st.booleans())
    def end(self, factor: float, which: int, failed: bool) -> None:
        if not self.running:
            return
        batch, started = self.running.pop(which % len(self.running))
        self.now = max(self.now, started + factor * seconds(batch.padded_rows))
        self.queue.learn(report(batch, started, self.now, "it broke" if failed else ""))

    @rule(late=st.sampled_from([0.0, 0.1, 0.7]))
    def alarm(self, late: float) -> None:
        at = self.queue.next_expiry()
        if at < math.inf:
            self.now = max(self.now, at) + late
            self.refused(list(self.queue.expire(self.now)))
            assert all(member.deadline > self.now for member in self.waiting)
            assert self.queue.next_expiry() > self.now - 1e-9, "the alarm would ring for ever"

    @invariant()
    def counts_agree(self) -> None:
        statistics = self.queue.statistics()
        assert statistics.requests == len(self.waiting)
        assert statistics.rows == sum(member.rows for member in self.waiting)
        assert all(member.waiting for member in self.waiting)


def report(batch: Batch, started: float, finished: float, error: str = "") -> BatchReport:
    return BatchReport(
        model="m", version=1, device="cpu", rows=batch.rows, padded_rows=batch.padded_rows, closed_by=batch.closed_by,
        opened=0.0, started=started, finished=finished, gather_s=0.0, execute_s=finished - started, scatter_s=0.0,
        error=error, number=batch.number,
    )  # fmt: skip


DrainMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
test_drain = DrainMachine.TestCase

requests = st.lists(
    st.tuples(
        st.floats(0.0, 0.5), st.sampled_from([0.3, 0.8, 2.0, math.inf]), st.integers(1, MAX_ROWS),
        st.sampled_from(["a", "b"]), st.integers(1, 2),
    ),
    max_size=60,
)  # fmt: skip


def play(drawn: list[tuple[float, float, int, str, int]], max_wait_s: float = 0.0) -> Outcome:
    at = 0.0
    arrivals = []
    for gap, left, rows, tenant, level in drawn:
        at += gap
        arrivals.append(Arrival(at, left, rows, 0, tenant, level))
    station = Station(build(max_wait_s=max_wait_s), lambda rows, _: seconds(rows))
    return Simulation([station], jitter=0.3, seed=1).run(arrivals)


@settings(max_examples=30, deadline=None)
@given(requests, st.sampled_from([0.0, 0.2]))
def test_same_inputs_same_outcome(drawn: list[tuple[float, float, int, str, int]], max_wait_s: float) -> None:
    assert play(drawn, max_wait_s) == play(drawn, max_wait_s)


@settings(max_examples=30, deadline=None)
@given(requests)
def test_who_has_no_deadline_is_always_served(drawn: list[tuple[float, float, int, str, int]]) -> None:
    outcome = play(drawn)
    patient = outcome.classes.get(math.inf)
    if patient is not None:
        assert patient.met >= min(patient.offered, MOST)


def test_the_patient_are_served_through_an_endless_rush() -> None:
    rng = random.Random(1)
    rush = [Arrival(number * 0.02, 1.0, 1, level=1) for number in range(3000)]  # 3 times what can be done
    patient = [Arrival(rng.uniform(0.0, 50.0), math.inf, 1, level=1) for _ in range(20)]
    station = Station(build(most=0), lambda rows, _: seconds(rows))
    outcome = Simulation([station]).run(sorted([*rush, *patient]))
    assert outcome.classes[math.inf].met == 20
    assert max(outcome.classes[math.inf].latencies) < 5.0
    assert outcome.classes[1.0].met > 0.85 * 60.0 * 8 / seconds(8)
