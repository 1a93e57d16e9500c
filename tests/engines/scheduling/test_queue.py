"""DeadlineQueue: order, sizes, waiting, timeouts, bounds."""

from __future__ import annotations

import math

import pytest

from engines.errors import DeadlineExceeded, Overloaded
from engines.scheduling.policy import Limits, QueuePolicy, TimeoutAction
from engines.scheduling.queue import DeadlineQueue
from engines.scheduling.report import Batch, ClosedBy, Pending


def pending(
    name: str, *, rows: int = 1, deadline: float = math.inf, due: float | None = None, **rest: object
) -> Pending:
    return Pending(rows=rows, arrived=0.0, deadline=deadline, due=deadline if due is None else due, waiter=name, **rest)  # type: ignore[arg-type]


def names(batch: Batch | None) -> list[str]:
    assert batch is not None
    return [member.waiter for member in batch.members]


def test_an_empty_queue_gives_nothing_and_asks_for_nothing() -> None:
    turn = DeadlineQueue(Limits(max_rows=4)).take(now=0.0)
    assert turn.batch is None
    assert turn.wake_at == math.inf


def test_the_most_urgent_goes_first_and_brings_the_next_most_urgent_along() -> None:
    queue = DeadlineQueue(Limits(max_rows=2))
    for name, deadline in (("late", 9.0), ("soon", 1.0), ("middle", 5.0)):
        queue.offer(pending(name, deadline=deadline), now=0.0)
    assert names(queue.take(now=0.0).batch) == ["soon", "middle"]
    assert names(queue.take(now=0.0).batch) == ["late"]


def test_equal_deadlines_keep_the_order_of_arrival() -> None:
    queue = DeadlineQueue(Limits(max_rows=8))
    for name in "abc":
        queue.offer(pending(name), now=0.0)
    assert names(queue.take(now=0.0).batch) == ["a", "b", "c"]


def test_a_full_batch_leaves_at_once_and_is_called_full() -> None:
    queue = DeadlineQueue(Limits(max_rows=4, max_wait_s=0.005))
    for name in "abcd":
        queue.offer(pending(name), now=0.0)
    batch = queue.take(now=0.0).batch
    assert batch is not None
    assert batch.closed_by is ClosedBy.FULL
    assert batch.rows == 4


def test_company_is_awaited_only_as_long_as_allowed() -> None:
    queue = DeadlineQueue(Limits(max_rows=4, max_wait_s=0.005))
    queue.offer(pending("a"), now=0.0)
    turn = queue.take(now=0.001)
    assert turn.batch is None
    assert turn.wake_at == 0.005
    batch = queue.take(now=0.005).batch
    assert names(batch) == ["a"]
    assert batch is not None
    assert batch.closed_by is ClosedBy.WAITED


def test_a_preferred_size_does_not_wait_for_more() -> None:
    queue = DeadlineQueue(Limits(max_rows=8, preferred_rows=(2, 4), max_wait_s=1.0))
    for name in "abcde":
        queue.offer(pending(name), now=0.0)
    batch = queue.take(now=0.0).batch
    assert names(batch) == ["a", "b", "c", "d"]
    assert batch is not None
    assert batch.closed_by is ClosedBy.PREFERRED
    assert queue.take(now=0.0).batch is None


def test_rows_never_exceed_the_most_and_requests_are_not_split() -> None:
    queue = DeadlineQueue(Limits(max_rows=4))
    for name, rows in (("a", 3), ("b", 2), ("c", 1)):
        queue.offer(pending(name, rows=rows), now=0.0)
    assert names(queue.take(now=0.0).batch) == ["a"]
    assert names(queue.take(now=0.0).batch) == ["b", "c"]


def test_batches_are_padded_to_the_next_allowed_size() -> None:
    queue = DeadlineQueue(Limits(max_rows=8, allowed_rows=(2, 8)))
    for name in "abc":
        queue.offer(pending(name), now=0.0)
    batch = queue.take(now=0.0).batch
    assert batch is not None
    assert (batch.rows, batch.padded_rows) == (3, 8)


