"""Turns: how many calls begin in a turn of the loop that is too long, and when all may again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from server.access.rpcs import RPCS
from server.transport.http2.turns import HURRY, LEAST, SUSTAINED_S, TARGET_S, Turns
from server.transport.listen import ListenOptions, create_server


class Loop:
    """Turns of a loop on a hand-wound clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.soon: list[Callable[[], None]] = []
        self.told = 0
        self.turns = Turns(b"/a/B", self._tell, self.soon.append, lambda: self.now)

    def _tell(self) -> None:
        self.told += 1

    def turn(self, calls: int, each_s: float, left_s: float | None = 0.0) -> int:
        """So many calls come at once, with so much time, and take so long each; how many of them began."""
        began = sum(self.turns.begin(left_s) for _ in range(calls))
        self.now += began * each_s
        due, self.soon[:] = list(self.soon), []
        for callback in due:
            callback()
        return began


def test_short_turns_let_everybody_begin() -> None:
    loop = Loop()
    assert [loop.turn(50, TARGET_S / 100) for _ in range(5)] == [50] * 5
    assert loop.told == 0


def test_of_what_goes_on_taking_too_long_as_much_begins_as_the_target_allows() -> None:
    loop = Loop()
    loop.turn(1000, TARGET_S / 100)
    began = [loop.turn(1000, TARGET_S / 100) for _ in range(20)]
    assert all(80 <= count <= 130 for count in began), began
    assert loop.told == 20_000 - sum(began)


def test_a_single_stall_refuses_nobody() -> None:
    loop = Loop()
    assert [loop.turn(64, took / 64) for took in (TARGET_S / 2, SUSTAINED_S * 0.9, TARGET_S / 2, TARGET_S / 2)] == [
        64
    ] * 4
    assert loop.told == 0


def test_who_has_time_waits() -> None:
    loop = Loop()
    for _ in range(5):
        loop.turn(1000, TARGET_S / 100)
    assert loop.turn(1000, TARGET_S / 100, left_s=None) == 1000
    assert loop.turn(1000, TARGET_S / 100, left_s=HURRY * 11 * TARGET_S) == 1000
    assert loop.turn(1000, TARGET_S / 100, left_s=0.05) < 200


def test_some_always_begin_however_long_a_turn_was() -> None:
    loop = Loop()
    loop.turn(40, 1.0)
    assert loop.turn(40, 1.0) == LEAST


def test_the_allowance_comes_back_and_an_idle_loop_is_left_alone() -> None:
    loop = Loop()
    loop.turn(1000, TARGET_S / 100)
    for _ in range(80):
        loop.turn(10, TARGET_S / 1000)
    assert loop.turn(1000, 0.0) == 1000
    for _ in range(3):
        loop.turn(0, 0.0)
    assert loop.soon == []


def test_the_servers_transport_limits_inference_and_tells_of_it() -> None:
    told: list[None] = []

    async def main() -> None:
        server, _ = create_server(ListenOptions(port=0), shed=lambda: told.append(None))
        turns = server.options.turns
        assert turns.path.decode() in RPCS
        turns._allowed = 0
        turns._took = 1.0
        assert not turns.begin(0.01)
        await server.stop(0)

    asyncio.run(main())
    assert len(told) == 1
