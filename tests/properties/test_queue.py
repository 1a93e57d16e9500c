"""Whatever happens to it, the queue keeps its promises."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engines.errors import DeadlineExceeded, Overloaded
from engines.scheduling.policy import Limits, QueuePolicy
from engines.scheduling.queue import DeadlineQueue
from engines.scheduling.report import Pending, Refusal

MAX_ROWS = 8


class QueueMachine(RuleBasedStateMachine):
    """Offers, withdrawals and turns in any order, against a plain list of who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = DeadlineQueue(
            Limits(max_rows=MAX_ROWS, levels=2, default_level=1, policy=QueuePolicy(max_requests=20))
        )
        self.now = 0.0
        self.waiting: list[Pending] = []

    def gone(self, member: Pending) -> None:
        assert member in self.waiting, "left twice, or never came"
        self.waiting.remove(member)

    def refused(self, refusals: list[Refusal]) -> None:
        for refusal in refusals:
            assert refusal.pending.deadline <= self.now
            self.gone(refusal.pending)

    @rule(
        rows=st.integers(1, MAX_ROWS), left=st.sampled_from([0.0, 1.0, 2.0, 5.0, float("inf")]),
        level=st.integers(1, 2), key=st.integers(0, 2),
    )  # fmt: skip
    def offer(self, rows: int, left: float, level: int, key: int) -> None:
        deadline = self.now + left
        member = Pending(rows=rows, arrived=self.now, deadline=deadline, due=deadline, level=level, key=key)
        try:
            self.queue.offer(member, self.now)
        except DeadlineExceeded:
            assert left == 0.0
        except Overloaded:
            assert sum(other.level == level for other in self.waiting) >= 20
        else:
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
        turn = self.queue.take(self.now)
        self.refused(list(turn.refusals))
        if turn.batch is None:
            assert not self.waiting
            return
        members = list(turn.batch.members)
        assert 0 < turn.batch.rows == sum(member.rows for member in members) <= MAX_ROWS
        assert len({(member.level, member.key) for member in members}) == 1
        head = members[0]
        assert head.level == min(member.level for member in self.waiting)
        assert head.deadline == min(member.deadline for member in self.waiting if member.level == head.level)
        assert members == sorted(members, key=lambda member: (member.deadline, member.seq))
        for member in members:
            assert member.deadline > self.now, "an expired request was to run"
            self.gone(member)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.refused(list(self.queue.expire(self.now)))
        assert all(member.deadline > self.now for member in self.waiting)

    @invariant()
    def counts_agree(self) -> None:
        statistics = self.queue.statistics()
        assert statistics.requests == len(self.waiting)
        assert statistics.rows == sum(member.rows for member in self.waiting)
        assert self.queue.next_expiry() == min((m.deadline for m in self.waiting), default=float("inf"))


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
test_queue = QueueMachine.TestCase