def test_different_keys_never_meet() -> None:
    queue = DeadlineQueue(Limits(max_rows=8))
    for name, key in (("a", 1), ("b", 2), ("c", 1)):
        queue.offer(pending(name, key=key), now=0.0)
    assert names(queue.take(now=0.0).batch) == ["a", "c"]
    assert names(queue.take(now=0.0).batch) == ["b"]


def test_a_lower_level_goes_first_whatever_the_deadlines() -> None:
    queue = DeadlineQueue(Limits(max_rows=8, levels=2, default_level=2))
    queue.offer(pending("patient", deadline=1.0, level=2), now=0.0)
    queue.offer(pending("urgent", deadline=9.0, level=1), now=0.0)
    assert names(queue.take(now=0.0).batch) == ["urgent"]


def test_the_expired_are_refused_and_never_run() -> None:
    queue = DeadlineQueue(Limits(max_rows=8))
    queue.offer(pending("dead", deadline=1.0), now=0.0)
    queue.offer(pending("alive", deadline=3.0), now=0.0)
    assert queue.next_expiry() == 1.0
    turn = queue.take(now=1.0)
    assert names(turn.batch) == ["alive"]
    assert [refusal.pending.waiter for refusal in turn.refusals] == ["dead"]
    assert isinstance(turn.refusals[0].error, DeadlineExceeded)
    assert queue.next_expiry() == math.inf


def test_an_expired_offer_is_refused_at_the_door() -> None:
    with pytest.raises(DeadlineExceeded, match="Request timeout expired"):
        DeadlineQueue(Limits()).offer(pending("a", deadline=1.0), now=1.0)


def test_a_full_level_refuses_and_others_do_not_care() -> None:
    limits = Limits(max_rows=8, levels=2, default_level=2, level_policies={2: QueuePolicy(max_requests=1)})
    queue = DeadlineQueue(limits)
    queue.offer(pending("a", level=2), now=0.0)
    with pytest.raises(Overloaded, match="Exceeds maximum queue size"):
        queue.offer(pending("b", level=2), now=0.0)
    queue.offer(pending("c", level=1), now=0.0)
    assert queue.withdraw(queue.take(now=0.0).batch.members[0]) is False  # type: ignore[union-attr]
    assert names(queue.take(now=0.0).batch) == ["a"]
    queue.offer(pending("d", level=2), now=0.0)


def test_a_delayed_request_goes_behind_those_in_time() -> None:
    queue = DeadlineQueue(Limits(max_rows=1, policy=QueuePolicy(timeout_s=1.0, action=TimeoutAction.DELAY)))
    queue.offer(pending("overdue", due=1.0), now=0.0)
    queue.offer(pending("in time", due=5.0), now=0.5)
    assert names(queue.take(now=2.0).batch) == ["in time"]
    assert names(queue.take(now=2.0).batch) == ["overdue"]


def test_in_order_means_in_order() -> None:
    queue = DeadlineQueue(Limits(max_rows=8, in_order=True))
    queue.offer(pending("first", deadline=9.0), now=0.0)
    queue.offer(pending("second", deadline=1.0), now=0.0)
    assert names(queue.take(now=0.0).batch) == ["first", "second"]


def test_withdrawing_leaves_no_trace() -> None:
    queue = DeadlineQueue(Limits(max_rows=8))
    crowd = [pending(str(number), deadline=100.0) for number in range(1000)]
    for member in crowd:
        queue.offer(member, now=0.0)
    assert all(queue.withdraw(member) for member in crowd[1:])
    assert not queue.withdraw(crowd[1])
    assert repr(queue) == "<DeadlineQueue [requests: 1 | rows: 1]>"
    assert queue.statistics().oldest_arrival == 0.0
    assert names(queue.take(now=0.0).batch) == ["0"]


def test_clear_empties_it() -> None:
    queue = DeadlineQueue(Limits(max_rows=8))
    queue.offer(pending("a"), now=0.0)
    queue.offer(pending("b", key=2, deadline=3.0), now=0.0)
    assert {member.waiter for member in queue.clear()} == {"a", "b"}
    assert queue.take(now=0.0).batch is None
    assert queue.next_expiry() == math.inf
