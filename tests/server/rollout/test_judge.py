"""Good candidates are let through noise, bad ones are caught quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from server.rollout.evidence import Arm, Evidence
from server.rollout.judge import Alarms, Judge, alarms_of
from tests.server.rollout.support import QUIET, plan


def fill(arm: Arm, count: int, seconds: float = 0.01, failures: int = 0) -> None:
    for _ in range(count):
        arm.answered(seconds)
    for _ in range(failures):
        arm.failed(fault=True)


def judged(
    evidence: Evidence, stayed_s: float = 100.0, share: float = 0.1, alarms: Alarms = QUIET, **rest: object
) -> str:
    found = Judge(plan(**rest), share).judge(evidence, stayed_s, alarms)
    return f"{found.verdict.value}: {found.reason}"


def good(compared: int = 100) -> Evidence:
    evidence = Evidence()
    fill(evidence.stable, 1000)
    fill(evidence.candidate, 200)
    for _ in range(compared):
        evidence.compare(1.0, 0.0)
    return evidence


def test_a_good_candidate_goes_on() -> None:
    assert judged(good()) == "advance: 0.0% of 200 requests failed, agreed on 100.0% of 100"


def test_it_waits_for_samples_comparisons_and_time() -> None:
    few = Evidence()
    fill(few.stable, 1000)
    fill(few.candidate, 49)
    assert judged(few) == "wait: 49 of 50 requests"
    assert judged(good(compared=49)) == "wait: 49 of 50 comparisons"
    assert judged(good(compared=4), shadowing={"sample": 0.1}) == "wait: 4 of 5 comparisons"
    assert judged(good(), stayed_s=9.0) == "wait: 9 of 10 s"
    shadow = Evidence(compared=50, agreed=50.0)
    assert judged(shadow, share=0.0).startswith("advance")
    assert judged(Evidence(compared=49, agreed=49.0), share=0.0) == "wait: 49 of 50 comparisons"
    assert judged(good(compared=0), shadowing={"sample": 0.0}, steps=(0.1, 1.0)).startswith("advance")


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ({"count": 0, "failures": 10}, "roll back: fails 100.0% of 10 requests"),
        ({"count": 14, "seconds": 0.03}, "roll back: its median is above 15.5 ms"),
        ({"count": 300, "seconds": 0.01, "slow": 60}, "roll back: its 95th percentile is above 15.5 ms"),
    ],
)
def test_a_bad_candidate_goes_back_after_a_few_requests(candidate: dict[str, float], reason: str) -> None:
    evidence = Evidence()
    fill(evidence.stable, 2000)
    fill(evidence.candidate, int(candidate.pop("slow", 0)), 0.1)
    fill(evidence.candidate, **candidate)  # type: ignore[arg-type]
    assert judged(evidence, 0.0).startswith(reason)


def test_wrong_answers_go_back() -> None:
    assert judged(Evidence(compared=10, agreed=1.0), share=0.0).startswith("roll back: agrees on 10.0% of 10 compared")
    assert judged(Evidence(compared=100, agreed=10.0), limits={"agreement": 0.0}, share=0.0).startswith("advance")


def test_what_looks_bad_without_proof_waits() -> None:
    evidence = good()
    for _ in range(4):
        evidence.candidate.failed(fault=True)
    assert judged(evidence) == "wait: failures of 2.0% to become fewer"
    assert judged(Evidence(compared=100, agreed=88.0), share=0.0) == "wait: an agreement of 88.0% to become 90.0%"
    slower = Evidence()
    fill(slower.stable, 60)
    fill(slower.candidate, 28, 0.02)
    fill(slower.candidate, 26, 0.01)
    slower.compared, slower.agreed = 60, 60.0
    assert judged(slower) == "wait: its median to become shorter"


def test_tenths_of_a_millisecond_and_no_limit_do_not_count() -> None:
    evidence = Evidence(compared=60, agreed=60.0)
    fill(evidence.stable, 1000, 0.0001)
    fill(evidence.candidate, 200, 0.0003)
    assert judged(evidence).startswith("advance")
    assert judged(evidence, limits={"latency_slack_s": 0.0}).startswith("roll back")
    assert judged(evidence, limits={"latency_slack_s": 0.0, "latency_ratio": math.inf}).startswith("advance")


def test_a_candidate_with_all_the_traffic_is_judged_by_what_no_load_can_excuse() -> None:
    """The load may have changed since there was anybody beside it."""
    evidence = Evidence(compared=60, agreed=60.0)
    fill(evidence.stable, 1000, 0.001)
    fill(evidence.candidate, 200, 0.1)
    for _ in range(50):
        evidence.candidate.failed(fault=False)
    assert judged(evidence, share=0.5).startswith("roll back")
    assert judged(evidence, share=1.0).startswith("advance")
    for _ in range(30):
        evidence.candidate.failed(fault=True)
    assert judged(evidence, share=1.0).startswith("roll back: fails 10.7% of 280 requests")


def test_alarms_that_only_the_candidate_raises_speak_against_it() -> None:
    both, own = frozenset({"drift"}), frozenset({"drift", "confidence"})
    assert judged(good(), alarms=Alarms(own, both)).startswith("roll back: alarm of confidence, which")
    assert (
        judged(good(), alarms=Alarms(both, both))
        == "wait: alarm of drift, which the stable version raises as well, to end"
    )
    assert judged(good(), alarms=Alarms(frozenset(), both)).startswith("advance")


@dataclass(frozen=True)
class FakeReading:
    value: float
    alarm: bool


class FakeSignals:
    def readings(self, model: str, version: int) -> dict[str, FakeReading]:
        assert model == "m"
        return {"drift": FakeReading(0.3, version == 2), "confidence": FakeReading(0.1, False)}


def test_signals_become_alarms() -> None:
    assert alarms_of(FakeSignals(), "m", plan()) == Alarms(frozenset({"drift"}), frozenset())
    assert alarms_of(FakeSignals(), "m", plan(signals=False)) == QUIET


def test_false_alarms_are_as_rare_as_promised_and_a_bad_candidate_is_quick_to_go() -> None:
    """Candidates at their very limits, looked at after each request, 200 times; the promise is 1 in 100 rollouts."""
    random = np.random.default_rng(7)
    gone, after = 0, []
    for bad in (False, True):
        for _ in range(200 if not bad else 30):
            stop = follow(random, agreement=0.9 if not bad else 0.5, failures=0.03 if not bad else 0.3)
            if not bad:
                gone += stop > 0
            else:
                assert stop > 0
                after.append(stop)
    assert gone <= 5  # 200 times one step of four: half a one is expected at most
    assert np.median(after) < 60


def follow(random: np.random.Generator, agreement: float, failures: float, most: int = 600) -> int:
    """After how many requests the candidate was sent back; 0 for never."""
    judge, evidence = Judge(plan(limits={"error_increase": 0.02}), 0.5), Evidence()
    stable = random.random(most) < 0.01
    candidate = random.random(most) < failures
    agreed = random.random(most) < agreement
    seconds = random.lognormal(-5, 0.5, (most, 2))
    for number in range(most):
        for arm, failed, spent in (
            (evidence.stable, stable[number], seconds[number, 0]),
            (evidence.candidate, candidate[number], seconds[number, 1] * 1.4),
        ):
            if failed:
                arm.failed(fault=True)
            else:
                arm.answered(float(spent))
        evidence.compare(float(agreed[number]), 0.0)
        if judge.prove(evidence):
            return number + 1
    return 0
