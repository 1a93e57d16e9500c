"""The scheduler of Kairos: drain-tested earliest deadline first, with admission.

Rule: nothing here reads a clock, awaits, locks or logs. `plan.py` holds the choice of a batch, `latency.py` the costs.
Promises:
- a request leaves exactly once: in a Batch, in a Refusal, or by withdraw();
- what cannot be met is refused at once, at the door or as soon as it is known; nothing expired is ever executed;
- priority levels are outermost: a batch is headed by the most urgent level that has work;
- a request without a deadline takes room that is left, or an engine nobody with a deadline waits for; after
  `patience_s` it is also given a turn, all of them together at most `patient_share` of the engines' time, in batches
  no longer than half of what the tightest recent caller gave. So it never starves, and starves nobody;
- a class of deadlines that overload serves less than `floor` times the mean gets the next batch that it can head;
- when more is asked than can be served, tenants above an equal share are refused first.
Cost: offer and withdraw are O(log n); take is a few dozen binary searches for each (level, key) with work, and
linear in the size of the batch.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from heapq import nsmallest
from typing import TYPE_CHECKING, Final

from engines.errors import DeadlineExceeded, InferError, Overloaded
from engines.scheduling.backlog import Backlog
from engines.scheduling.lane import Lane
from engines.scheduling.latency import CostModel
from engines.scheduling.ledger import Fading, Ledger
from engines.scheduling.plan import Outlook, Plan, choose, whole
from engines.scheduling.policy import DeadlineOptions, Limits
from engines.scheduling.queue import EXPIRED, FULL
from engines.scheduling.report import Batch, BatchReport, ClosedBy, Pending, QueueStatistics, Refusal, Turn
from engines.scheduling.running import Running

if TYPE_CHECKING:
    from engines.scheduling.arbiter import Arbiter

TOO_LATE: Final = "The deadline cannot be met"
CROWDED: Final = "The deadline cannot be met: too many requests are due before it"

_TICK_S: Final = 1e-6
"""Alarms ring this much after the moment they are for, so that rounding cannot make them ring twice."""
_BACKLOG: Final = 3.0
"""Admitted work may exceed what full batches could serve in time by this factor: some of it will leave by itself."""
_HEADROOM: Final = 0.9
"""The same for tenants above their share: the rest of the room is for the others."""
_HAND_OVER: Final = 1.25
_HAND_OVER_S: Final = 0.001
"""What is beyond this is no cost of the execution: the event loop was busy, and would be with smaller batches, too."""
_AS_GOOD: Final = 1.05
"""What smaller batches may cost, as a multiple of all who wait together: these are few, and none of them is late."""
_MAY_BE_GONE: Final = 0.01
"""Share of executed rows whose callers may have left for their deadlines meanwhile."""
_LAG_STEP: Final = 0.5
"""How much of a full execution the lag grows by when all callers of a batch are gone."""
_LAG_MOST: Final = 0.5
"""It takes no more than this share of the time that a request has left."""
_LAG_HALF_LIFE_S: Final = 2.0
_DOUBTS: Final = 8
"""So many refused in a row by an idle engine, and ..."""
_DOUBT_IDLE: Final = 20.0
"""... this many executions' time without any: the next one runs, right or wrong. A twentieth of the engine's time."""
_PLANNED: Final = 3
"""Lanes, by their heads, that are worth a plan: whoever must start first is nearly always among them."""
_LEAST_S: Final = 0.05
_HALF_LIVES: Final = 4.0
"""The rate of arrivals fades by half in this many full executions, and not faster than in `_LEAST_S`."""
_ALIKE: Final = 2.0
"""Callers' times that differ by less than this factor count as alike."""
_FORGET: Final = 0.01
"""What each request takes off the memory of the tightest and the loosest."""
_MEMORY_S: Final = 1.0
"""How long a caller's tight deadline bounds the batches of the patient."""


