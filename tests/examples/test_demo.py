"""What the demonstration makes of the calls it has counted."""

from __future__ import annotations

import math

from rich.console import Console

from examples.demo import Call, Phase, Plan, Report, batches_table, phases_table

ANSWERED = tuple(Call(milliseconds / 1e3, right=milliseconds != 4) for milliseconds in (1, 2, 3, 4))
LATE = Call(0.1, error="Deadline Exceeded", late=True)
BROKEN = Call(0.001, error="unexpected shape")


def report(together: Phase, batches: dict[int, int]) -> Report:
    alone = Phase("one by one", 2.0, ANSWERED)
    return Report(server="kairos 1", plan=Plan(), alone=alone, together=together, batches=batches)


def lines(renderable: object) -> list[str]:
    """Print to 80 columns; lines that hold anything, with single spaces."""
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()]


def test_shares_are_of_what_was_answered_or_asked() -> None:
    phase = Phase("mixed", 2.0, (*ANSWERED, LATE, BROKEN))
    assert phase.accuracy == 3 / 4  # of the answers
    assert phase.calls_per_s == 2.0
    assert phase.share_within(0.002) == 2 / 6  # of the calls
    assert phase.share_within(1.0) == 4 / 6
    assert phase.percentile_s(50) == 0.0025
    assert phase.failures == ["unexpected shape"]


def test_a_phase_without_answers_can_still_be_shown() -> None:
    phase = Phase("lost", 1.0, (LATE, LATE))
    assert math.isnan(phase.percentile_s(99))
    assert lines(phases_table(report(phase, {})))[-1] == "2, lost 0.00% 0 nan ms nan ms 0.0%"


def test_every_phase_has_its_line() -> None:
    shown = lines(phases_table(report(Phase("4 at once", 0.5, ANSWERED), {})))
    assert shown[-2:] == [
        "4, one by one 75.00% 2 2.50 ms 3.97 ms 100.0%",
        "4, 4 at once 75.00% 8 2.50 ms 3.97 ms 100.0%",
    ]


def test_batches_are_classed_by_powers_of_two() -> None:
    batches = {1: 10, 2: 5, 3: 2, 4: 1, 5: 0, 16: 2, 9: 2, 17: 4}
    shown = lines(batches_table(report(Phase("4 at once", 0.5, ANSWERED), batches)))
    assert [line.replace("█", "").split() for line in shown[3:]] == [
        ["1", "10", "6.8%"],
        ["2", "5", "6.8%"],
        ["3-4", "3", "6.8%"],
        ["9-16", "4", "33.8%"],
        ["17-32", "4", "45.9%"],
    ]
