from __future__ import annotations

import random
import statistics

import pytest

from engines.scheduling.arrivals import Bursts
from loadtest.load.schedule import Arrivals, offered, times

SECONDS = 50.0
ALL = [
    Arrivals(kind="poisson", rate=200),
    Arrivals(kind="uniform", rate=200),
    Arrivals(kind="bursty", rate=200, bursts=Bursts(high_s=0.05, low_s=0.15)),
    Arrivals(kind="ramp", rate=100, to_rate=300),
    Arrivals(kind="ramp", rate=200, to_rate=200),
    Arrivals(kind="step", steps=(100, 0, 500)),
]


def drawn(arrivals: Arrivals, seed: int = 1) -> list[float]:
    return list(times(arrivals, SECONDS, random.Random(seed)))


@pytest.mark.parametrize("arrivals", ALL, ids=lambda each: each.kind)
def test_times_are_in_order_within_the_run_and_as_many_as_asked(arrivals: Arrivals) -> None:
    found = drawn(arrivals)
    assert found == sorted(found)
    assert found[0] >= 0.0
    assert found[-1] < SECONDS
    assert len(found) == pytest.approx(offered(arrivals, SECONDS) * SECONDS, rel=0.06)


@pytest.mark.parametrize("arrivals", ALL, ids=lambda each: each.kind)
def test_a_seed_fixes_them(arrivals: Arrivals) -> None:
    assert drawn(arrivals) == drawn(arrivals)


def test_a_ramp_is_steeper_in_the_end_as_its_rates_say() -> None:
    found = drawn(Arrivals(kind="ramp", rate=100, to_rate=300))
    first = sum(at < SECONDS / 2 for at in found)
    assert first / len(found) == pytest.approx(150 / 400, abs=0.02)


def test_steps_have_their_own_rates() -> None:
    found = drawn(Arrivals(kind="step", steps=(100, 0, 500)))
    third = SECONDS / 3
    counts = [sum(number * third <= at < (number + 1) * third for at in found) for number in range(3)]
    assert counts[0] == pytest.approx(100 * third, rel=0.1)
    assert counts[1] == 0
    assert counts[2] == pytest.approx(500 * third, rel=0.1)


def test_bursts_are_burstier_than_poisson() -> None:
    def dispersion(found: list[float]) -> float:
        counts = [0] * round(SECONDS * 10)
        for at in found:
            counts[int(at * 10)] += 1
        return statistics.variance(counts) / statistics.mean(counts)

    assert dispersion(drawn(ALL[0])) == pytest.approx(1.0, abs=0.3)
    assert dispersion(drawn(Arrivals(kind="bursty", rate=200))) > 3.0
