from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from click.testing import CliRunner

from loadtest.load.scenario import Kind
from loadtest.sizing.cli import main
from loadtest.sizing.features import Side, in_turns, unlike
from loadtest.sizing.process import Look, Server
from loadtest.support import Running


@dataclass
class Costly:
    """A server of which each call costs so many seconds."""

    each_s: float
    spent: list[float] = field(default_factory=list)

    def look(self) -> Look:
        return Look(sum(self.spent), 0.0)

    def side(self, order: list[float]) -> Side:
        def call(seconds: float) -> int:
            order.append(self.each_s)
            self.spent.append(self.each_s * 10)
            return 10

        return Side(self, call)  # type: ignore[arg-type]


def test_a_price_is_the_ratio_within_each_turn_and_no_side_is_always_first() -> None:
    order: list[float] = []
    sides = [Costly(each_s).side(order) for each_s in (1e-6, 3e-6, 2e-6)]
    thrice, twice = in_turns(sides[0], {"thrice": sides[1], "twice": sides[2]}, turns=2, seconds=0.0)
    assert (thrice.name, thrice.ratio, twice.ratio) == ("thrice", pytest.approx(3.0), pytest.approx(2.0))
    assert len(thrice.ratios) == 2, "the first turn warms up"
    assert thrice.without_us == pytest.approx(1.0)
    assert {order[0], order[3], order[6]} == {1e-6, 3e-6, 2e-6}


def test_requests_that_must_not_come_twice_differ_and_carry_the_token() -> None:
    bodies = unlike(200, Kind(model="tiny", metadata={"authorization": "Bearer x"}))
    assert len({body.message for body in bodies}) == 200
    assert bodies[0].metadata == (("authorization", "Bearer x"),)


def test_a_process_is_read_from_proc() -> None:
    own = Server(Running(os.getpid(), "127.0.0.1:1"))
    looked = own.look()
    assert looked.cpu_s >= looked.loop_s > 0.0
    assert own.rss_kib() >= own.pss_kib() > 1000.0
    assert own.threads() >= 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--parts", "callers,nothing"], "nothing"),
        (["--parts", "callers", "--write"], "all parts"),
        (["requests_per_s=1"], "--for alone"),
        (["--for", "requests=1"], "is none of"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.setattr("loadtest.sizing.cli.study", lambda *_: pytest.fail("it measures"))
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 2
    assert told in " ".join(ran.output.split())


def test_a_load_is_sized_by_the_published_figures() -> None:
    ran = CliRunner().invoke(main, ["--for", "requests_per_s=100"])
    assert ran.exit_code == 0, ran.output
    assert len(ran.output.splitlines()) == 5
    assert "5. memory of a process: " in ran.output