class DrainQueue:
    """A Scheduler for one model. `arbiter` is set while the model shares its device."""

    def __init__(
        self,
        limits: Limits,
        cost: CostModel | None = None,
        options: DeadlineOptions | None = None,
        *,
        engines: int = 1,
    ) -> None:
        self.limits = limits
        self.options = options or DeadlineOptions()
        self.cost = cost or CostModel(limits.max_rows, limits.allowed_rows, quantile=self.options.quantile)
        self.running = Running(engines)
        """`running.engines` says how many batches can run at a time; the driver may change it."""
        self.arbiter: Arbiter | None = None
        self._ledger = Ledger(self.options.classes_s, self.options.floor)
        self._backlog = Backlog(keep_arrivals=limits.max_wait_s > 0.0)
        self._seq = 0
        self._refusals: list[Refusal] = []
        self._alarm = math.inf
        self._demand = Fading(0.1)
        self._lag = Fading(_LAG_HALF_LIFE_S)
        self._doubts = 0
        """Refused at the door since the last execution, though nothing ran or waited."""
        self._tightest = self._loosest = math.inf
        self._timed_at = -math.inf
        self._ran_at = -math.inf
        self._patient_turn_at = -math.inf

    def __repr__(self) -> str:
        waiting = self._backlog
        return f"<DrainQueue [requests: {waiting.requests} | rows: {waiting.rows} | running: {len(self.running)}]>"

    # What the driver calls

    def offer(self, pending: Pending, now: float) -> None:
        """See Scheduler.offer."""
        self._ledger.offered(pending, now)
        try:
            self._admit(pending, now)
        except InferError:
            self._ledger.refused(pending)
            self._doubts += not (self._backlog.requests or len(self.running))
            raise
        self._seq = pending.seq = self._seq + 1
        self._backlog.add(pending)
        if pending.order < math.inf:
            self._alarm = min(self._alarm, pending.order - self._need(pending, trusted=self._trusts(now)))
            self._note_span(pending.order - now, now)

    def withdraw(self, pending: Pending) -> bool:
        """See Scheduler.withdraw."""
        if not pending.waiting:
            return False
        self._backlog.remove(pending)
        self._ledger.left(pending)
        return True

    def take(self, now: float) -> Turn:
        """See Scheduler.take."""
        self.running.note_idle_engine()
        self._shed(now, now)
        lane, plan = self._next(now)
        if lane is None:
            if self.arbiter is not None:  # it was this queue's turn, but nobody is left
                self.arbiter.wake_next(now)
            return Turn(refusals=self._told())
        target, closed_by, wake_at = self._close(lane, plan, now)
        if closed_by is None:
            return Turn(refusals=self._told(), wake_at=wake_at)
        if self.arbiter is not None and not self.arbiter.grants(self, now):
            return Turn(refusals=self._told(), wake_at=self.arbiter.ask_again_at(now))
        members = self._cut(lane, plan, target, now)
        rows = _rows(members)
        self._ledger.started(members, now)
        self._doubts = 0
        number = self.running.start(members, now, self.cost.means[min(rows, self.limits.max_rows)])
        return Turn(Batch(members, rows, self.cost.padded(rows), closed_by, number), self._told())

    def expire(self, now: float) -> Sequence[Refusal]:
        """See Scheduler.expire."""
        self._shed(now, self._free_at(now))
        return self._told()

    def next_expiry(self) -> float:
        """See Scheduler.next_expiry."""
        return self._alarm + _TICK_S

    def learn(self, report: BatchReport) -> None:
        """See Scheduler.learn. Takes the time from start to end as the cost: with the hand-over, within reason."""
        members = self.running.end(report.number)
        self._ran_at = report.finished
        if not report.error:
            ran_s = report.gather_s + report.execute_s
            took_s = report.finished - report.started
            if ran_s > 0.0:
                took_s = min(took_s, _HAND_OVER * ran_s + _HAND_OVER_S)
            self.cost.observe(report.padded_rows, took_s)
            self._demand.half_life(max(_LEAST_S, _HALF_LIVES * self.cost.means[-1]))
        self._follow_lag(report)
        answered = math.inf if report.error else report.finished + self.options.reply_s - 1e-9
        for pending in members:
            self._ledger.ran(pending, met=answered <= pending.deadline)
        if self.arbiter is not None:
            self.arbiter.wake_next(report.finished)

    def _follow_lag(self, report: BatchReport) -> None:
        """Callers count from when they asked, the server from when it heard, and a busy client or network lies between.

        Callers who are gone when their answer is ready show by how much; the lag is moved until one in a hundred is. It
        also fades by itself: were it to refuse everybody, nothing would run that could show it to be wrong.
        """
        full_s = self.cost.means[-1]
        lag_s, now = self._lag.value(report.finished), report.finished
        gone = report.abandoned_rows / max(1, report.rows) - _MAY_BE_GONE
        self._lag.add(min(max(-lag_s, _LAG_STEP * gone * full_s), full_s - lag_s), now)

    def clear(self) -> Sequence[Pending]:
        """See Scheduler.clear."""
        everyone = list(self._backlog)
        for pending in everyone:
            self.withdraw(pending)
        return everyone

    def statistics(self) -> QueueStatistics:
        """See Scheduler.statistics. Linear in the number of those who wait."""
        oldest = min((pending.arrived for pending in self._backlog), default=math.inf)
        return QueueStatistics(
            self._backlog.requests, self._backlog.rows, oldest, self._ledger.statistics(), self.cost.statistics()
        )

    # What the arbiter asks

    @property
    def waiting_s(self) -> float:
        """What the waiting rows cost in full batches."""
        return self._backlog.rows * (self.cost.means[-1] or 1e-9) / self.limits.max_rows

    @property
    def waits(self) -> bool:
        """Whether anybody waits."""
        return self._backlog.requests > 0

    @property
    def urgency(self) -> float:
        """When the first of those who wait is due, or out of patience; infinite for nobody."""
        lanes = self._backlog.lanes
        due = min((_first_order(lane) for lane in lanes if lane.timed), default=math.inf)
        return min(due, min(map(self._patient_until, lanes), default=math.inf))

    @property
    def has_news(self) -> bool:
        """Whether refusals wait to be told."""
        return bool(self._refusals)

    def latest_start(self, now: float) -> float | None:
        """When the next batch must start, for its deadlines or its patience; None when there is none to run."""
        if len(self.running) >= self.running.engines:
            return None
        self._shed(now, now)
        lane, plan = self._next(now)
        if lane is None or self._close(lane, plan, now)[1] is None:  # nobody, or they wait for company
            return None
        return self._patient_until(lane) if plan is None else plan.latest_start

    def _patient_until(self, lane: Lane) -> float:
        """When the lane's patient ones should be given a turn among other models; infinite when there are none."""
        return max(_patient_since(lane) + self.options.patience_s, self._patient_turn_at)

    # Admission and giving up

    def _admit(self, pending: Pending, now: float) -> None:
        """Raise unless it can be met, and set the order it waits in."""
        if min(pending.deadline, pending.start_by) <= now:
            raise DeadlineExceeded(EXPIRED)
        self._demand.add(pending.rows, now)
        bound = self.limits.policy_of(pending.level).max_requests
        if 0 < bound <= self._backlog.in_level(pending.level):
            raise Overloaded(FULL, retry_after_s=self._drained_in())
        left = pending.deadline - self.options.reply_s - now
        finish_by = now + left - min(self._lag.value(now), _LAG_MOST * left)
        pending.order = min(finish_by, _starts_by(pending) + self.cost.bounds[-1])
        if pending.order == math.inf:
            return
        free_at = self._free_at(now)
        if _is_only_delayed(pending):
            return
        if pending.order < free_at + self._need(pending, trusted=self._trusts(now)):
            raise self._too_late(pending, now, free_at)
        if self._is_crowded(pending, now, free_at):
            raise Overloaded(CROWDED, retry_after_s=self._drained_in())

    def _is_crowded(self, pending: Pending, now: float, free_at: float) -> bool:
        """Whether more is due no later than it than full batches could serve until then."""
        lane = self._backlog.lane_of(pending)
        if lane is None or lane.timed_rows <= self.limits.max_rows or self.cost.means[-1] <= 0.0:
            return False
        rate = self.running.engines * self.limits.max_rows / self.cost.means[-1] * self._share(lane)
        spare = _HEADROOM if self._ledger.above_share(pending, now) else _BACKLOG
        room = rate * spare * (pending.order - free_at) + self.limits.max_rows
        if lane.timed_rows <= room:
            return False
        return lane.timed.rank(pending.order + _TICK_S) * lane.timed_rows / len(lane.timed) > room

    def _shed(self, now: float, free_at: float) -> None:
        """Give up whom an execution from `free_at` on cannot serve in time."""
        trusted = self._trusts(now)
        gone: list[Pending] = []
        for lane in list(self._backlog.lanes):
            while lane.timed:
                pending = lane.timed.first()[2]
                if pending.order >= free_at + self._need(pending, trusted=trusted):
                    break
                if _is_only_delayed(pending) and pending.deadline > now:
                    self._backlog.delay(pending)
                else:
                    self._backlog.remove(pending)
                    gone.append(pending)
        while (late := self._backlog.first_to_expire()) is not None and late.deadline <= now:
            self._backlog.remove(late)
            gone.append(late)
        for pending in gone:
            self._ledger.refused(pending)
            self._refusals.append(Refusal(pending, self._too_late(pending, now, free_at)))
        self._set_alarm(now)

    def _set_alarm(self, now: float) -> None:
        alarm = math.inf
        trusted = self._trusts(now)
        for lane in self._backlog.lanes:
            if lane.timed:
                pending = lane.timed.first()[2]
                alarm = min(alarm, pending.order - self._need(pending, trusted=trusted))
        late = self._backlog.first_to_expire()
        self._alarm = alarm if late is None else min(alarm, late.deadline)

    def _too_late(self, pending: Pending, now: float, free_at: float) -> InferError:
        if min(pending.deadline, pending.start_by) <= now:
            return DeadlineExceeded(EXPIRED)
        need = self._need(pending, trusted=True)
        given = pending.deadline - self.options.reply_s - pending.arrived
        if need > given:  # not even an idle engine could
            return Overloaded(TOO_LATE)
        return Overloaded(TOO_LATE, retry_after_s=max(free_at + need - given - now, self._drained_in(), 0.001))

    def _drained_in(self) -> float:
        return self.waiting_s / self.running.engines / self._share(None)

    def _need(self, pending: Pending, *, trusted: bool) -> float:
        """Seconds before its `order` at which it must start at the latest.

        That is what its execution takes at the least, or nothing when the estimate is too old to refuse anybody; and
        all that is left after the end of its queue timeout.
        """
        need = self.cost.bounds[min(pending.rows, self.limits.max_rows)] if trusted else 0.0
        start_by = _starts_by(pending)
        return need if start_by == math.inf else max(need, pending.order - start_by)

    def _trusts(self, now: float) -> bool:
        """Whether the estimates are fresh enough to refuse anybody."""
        if len(self.running) > 0:
            return True
        idle_s = now - self._ran_at
        if self._doubts >= _DOUBTS and idle_s > _DOUBT_IDLE * self.cost.bounds[1]:
            return False
        return idle_s <= self.options.stale_s

    def _told(self) -> Sequence[Refusal]:
        told, self._refusals = self._refusals, []
        return told

    # Choosing

    def _next(self, now: float) -> tuple[Lane, Plan | None] | tuple[None, None]:
        """Whom to serve next: a lane and the plan for its timed ones, or None when its patient ones have their turn."""
        only = self._only_lane()
        if only is not None and (everybody := whole(only.timed, only.timed_rows, self.cost.bounds, now)) is not None:
            return only, everybody
        waited = self._overdue_lane(now)
        if waited is not None:
            return waited, None
        level = min((lane.level for lane in self._backlog.lanes), default=0)
        lanes = [lane for lane in self._backlog.lanes if lane.level == level]
        if urgent := nsmallest(_PLANNED, (lane for lane in lanes if lane.timed), key=_first_order):
            plans = [(choose(lane.timed, lane.timed_rows, self._outlook(lane, now)), lane) for lane in urgent]
            plan, lane = min(plans, key=lambda pair: pair[0].latest_start)
            return lane, self._raised_to_floor(lane, plan, now)
        if lanes:
            return min(lanes, key=_patient_since), None
        return None, None

    def _only_lane(self) -> Lane | None:
        """The lane in which everybody waits, all of them for a deadline; None when there is no such lane."""
        lanes = self._backlog.lanes
        if len(lanes) != 1:
            return None
        (lane,) = lanes
        return None if lane.patient else lane

    def _overdue_lane(self, now: float) -> Lane | None:
        """The lane whose patient ones have waited too long, when it is their turn."""
        if now < self._patient_turn_at:
            return None
        waited = [lane for lane in self._backlog.lanes if _patient_since(lane) + self.options.patience_s <= now]
        return min(waited, key=_patient_since, default=None)

    def _raised_to_floor(self, lane: Lane, plan: Plan, now: float) -> Plan:
        """A plan that passes over its heads does not, when the first head's class is owed service."""
        if plan.start == 0 or not self._ledger.owed(lane.timed.first()[2], now):
            return plan
        due = lane.timed.first()[0]
        rows = self._survivable(due - now)
        return Plan(0, rows, plan.latest_start) if rows > 0 else plan

    def _outlook(self, lane: Lane, now: float) -> Outlook:
        cost = self.cost
        others = self.running.others_free_at(now)
        share = self._share(lane)
        demand = self._demand.rate(now) * (lane.rows / self._backlog.rows)
        alike = self._loosest < _ALIKE * self._tightest
        return Outlook(now, cost.means, cost.bounds, cost.sizes, others, share, demand, alike)

    def _free_at(self, now: float) -> float:
        """When the next batch is expected to start."""
        own = self.running.free_at(now)
        return own if self.arbiter is None else max(own, self.arbiter.free_at(self, now))

    def _share(self, lane: Lane | None) -> float:
        """What part of the device's time the lane, or all of them, can count on."""
        share = 1.0 if self.arbiter is None else self.arbiter.share(self)
        return share if lane is None or len(self._backlog.lanes) == 1 else share * lane.rows / self._backlog.rows

    def _note_span(self, left: float, now: float) -> None:
        """Keep the least and the most time that recent callers gave."""
        if now > self._timed_at + _MEMORY_S:
            self._tightest = self._loosest = left
        self._tightest = min(left, self._tightest + _FORGET * (left - self._tightest))
        self._loosest = max(left, self._loosest + _FORGET * (left - self._loosest))
        self._timed_at = now

    def _close(self, lane: Lane, plan: Plan | None, now: float) -> tuple[int, ClosedBy | None, float]:
        """How many rows to take from the lane now, and why; or no reason, and when to ask again."""
        limits = self.limits
        if limits.max_rows <= 1:
            return 1, ClosedBy.ALONE, math.inf
        if plan is not None and (plan.start > 0 or plan.rows < lane.timed_rows):
            return plan.rows, ClosedBy.FULL if plan.rows >= limits.max_rows else ClosedBy.DEADLINE, math.inf
        waiting = lane.rows
        if waiting >= limits.max_rows:
            return limits.max_rows, ClosedBy.FULL, math.inf
        reached = max((rows for rows in limits.preferred_rows if rows <= waiting), default=0)
        if reached:
            return reached, ClosedBy.PREFERRED, math.inf
        if limits.max_wait_s > 0.0:
            wake_at = lane.oldest_arrival() + limits.max_wait_s
            if plan is not None:
                wake_at = min(wake_at, plan.latest_start)
            if wake_at > now:
                return 0, None, wake_at
            return waiting, ClosedBy.WAITED, math.inf
        enough = self._enough(waiting)
        return enough, ClosedBy.DRAINED if enough == waiting else ClosedBy.ENOUGH, math.inf

    def _enough(self, rows: int) -> int:
        """The smallest batch that is as good as all of them together, who would all wait for the last one.

        As good: it serves as many rows a second, and the rest can follow it at no more than the same time in all.
        """
        means = self.cost.means
        if rows <= 1 or self.limits.preferred_rows or means[rows] <= 0.0:
            return rows
        most_s, rate = _AS_GOOD * means[rows], rows / (_AS_GOOD * means[rows])
        for size in self.cost.sizes:
            if size >= rows:
                break
            if size >= rate * means[size] > 0.0 and means[size] + means[rows - size] <= most_s:
                return size
        return rows

    # Cutting a batch

    def _cut(self, lane: Lane, plan: Plan | None, target: int, now: float) -> list[Pending]:
        """Take the planned ones out of the lane, and company for them while that harms nobody."""
        if plan is None:
            return self._cut_patient(lane, target, now)
        members = self._backlog.cut_timed(lane, plan.start, min(target, plan.rows))
        if self._backlog.requests and not lane.timed:
            rows = _rows(members)
            due = min(pending.order for pending in members)
            room = self._survivable(min(due - now, max(self.cost.bounds[rows], self._patience())))
            self._add_company(members, lane, room - rows, now)
        return members

    def _cut_patient(self, lane: Lane, target: int, now: float) -> list[Pending]:
        first = next(iter(lane.patient.values()))
        if now > self._timed_at + _MEMORY_S:
            self._tightest = math.inf
        room = max(first.rows, min(target, self._survivable(self._patience())))
        members = self._backlog.cut_patient(lane, room)
        rows = _rows(members)
        self._patient_turn_at = now + self.cost.means[min(rows, self.limits.max_rows)] / self.options.patient_share
        if lane.timed:
            head = lane.timed.first()
            room = self._survivable(head[0] - now) - rows
            if head[2].rows <= room:
                members += self._backlog.cut_timed(lane, 0, room)
        return members

    def _add_company(self, members: list[Pending], lane: Lane, room: int, now: float) -> None:
        """Fill what is left: patient ones of the lane, then lower levels of the same key."""
        ends = now + self.cost.bounds[min(_rows(members) + room, self.limits.max_rows)]
        same_key = sorted((other for other in self._backlog.lanes if other.key == lane.key), key=lambda one: one.level)
        for other in same_key:
            if room <= 0:
                return
            added: list[Pending] = []
            start = other.timed.rank(ends)
            if start < len(other.timed) and next(other.timed.walk(start))[2].rows <= room:
                added = self._backlog.cut_timed(other, start, room)
            added += self._backlog.cut_patient(other, room - _rows(added))
            members += added
            room -= _rows(added)

    def _survivable(self, seconds: float) -> int:
        return bisect_right(self.cost.bounds, seconds) - 1

    def _patience(self) -> float:
        """Seconds that a batch of the patient may take: half of what the tightest recent caller gave."""
        return self._tightest / 2.0


def _is_only_delayed(pending: Pending) -> bool:
    """Whether the end of its queue timeout moves it back instead of out."""
    return pending.due < pending.deadline


def _starts_by(pending: Pending) -> float:
    """When its queue timeout is over, whatever that means for it."""
    return pending.due if _is_only_delayed(pending) else pending.start_by


def _rows(members: Sequence[Pending]) -> int:
    return sum(pending.rows for pending in members)


def _first_order(lane: Lane) -> float:
    """When the first of the lane's timed ones is due."""
    return lane.timed.first()[0]


def _patient_since(lane: Lane) -> float:
    """Arrival of the first of the lane's patient ones; infinite when there is none."""
    return next(iter(lane.patient.values())).arrived if lane.patient else math.inf
