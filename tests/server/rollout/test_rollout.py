"""The state machine: by table, by property, and from one process to the next."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.rollout.plan import Comparing, Limits, Plan, Shadowing, read_plan
from server.rollout.rollout import NEXT, Event, Rollout, Stage
from tests.server.rollout.support import QUIET, plan, running


def pass_step(rollout: Rollout, now: float) -> None:
    """Let the candidate shine."""
    for _ in range(60):
        rollout.answered(rollout.evidence.stable, 0.01)
        if not rollout.shadowing:
            rollout.answered(rollout.evidence.candidate, 0.01)
        rollout.compared(1.0, 0.0)
    rollout.tick(now, QUIET)


def test_the_whole_way() -> None:
    rollout = Rollout("m", plan(), wall=lambda: 0.0)
    assert (rollout.share, rollout.default, rollout.describe(2)) == (0.0, 1, "rollout: awaited")
    rollout.arrive("two", 0.0)
    seen = []
    now = 0.0
    while rollout.active:
        seen.append((rollout.share, rollout.default, rollout.shadowing))
        now += 11.0
        pass_step(rollout, now)
    assert seen == [(0.0, 1, True), (0.1, 1, False), (0.5, 1, False), (1.0, 1, False)]
    assert (rollout.stage, rollout.share, rollout.default) == (Stage.PROMOTED, 1.0, 2)
    assert [entry.text.split(":")[0] for entry in rollout.history] == [
        "the candidate is up",
        *["passed"] * 3,
        "promoted",
    ]
    assert repr(rollout) == "<Rollout m 1 -> 2 [promoted, step 4 of 4, share 1]>"
    assert rollout.kept == {2}


def test_nothing_happens_before_its_time() -> None:
    rollout = running(1)
    pass_step(rollout, 9.0)
    assert (rollout.step, rollout.reason) == (1, "waits for 9 of 10 s")
    rollout.tick(10.0, QUIET)
    assert rollout.step == 2
    rollout.tick(100.0, QUIET)
    assert (rollout.step, rollout.reason) == (2, "waits for 0 of 50 requests")


def test_a_crashing_candidate_goes_back_at_once_without_a_tick() -> None:
    rollout = running(1)
    for _ in range(100):
        rollout.answered(rollout.evidence.stable, 0.01)
    count = 0
    while rollout.active:
        rollout.failed(rollout.evidence.candidate)
        count += 1
    assert (rollout.stage, rollout.default) == (Stage.ROLLED_BACK, 1)
    assert count == 10
    assert "rolled back: fails 100.0% of 10 requests" in rollout.history[-1].text
    assert rollout.describe(2).startswith("rollout: rolled back: fails")


def test_a_candidate_three_times_as_slow_goes_back() -> None:
    """Judged by recorded latencies: 3 s against 1 s, each with a spread of its own."""
    rollout = running(2)
    for number in range(100):
        rollout.answered(rollout.evidence.stable, 1.0 + 0.2 * (number % 7))
        if rollout.active:
            rollout.answered(rollout.evidence.candidate, 3.0 + 0.6 * (number % 7))
    assert rollout.stage is Stage.ROLLED_BACK
    assert "median" in rollout.reason


def test_a_candidate_with_all_traffic_is_compared_with_what_was_before() -> None:
    rollout = running(2)
    pass_step(rollout, 11.0)
    assert (rollout.share, rollout.evidence.stable.requests, rollout.evidence.candidate.requests) == (1.0, 60, 0)
    again = Rollout.from_json(json.loads(json.dumps(rollout.as_json())))
    again.arrive("two", 0.0)
    assert (again.share, again.evidence.stable.requests) == (1.0, 60)
    for _ in range(40):
        again.failed(again.evidence.candidate)
        if not again.active:
            break
    assert again.stage is Stage.ROLLED_BACK


def test_a_candidate_that_leaves_and_comes_back_goes_on_where_it_was() -> None:
    rollout = running(2)
    rollout.leave()
    assert (rollout.stage, rollout.share, rollout.default) == (Stage.WAITING, 0.0, 1)
    with pytest.raises(ValueError, match="it cannot be promote"):
        rollout.promote()
    rollout.arrive("two", 50.0)
    assert (rollout.stage, rollout.share, rollout.stayed_s(60.0)) == (Stage.RUNNING, 0.5, 10.0)
    rollout.arrive("other files", 70.0)
    assert (rollout.stage, rollout.step) == (Stage.RUNNING, 0)


def test_a_restart_resumes_on_the_same_step() -> None:
    written: list[dict[str, Any]] = []
    rollout = Rollout("m", plan(), lambda changed: written.append(json.loads(json.dumps(changed.as_json()))))
    rollout.arrive("two", 0.0)
    pass_step(rollout, 11.0)
    again = Rollout.from_json(written[-1])
    assert (again.stage, again.step, again.share, again.plan) == (Stage.WAITING, 1, 0.0, rollout.plan)
    again.arrive("two", 500.0)
    assert (again.stage, again.step, again.share) == (Stage.RUNNING, 1, 0.1)
    assert [entry.text for entry in again.history][:2] == [entry.text for entry in rollout.history]


def test_plans_survive_json_and_nonsense_is_refused() -> None:
    made = plan(limits={"latency_ratio": float("inf"), "agreement": 0.0}, split_by="metadata:user", samples=3)
    assert read_plan(json.loads(json.dumps(made.as_json()))) == made
    for wrong in (
        {"stable": 2},
        {"steps": ()},
        {"steps": (0.5, 0.1)},
        {"steps": (0.1, 1.5)},
        {"steps": (1.0,)},
        {"samples": 0},
        {"split_by": "colour"},
        {"step_s": math.inf},
        {"shadowing": Shadowing(deadline_s=math.nan)},
        {"comparing": Comparing(absolute=math.inf)},
        {"comparing": Comparing(relative=math.nan)},
        {"limits": Limits(latency_slack_s=math.nan)},
    ):
        with pytest.raises(ValueError, match=r"\w"):
            Plan(**{"stable": 1, "candidate": 2, **wrong})


ACTIONS = st.sampled_from(["arrive", "arrive other", "leave", "good", "bad", "tick", "promote", "abort", "restart"])


@given(st.lists(ACTIONS, max_size=40))
@settings(deadline=None, max_examples=200)
def test_an_end_is_an_end_and_the_share_is_never_the_candidates_without_a_stage_for_it(actions: list[str]) -> None:
    rollout, now, ends = Rollout("m", plan(samples=5)), 0.0, []
    for action in actions:
        now += 20.0
        before = rollout.stage
        step = rollout.step
        match action:
            case "arrive" | "arrive other":
                if rollout.active:
                    rollout.arrive(action, now)
            case "leave":
                rollout.leave()
            case "good":
                pass_step(rollout, now)
            case "bad":
                for _ in range(30):
                    rollout.compared(0.0, 9.0)
            case "tick":
                rollout.tick(now, QUIET)
            case "restart":
                rollout = Rollout.from_json(json.loads(json.dumps(rollout.as_json())))
                before = rollout.stage
            case _:
                try:
                    rollout.promote() if action == "promote" else rollout.abort()
                except ValueError:
                    assert {"promote": Event.PROMOTE, "abort": Event.ABORT}[action] not in NEXT[before]
        assert rollout.stage is before or rollout.stage in NEXT[before].values()
        assert rollout.step in (step, step + 1, 0)
        assert rollout.default == (2 if rollout.stage is Stage.PROMOTED else 1)
        assert rollout.share == 0.0 or rollout.stage in (Stage.RUNNING, Stage.PROMOTED)
        if not rollout.active:
            ends.append(rollout.stage)
    assert len(set(ends)) <= 1
