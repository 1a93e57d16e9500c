from __future__ import annotations

from dataclasses import dataclass

from server.transport.http2.deadlines import Deadlines


@dataclass
class Fake:
    name: str
    over: bool = False

    def done(self) -> bool:
        return self.over


def test_calls_expire_in_order_and_only_once() -> None:
    deadlines: Deadlines[Fake] = Deadlines()
    late, early, ended = Fake("late"), Fake("early"), Fake("ended", over=True)
    assert deadlines.add(3.0, late)
    assert deadlines.add(1.0, early)
    assert not deadlines.add(2.0, ended)
    assert deadlines.expired(0.5) == []
    assert deadlines.next() == 1.0
    assert deadlines.expired(2.5) == [early]
    assert deadlines.expired(10.0) == [late]
    assert deadlines.next() is None


def test_calls_that_ended_do_not_pile_up() -> None:
    deadlines: Deadlines[Fake] = Deadlines()
    for number in range(10_000):
        call = Fake(str(number))
        deadlines.add(1e9 + number, call)
        call.over = True
        deadlines.finished += 1
    assert len(deadlines) < 300
