"""Turns: how many calls start in one, who waits, who is refused, and when all is as before."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from server.access.rpcs import RPCS
from server.transport.http2.turns import (
    FIRST,
    HURRY_S,
    LEAST,
    LONGEST_S,
    PASSES,
    SHORT,
    SHORTEST_S,
    SUSTAINED_S,
    WAIT,
    Turns,
)
from server.transport.listen import ListenOptions, create_server

EACH_S = LONGEST_S / 100


@dataclass
class Call:
    deadline: float | None
    log: list[Call] = field(default_factory=list)
    over: bool = False
    turned_away: bool = False

    def start(self) -> None:
        self.log.append(self)

    def turn_away(self) -> None:
        self.turned_away = self.over = True

    def done(self) -> bool:
        return self.over


class Loop:
    """Turns of a loop on a hand-wound clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.soon: list[Callable[[], None]] = []
        self.told = 0
        self.started: list[Call] = []
        self.let_in: list[Call] = []
        self.before = 0
        """How many had started when this turn began."""
        self.turns = Turns(b"/a/B", self._tell, self.soon.append, lambda: self.now)

    def _tell(self) -> None:
        self.told += 1

    def offer(self, left_s: float | None) -> Call | None:
        """A call comes, and with it its request; None where it is refused."""
        if not self.turns.admits(left_s):
            return None
        call = Call(None if left_s is None else self.now + left_s, self.started)
        self.turns.start(call)
        self.let_in.append(call)
        return call

    def turn(self, calls: int = 0, left_s: float | None = 1.0, each_s: float = EACH_S) -> int:
        """So many come at once, with so much time, and the turn takes so long for each that started; how many did."""
        for _ in range(calls):
            self.offer(left_s)
        started = len(self.started) - self.before
        self.before = len(self.started)
        self.now += max(0.1, started) * each_s
        due, self.soon[:] = list(self.soon), []
        for callback in due:
            callback()
        return started


