"""DrainQueue: admission, choice, company, patience, floors, Triton's knobs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from engines.errors import DeadlineExceeded, Overloaded
from engines.scheduling.drain import DrainQueue
from engines.scheduling.latency import CostModel
from engines.scheduling.policy import DeadlineOptions, Limits, QueuePolicy, TimeoutAction
from engines.scheduling.report import Batch, BatchReport, ClosedBy, Pending, Turn


def seconds(rows: int) -> float:
    return 0.010 + 0.001 * rows


def make(limits: Limits | None = None, *, engines: int = 1, ran: bool = True, **options: object) -> DrainQueue:
    """A queue that knows its costs, and whose last execution has just ended."""
    limits = limits or Limits(max_rows=8)
    cost = CostModel(limits.max_rows, limits.allowed_rows)
    cost.seed({rows: seconds(rows) for rows in cost.sizes})
    queue = DrainQueue(limits, cost, DeadlineOptions(**{"reply_s": 0.0, **options}), engines=engines)  # type: ignore[arg-type]
    if ran:
        queue.offer(Pending(rows=1, arrived=-1.0, deadline=math.inf, due=math.inf), -1.0)
        finish(queue, queue.take(limits.max_wait_s - 1.0), 0.0)
    return queue


def finish(
    queue: DrainQueue, turn: Turn, now: float, *, took: float | None = None, error: str = "", gone: int = 0
) -> None:
    batch = turn.batch
    assert batch is not None
    queue.learn(
        BatchReport(
            model="m", version=1, device="cpu", rows=batch.rows, padded_rows=batch.padded_rows,
            closed_by=batch.closed_by, opened=0.0, started=now - (took or seconds(batch.padded_rows)), finished=now,
            gather_s=0.0, execute_s=0.0, scatter_s=0.0, error=error, number=batch.number, abandoned_rows=gone,
        )
    )  # fmt: skip


def ask(queue: DrainQueue, name: str, left: float = math.inf, now: float = 0.0, **rest: object) -> Pending:
    deadline = now + left
    due = rest.pop("due", deadline)
    pending = Pending(
        rows=rest.pop("rows", 1), arrived=now, deadline=deadline, due=due, waiter=name, **rest  # type: ignore[arg-type]
    )  # fmt: skip
    queue.offer(pending, now)
    return pending


def names(batch: Batch | None) -> list[str]:
    assert batch is not None
    return [member.waiter for member in batch.members]


def refused(turn: Turn) -> list[str]:
    return [refusal.pending.waiter for refusal in turn.refusals]


def crowd(queue: DrainQueue, count: int, left: float, name: str = "x", **rest: object) -> Sequence[Pending]:
    return [ask(queue, f"{name}{number}", left, **rest) for number in range(count)]


def test_an_idle_engine_runs_what_waits_most_urgent_first() -> None:
    queue = make()
    for name, left in (("late", 9.0), ("never", math.inf), ("soon", 1.0)):
        ask(queue, name, left)
    turn = queue.take(0.0)
    assert names(turn.batch) == ["soon", "late", "never"]
    assert turn.batch is not None
    assert turn.batch.closed_by is ClosedBy.DRAINED
    assert repr(queue) == "<DrainQueue [requests: 0 | rows: 0 | running: 1]>"


@pytest.mark.parametrize(
    ("curve", "count", "leaving"),
    [
        (lambda rows: 0.004 * rows, 3, 1),
        (lambda rows: 0.002 + 0.004 * rows, 3, 3),
        (lambda rows: 0.008 * -(-rows // 2), 4, 2),
    ],
    ids=["as much as alone", "saves a start", "pairs"],
)
@pytest.mark.parametrize("left", [1.0, math.inf])
def test_company_that_saves_nothing_does_not_keep_the_first_waiting(
    curve: Callable[[int], float], count: int, leaving: int, left: float
) -> None:
    cost = CostModel(8)
    cost.seed({rows: curve(rows) for rows in cost.sizes})
    queue = DrainQueue(Limits(max_rows=8), cost)
    crowd(queue, count, left)
    batch = queue.take(0.0).batch
    assert batch is not None
    assert batch.rows == leaving
    assert batch.closed_by is (ClosedBy.DRAINED if leaving == count else ClosedBy.ENOUGH)


def test_what_an_idle_engine_cannot_meet_is_refused_at_the_door_without_a_hint() -> None:
    with pytest.raises(Overloaded, match="cannot be met") as refusal:
        ask(make(), "a", 0.0105)
    assert refusal.value.retry_after_s is None
    ask(make(), "b", 0.0115)


def test_what_is_over_is_told_so() -> None:
    with pytest.raises(DeadlineExceeded, match="Request timeout expired"):
        ask(make(), "a", 0.0)


def test_the_running_batch_counts_and_the_hint_says_when_it_will_have_ended() -> None:
    queue = make()
    crowd(queue, 8, 1.0)
    assert queue.take(0.0).batch is not None  # until 0.018
    with pytest.raises(Overloaded) as refusal:
        ask(queue, "a", 0.020, now=0.001)
    assert refusal.value.retry_after_s == pytest.approx(0.018 + 0.011 - 0.020 - 0.001)
    ask(queue, "b", 0.030, now=0.001)


def test_the_reply_takes_its_part_of_the_time() -> None:
    with pytest.raises(Overloaded):
        ask(make(reply_s=0.005), "a", 0.015)
    ask(make(reply_s=0.005), "b", 0.017)


def test_estimates_that_are_old_refuse_nobody_but_one_request_tries() -> None:
    queue = make(ran=False)
    ask(queue, "a", 0.002)
    ask(queue, "b", 0.003)
    turn = queue.take(0.0)
    assert names(turn.batch) == ["a"]
    with pytest.raises(Overloaded):
        ask(queue, "c", 0.002)
    assert refused(Turn(refusals=queue.expire(0.001))) == ["b"]


def test_a_feasible_crowd_is_served_from_its_head() -> None:
    queue = make()
    ask(queue, "tight", 0.014)
    crowd(queue, 9, 1.0)
    turn = queue.take(0.0)
    assert names(turn.batch) == ["tight", "x0", "x1", "x2"]  # five would take too long for the head
    assert turn.batch is not None
    assert turn.batch.closed_by is ClosedBy.DEADLINE


def test_overload_serves_the_largest_batch_and_gives_up_its_heads() -> None:
    queue = make(floor=0.0)
    ask(queue, "tight", 0.0115)
    crowd(queue, 50, 0.040)
    turn = queue.take(0.0)
    assert len(names(turn.batch)) == 8
    assert "tight" not in names(turn.batch)
    assert refused(Turn(refusals=queue.expire(0.0))) == ["tight"]


def test_a_starved_class_heads_a_batch_now_and_then() -> None:
    queue = make(floor=0.5, classes_s=(0.02,))
    ask(queue, "tight", 0.0115)
    crowd(queue, 50, 0.040)
    assert names(queue.take(0.0).batch) == ["tight"]
    assert queue.statistics().classes["<=0.02s"].offered == 1


def test_the_expired_are_refused_and_never_run() -> None:
    queue = make()
    ask(queue, "gone", 0.015)
    ask(queue, "there", 3.0)
    turn = queue.take(0.016)
    assert refused(turn) == ["gone"]
    assert isinstance(turn.refusals[0].error, DeadlineExceeded)
    assert names(turn.batch) == ["there"]


def test_the_alarm_rings_when_somebody_cannot_be_met_any_more() -> None:
    queue = make()
    crowd(queue, 8, 1.0)
    assert queue.take(0.0).batch is not None
    ask(queue, "a", 0.040)
    at = queue.next_expiry()
    assert at == pytest.approx(0.040 - 0.011, abs=1e-5)
    assert not queue.expire(at - 1e-4)
    assert refused(Turn(refusals=queue.expire(at))) == ["a"]
    assert queue.next_expiry() == math.inf


def test_rows_are_counted_and_small_requests_fill_the_rest() -> None:
    queue = make()
    for name, rows in (("a", 5), ("b", 4), ("c", 3)):
        ask(queue, name, 1.0, rows=rows)
    batch = queue.take(0.0).batch
    assert names(batch) == ["a", "c"]
    assert batch is not None
    assert batch.rows == 8


def test_padding_is_filled_before_it_is_paid_for() -> None:
    queue = make(Limits(max_rows=8, allowed_rows=(4, 8)))
    ask(queue, "tight", 0.015)
    crowd(queue, 6, 1.0)
    batch = queue.take(0.0).batch
    assert batch is not None
    assert (batch.rows, batch.padded_rows) == (4, 4)


def test_keys_never_meet_and_the_first_to_start_goes_first() -> None:
    queue = make()
    ask(queue, "a", 1.0, key=1)
    ask(queue, "b", 0.5, key=2)
    ask(queue, "c", 2.0, key=1)
    assert names(queue.take(0.0).batch) == ["b"]
    assert names(queue.take(0.0).batch) == ["a", "c"]


def test_a_lower_level_heads_the_batch_and_others_may_ride_along() -> None:
    queue = make(Limits(max_rows=8, levels=2, default_level=2))
    ask(queue, "patient", 0.5, level=2)
    ask(queue, "urgent", 9.0, level=1)
    assert names(queue.take(0.0).batch) == ["urgent", "patient"]
    crowd(queue, 8, 9.0, level=1)
    ask(queue, "patient", 0.5, level=2)
    assert "patient" not in names(queue.take(0.0).batch)


def test_the_patient_wait_for_nobody_but_the_hurried() -> None:
    queue = make(patience_s=math.inf)
    crowd(queue, 8, 0.5)
    ask(queue, "patient")
    assert "patient" not in names(queue.take(0.0).batch)
    assert names(queue.take(0.0).batch) == ["patient"]


def test_the_patient_get_their_turn_but_not_more_than_their_share() -> None:
    queue = make(patience_s=1.0, patient_share=0.1)
    ask(queue, "old")
    ask(queue, "older")
    crowd(queue, 40, 3.0, now=1.5)
    first = queue.take(2.0)
    assert names(first.batch)[:2] == ["old", "older"]
    finish(queue, first, 2.02)
    ask(queue, "young", now=0.0)
    assert "young" not in names(queue.take(2.03).batch)
    assert names(queue.take(2.3).batch)[0] == "young"


def test_batches_of_the_patient_are_short_while_others_are_in_a_hurry() -> None:
    queue = make(Limits(max_rows=64))
    ask(queue, "hurried", 0.030)
    finish(queue, queue.take(0.0), 0.011)
    crowd(queue, 60, math.inf, now=0.011)
    assert len(names(queue.take(0.011).batch)) == 5  # 15 ms, half of what the hurried gave
    queue = make(Limits(max_rows=64))
    crowd(queue, 60, math.inf)
    assert len(names(queue.take(0.011).batch)) == 60


def test_tenants_above_their_share_are_refused_first() -> None:
    queue = make()
    for _ in range(8):
        crowd(queue, 7, 0.5, tenant="loud")
        ask(queue, "q", 0.5, tenant="quiet")
        finish(queue, queue.take(0.0), 0.018)
    with pytest.raises(Overloaded, match="too many"):
        crowd(queue, 400, 0.5, tenant="loud", now=0.02)
    ask(queue, "q", 0.5, tenant="quiet", now=0.02)


def test_company_is_awaited_but_not_past_the_latest_start() -> None:
    queue = make(Limits(max_rows=4, max_wait_s=0.5))
    ask(queue, "a", 0.111)
    turn = queue.take(0.001)
    assert turn.batch is None
    assert turn.wake_at == pytest.approx(0.1)
    assert queue.take(0.1).batch is not None
    ask(queue, "b", 2.0, now=0.2)
    assert queue.take(0.2).wake_at == pytest.approx(0.7)
    waited = queue.take(0.7).batch
    assert waited is not None
    assert waited.closed_by is ClosedBy.WAITED


def test_a_preferred_size_does_not_wait_for_more() -> None:
    queue = make(Limits(max_rows=8, preferred_rows=(2, 4), max_wait_s=1.0))
    crowd(queue, 5, 9.0)
    batch = queue.take(0.0).batch
    assert batch is not None
    assert (batch.rows, batch.closed_by) == (4, ClosedBy.PREFERRED)
    assert queue.take(0.0).batch is None


def test_a_full_level_refuses_and_others_do_not_care() -> None:
    limits = Limits(max_rows=8, levels=2, default_level=2, level_policies={2: QueuePolicy(max_requests=1)})
    queue = make(limits)
    ask(queue, "a", 1.0, level=2)
    with pytest.raises(Overloaded, match="Exceeds maximum queue size"):
        ask(queue, "b", 1.0, level=2)
    ask(queue, "c", 1.0, level=1)


def test_a_queue_timeout_that_rejects_is_about_waiting_not_about_the_answer() -> None:
    queue = make(Limits(max_rows=8, policy=QueuePolicy(timeout_s=0.002)))
    ask(queue, "a", start_by=0.002)
    assert names(queue.take(0.001).batch) == ["a"]  # though it takes 11 ms
    with pytest.raises(Overloaded):
        ask(queue, "b", start_by=0.003, now=0.001)  # the engine is busy until 0.012
    ask(queue, "c", start_by=0.013, now=0.001)
    turn = queue.take(0.0135)
    assert (turn.batch, refused(turn)) == (None, ["c"])
    assert isinstance(turn.refusals[0].error, DeadlineExceeded)


def test_a_queue_timeout_that_delays_moves_a_request_back() -> None:
    queue = make(Limits(max_rows=1, policy=QueuePolicy(timeout_s=1.0, action=TimeoutAction.DELAY)), patience_s=math.inf)
    ask(queue, "overdue", 20.0, due=1.0)
    ask(queue, "in time", 20.0, due=5.0, now=0.5)
    assert names(queue.take(1.5).batch) == ["in time"]
    assert names(queue.take(1.5).batch) == ["overdue"]
    ask(queue, "overdue", 3.0, due=2.0, now=1.5)
    ask(queue, "in time", 20.0, due=9.0, now=1.5)
    turn = queue.take(5.0)
    assert (names(turn.batch), refused(turn)) == (["in time"], ["overdue"])


def test_withdrawing_leaves_no_trace() -> None:
    queue = make()
    asked = [*crowd(queue, 500, 100.0), *crowd(queue, 500, math.inf)]
    assert all(queue.withdraw(pending) for pending in asked[1:])
    assert not queue.withdraw(asked[1])
    assert repr(queue) == "<DrainQueue [requests: 1 | rows: 1 | running: 0]>"
    assert names(queue.take(0.0).batch) == ["x0"]
    assert queue.take(0.0).batch is None


def test_clear_empties_it() -> None:
    queue = make()
    ask(queue, "a")
    ask(queue, "b", 3.0, key=2)
    assert {pending.waiter for pending in queue.clear()} == {"a", "b"}
    assert queue.take(0.0).batch is None
    assert queue.next_expiry() == math.inf


def test_two_engines_are_planned_with_both() -> None:
    queue = make(engines=2)
    crowd(queue, 8, 1.0)
    assert queue.take(0.0).batch is not None
    ask(queue, "a", 0.012)  # the other engine is idle
    assert names(queue.take(0.0).batch) == ["a"]
    with pytest.raises(Overloaded):
        ask(queue, "b", 0.012)


def test_reports_may_come_after_the_next_turn_or_never() -> None:
    queue = make()
    for number in range(40):
        ask(queue, "a", 9.0, now=number * 1.0)
        assert queue.take(number * 1.0).batch is not None
        assert len(queue.running) == 1


def test_attainment_is_reported_by_class() -> None:
    queue = make(classes_s=(0.1, 1.0))
    ask(queue, "met", 0.1)
    finish(queue, queue.take(0.0), 0.05)
    ask(queue, "late", 0.1, now=1.0)
    finish(queue, queue.take(1.0), 1.2)
    ask(queue, "failed", 0.1, now=2.0)
    finish(queue, queue.take(2.0), 2.01, error="it broke")
    with pytest.raises(Overloaded):
        ask(queue, "refused", 0.001, now=2.01)
    queue.withdraw(ask(queue, "left", 0.5, now=3.0))
    statistics = queue.statistics()
    tight = statistics.classes["<=0.1s"]
    assert (tight.offered, tight.met, tight.late, tight.refused, tight.attainment) == (4, 1, 2, 1, 0.25)
    assert statistics.classes["<=1s"].left == 1
    assert statistics.classes["none"].met == 1
    assert statistics.cost is not None
    assert statistics.cost.executions == 3


def test_callers_who_are_gone_when_the_answer_is_ready_make_it_count_from_earlier() -> None:
    queue = make()
    ask(queue, "in time", 0.014)
    for _ in range(20):
        finish(queue, queue.take(0.0), 0.0, took=0.011, gone=1)
        ask(queue, "a", 1.0)
    with pytest.raises(Overloaded):
        ask(queue, "b", 0.014)
    for _ in range(400):
        finish(queue, queue.take(0.0), 0.0, took=0.011)
        ask(queue, "a", 1.0)
    queue.withdraw(ask(queue, "c", 0.014))


def test_what_callers_did_not_wait_for_is_forgotten_and_never_takes_all_of_their_time() -> None:
    queue = make()
    ask(queue, "first", 1.0)
    for _ in range(40):
        finish(queue, queue.take(0.0), 0.0, took=0.011, gone=1)
        ask(queue, "next", 1.0)
    finish(queue, queue.take(0.0), 0.0, took=0.011)
    with pytest.raises(Overloaded):
        ask(queue, "soon after", 0.014)
    queue.withdraw(ask(queue, "with twice the time that it takes", 0.023))
    queue.withdraw(ask(queue, "later", 0.014, now=20.0))


def test_an_idle_engine_that_refuses_everybody_tries_one() -> None:
    queue = make()
    ask(queue, "ran", 1.0)
    finish(queue, queue.take(0.0), 0.0, took=0.011)
    for number in range(8):
        with pytest.raises(Overloaded):
            ask(queue, f"hopeless {number}", 0.005, now=0.012)
    with pytest.raises(Overloaded):
        ask(queue, "too soon to try again", 0.005, now=0.1)
    ask(queue, "tried", 0.005, now=0.3)
    turn = queue.take(0.3)
    assert names(turn.batch) == ["tried"]
    finish(queue, turn, 0.3, took=0.011)
    with pytest.raises(Overloaded):
        ask(queue, "as before", 0.005, now=0.32)


def test_what_a_busy_loop_adds_to_an_execution_is_not_learned_as_its_cost() -> None:
    queue = make()
    for _ in range(30):
        ask(queue, "next", 9.0)
        batch = queue.take(0.0).batch
        assert batch is not None
        queue.learn(
            BatchReport(
                model="m", version=1, device="cpu", rows=1, padded_rows=1, closed_by=batch.closed_by, opened=0.0,
                started=-0.5, finished=0.0, gather_s=0.001, execute_s=0.010, scatter_s=0.0, number=batch.number,
            )
        )  # fmt: skip
    assert 0.011 <= queue.cost.typical[1] < 0.016
