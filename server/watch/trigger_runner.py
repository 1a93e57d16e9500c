"""Looks at the rules again and again, and carries out what they lead to, on the event loop and beside its requests.

Promise: an action starts only when its event is on disk; it is tried until it is delivered or given up, over restarts,
always with the event's id. What fails here is logged and counted, and reaches no request.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from server.watch.readings import Reading
from server.watch.trigger_actions import Action, NotDelivered, make_actions
from server.watch.trigger_file import RetryOptions, TriggerOptions
from server.watch.trigger_state import Delivery, Status, TriggerStore
from server.watch.triggers import Key, Phase, Rule, evaluate_all

log = logging.getLogger(__name__)

AT_ONCE: Final = 4
"""Most deliveries that are tried at the same time."""
MAX_PENDING: Final = 1000
"""Most deliveries that wait; the actions of further events are given up at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerStatistics:
    """Since the start, but for what is raised and what waits."""

    events: Mapping[Key, int]
    raised: Mapping[Key, bool]
    """Of all rules, for the model versions that there are."""
    attempts: Mapping[tuple[str, str], int]
    """By action and end: delivered, failed (to be tried again) or given_up."""
    pending: int
    failures: int
    """Times that the rules could not be looked at, or their state not be saved."""


class Triggers:
    """The rules and actions of one server."""

    def __init__(
        self,
        options: TriggerOptions,
        state_dir: Path,
        *,
        clock: Callable[[], float] = time.time,
        chance: random.Random | None = None,
    ) -> None:
        """Raises BadTriggers for secrets and templates that are not there."""
        self.options = options
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="triggers")
        self._actions: Mapping[str, Action] = make_actions(options, self._threads)
        self._store = TriggerStore(state_dir)
        self._clock = clock
        self._chance = chance or random.Random()  # noqa: S311  (spreads retries; no secret)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._trying: set[asyncio.Task[None]] = set()
        self._closing = False
        self._served: frozenset[tuple[str, int]] = frozenset()
        self._events: Counter[Key] = Counter()
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._failures = 0

    def open(self) -> None:
        """Take up what a former process left. On the event loop; blocks for a moment. Raises OSError."""
        self._store.open()
        for delivery in self._store.pending:
            self._start(delivery)

    async def close(self, bound_s: float) -> bool:
        """Let running attempts end, for a while; what is not delivered then is left to the next process.

        Returns whether threads still wait for somebody's answer.
        """
        self._closing = True
        for task in self._tasks - self._trying:
            task.cancel()
        if self._trying:
            await asyncio.wait(self._trying, timeout=bound_s)
        left = bool(self._trying)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._store.close)
        return left

    async def evaluate(self, told: Mapping[tuple[str, int], Sequence[Reading]]) -> None:
        """Look at the rules once. `told`: the readings of each served model version."""
        self._served = frozenset(told)
        try:
            store = self._store
            changed, events = evaluate_all(self.options.rules, store.states, store.origin, told, self._clock())
            if not changed:
                return
            actions = {rule.name: rule.actions for rule in self.options.rules}
            deliveries = [Delivery(event=event, action=name) for event in events for name in actions[event.rule]]
            room = max(0, MAX_PENDING - len(self._tasks))
            if len(deliveries) > room:
                log.error("%d deliveries wait; those of new events are given up", len(self._tasks))
                given_up = [replace(each, status=Status.GIVEN_UP) for each in deliveries[room:]]
                self._attempts.update((each.action, Status.GIVEN_UP.value) for each in given_up)
                deliveries = deliveries[:room] + given_up
            await asyncio.wrap_future(store.save(changed, deliveries))
        except Exception:  # whatever it is, it must not end the looking
            self._failures += 1
            log.exception("the triggers could not be looked at")
            return
        store.states.update(changed)
        self._events.update((event.rule, event.model, event.version) for event in events)
        for delivery in deliveries:
            if delivery.status is Status.PENDING:
                self._start(delivery)

    def raised(self, model: str, version: int) -> list[Rule]:
        """The rules that are raised for a model version."""
        states = self._store.states
        found = [(rule, states.get((rule.name, model, version))) for rule in self.options.rules]
        return [rule for rule, state in found if state is not None and state.phase is Phase.RAISED]

    def statistics(self) -> TriggerStatistics:
        """A snapshot."""
        states = self._store.states
        keys = [
            (rule.name, *version)
            for rule in self.options.rules
            for version in sorted(self._served)
            if rule.model in ("", version[0])
        ]
        return TriggerStatistics(
            events={key: self._events[key] for key in keys} | dict(self._events),
            raised={key: key in states and states[key].phase is Phase.RAISED for key in keys},
            attempts=dict(self._attempts),
            pending=len(self._tasks),
            failures=self._failures,
        )

    def _start(self, delivery: Delivery) -> None:
        task = asyncio.get_running_loop().create_task(self._carry_out(delivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._trying.discard)

    async def _carry_out(self, delivery: Delivery) -> None:
        """Try until there is nothing left to try."""
        task = asyncio.current_task()
        assert task is not None
        while delivery.status is Status.PENDING and not self._closing:
            await asyncio.sleep(max(0.0, delivery.next_at - self._clock()))
            async with self._room:
                self._trying.add(task)
                delivery = await self._attempt(delivery)
                await self._note(delivery)
            self._trying.discard(task)

    async def _note(self, delivery: Delivery) -> None:
        """Count and save how an attempt ended."""
        end = "failed" if delivery.status is Status.PENDING else delivery.status.value
        self._attempts[delivery.action, end] += 1
        if end != Status.DELIVERED.value:
            log.warning("event %s, action %s: %s: %s", delivery.event.id, delivery.action, end, delivery.error)
        try:
            await asyncio.wrap_future(self._store.update(delivery))
        except Exception:  # it is at worst done again by the next process
            self._failures += 1
            log.exception("the end of a delivery could not be saved")

    async def _attempt(self, delivery: Delivery) -> Delivery:
        attempts = delivery.attempts + 1
        action = self._actions.get(delivery.action)
        if action is None:
            return replace(delivery, status=Status.GIVEN_UP, error="there is no such action any more")
        try:
            await action.deliver(delivery.event)
        except NotDelivered as error:
            reason, final = str(error), error.final
        except Exception as error:
            log.exception("action %s failed in an unforeseen way", delivery.action)
            reason, final = repr(error), False
        else:
            return replace(delivery, attempts=attempts, status=Status.DELIVERED, error="")
        if final or attempts >= action.retry.attempts:
            return replace(delivery, attempts=attempts, status=Status.GIVEN_UP, error=reason)
        next_at = self._clock() + back_off_s(action.retry, attempts, self._chance.random())
        return replace(delivery, attempts=attempts, next_at=next_at, error=reason)


def back_off_s(retry: RetryOptions, attempts: int, chance: float) -> float:
    """How long to wait after that many failures: doubling up to a bound, the upper half of it by chance, 0 to 1."""
    wait_s = min(retry.max_wait_s, retry.first_wait_s * 2.0 ** min(attempts - 1, 60))
    return wait_s * (0.5 + 0.5 * chance)