def test_few_calls_start_as_they_come() -> None:
    loop = Loop()
    assert [loop.turn(FIRST // 2) for _ in range(5)] == [FIRST // 2] * 5
    assert loop.told == 0


def test_of_many_as_many_start_in_a_turn_as_the_target_allows_and_the_others_wait() -> None:
    loop = Loop()
    began, lengths = loop.now, []
    loop.turn(1000)
    while loop.turns._line:
        before = loop.now
        loop.turn()
        lengths.append(loop.now - before)
    assert max(lengths) <= LONGEST_S * 1.3
    loop.turn()
    assert loop.now - began == pytest.approx(1000 * EACH_S, rel=0.01), "and no time is wasted"
    assert loop.told == 0, "a burst is no overload"


def test_whoever_is_due_first_starts_first() -> None:
    loop = Loop()
    for _ in range(3 * FIRST):
        loop.offer(5.0)
    calls = [loop.offer(left_s) for left_s in (0.9, 0.3, None, 0.6)]
    loop.turn()
    assert loop.started[FIRST : FIRST + 4] == [calls[1], calls[3], calls[0], calls[2]]


def test_who_cannot_be_answered_in_time_is_refused_at_the_door_and_nobody_else() -> None:
    loop = Loop()
    loop.turn(1000, left_s=60.0)
    loop.turn()
    offered = [loop.offer(0.5) for _ in range(6000)]
    admitted = [call for call in offered if call is not None]
    assert len(admitted) * EACH_S + PASSES * LONGEST_S == pytest.approx(WAIT * 0.5, rel=0.05)
    assert loop.told == loop.turns.refused == 6000 - len(admitted)
    assert loop.offer(PASSES * LONGEST_S * 0.9) is None, "nobody is ahead of it, and yet"
    assert loop.offer(None) is not None, "who has no deadline is never refused"
    assert loop.offer(0.1) is not None, "who is due first does not wait for the others"
    told = loop.told
    for _ in range(100):
        loop.turn()
    assert {id(call) for call in admitted} <= {id(call) for call in loop.started}
    assert loop.told == told, "and nobody is turned away later"


def test_who_waited_too_long_is_turned_away_and_who_left_is_passed_over() -> None:
    loop = Loop()
    loop.turn(FIRST)
    for _ in range(3 * FIRST):
        loop.offer(10.0)
    left, late = loop.offer(2.0), loop.offer(1.0)
    assert left is not None
    assert late is not None
    left.over = True
    loop.now += 1.0
    before = len(loop.started)
    loop.turn()
    assert late.turned_away
    assert late not in loop.started
    assert left not in loop.started
    assert len(loop.started) > before, "the others go on"
    assert loop.told == 1


def test_who_has_no_deadline_waits_for_as_long_as_it_takes() -> None:
    loop = Loop()
    calls = [loop.offer(None) for _ in range(3 * FIRST)]
    loop.now += 100.0
    for _ in range(60):
        loop.turn()
    assert loop.started == calls
    assert loop.told == 0


def test_callers_who_wait_for_their_answers_are_served_however_many_they_are() -> None:
    """A line that stays long is no reason to refuse anybody who can be answered in time."""
    loop = Loop()
    free, started = 1000, 0
    for _ in range(300):
        for _ in range(free):
            loop.offer(0.3)
        free = loop.turn()
        started += free
    assert loop.told == 0
    assert started * EACH_S == pytest.approx(loop.now - 100.0, rel=0.05)


def test_a_line_in_a_hurry_that_stays_long_is_kept_short_for_everybody_in_it() -> None:
    loop = Loop()
    hurry_s = HURRY_S * 0.9
    while loop.now < 100.0 + 2 * SUSTAINED_S:
        loop.turn(500, left_s=hurry_s)
    told = loop.told
    for _ in range(50):
        loop.turn(500, left_s=hurry_s)
    assert loop.told > told
    assert 0 < len(loop.turns._line) * EACH_S <= 1.5 * SHORT * LONGEST_S
    assert loop.turns._hurried == len(loop.turns._line)
    assert not any(call.turned_away for call in loop.let_in[-1000:]), "and who is let in is answered"
    assert loop.offer(HURRY_S * 2) is not None, "who has more time may wait"
    while loop.turns._line:
        loop.turn()
    for _ in range(math.ceil(SUSTAINED_S / LONGEST_S) + 2):
        loop.turn(90, left_s=hurry_s)
    told = loop.told
    loop.turn(500, left_s=hurry_s)
    assert loop.told == told, "a burst after that is a burst again"


def test_turns_are_as_short_as_the_tightest_deadlines_need() -> None:
    loop = Loop()
    for left_s, target_s in ((0.02, SHORTEST_S + 0.0005), (10.0, LONGEST_S)):
        for _ in range(600):
            loop.turn(200, left_s)
        before = loop.now
        loop.turn()
        assert loop.now - before <= target_s * 1.3


def test_some_always_start_however_long_a_turn_was() -> None:
    loop = Loop()
    loop.turn(LEAST * 4, left_s=None, each_s=1.0)
    loop.turn(LEAST * 4, left_s=None, each_s=1.0)
    for _ in range(8):
        loop.offer(None)
    assert loop.turn(LEAST * 4, left_s=None, each_s=1.0) == LEAST


def test_an_idle_loop_is_left_alone() -> None:
    loop = Loop()
    loop.turn(10)
    for _ in range(3):
        loop.turn()
    assert loop.soon == []
    assert loop.turn(10) == 10


def test_the_servers_transport_limits_inference_and_tells_of_it() -> None:
    told: list[None] = []

    async def main() -> None:
        server, _ = create_server(ListenOptions(port=0), shed=lambda: told.append(None))
        turns = server.options.turns
        assert turns.path.decode() in RPCS
        turns._line = [(math.inf, 0, Call(None), True)] * 9
        turns._ran, turns._ran_s, turns._crowded, turns._hurried = 1.0, 1.0, True, 9
        assert not turns.admits(0.01)
        await server.stop(0)

    asyncio.run(main())
    assert len(told) == 1
