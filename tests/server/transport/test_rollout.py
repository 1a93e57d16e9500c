"""What the RPCs of kairos.v1.Rollout make of a request, and of a rollout."""

from __future__ import annotations

import math

from server.pb import rollout_pb2 as pb
from server.rollout.plan import Comparing, Limits, Plan, Shadowing
from server.rollout.rollout import Rollout, Stage
from server.transport.rollout import _settings, stage_of


def planned(**fields: object) -> Plan:
    return Plan(stable=1, candidate=2, **_settings(pb.RolloutStartRequest(**fields)))  # type: ignore[arg-type]


def test_what_is_left_open_is_the_servers_choice() -> None:
    assert planned() == Plan(stable=1, candidate=2)


def test_what_is_said_counts() -> None:
    made = planned(
        steps=[0, 0.5], step_seconds=3, samples=7, split_by="tenant", salt="s", no_retry=True, no_signals=True,
        limits=pb.RolloutLimits(
            error_increase=0.2, latency_ratio=2, latency_slack_seconds=1, agreement=0.5, false_alarm=0.1
        ),
        comparing=pb.RolloutComparing(output="o", absolute=1, relative=2),
        shadowing=pb.RolloutShadowing(sample=0.3, in_flight=9, bytes_in_flight=10, deadline_seconds=11),
    )  # fmt: skip
    assert made == Plan(
        stable=1, candidate=2, steps=(0.0, 0.5), step_s=3, samples=7, split_by="tenant", salt="s",
        retry=False, signals=False,
        limits=Limits(error_increase=0.2, latency_ratio=2, latency_slack_s=1, agreement=0.5, false_alarm=0.1),
        comparing=Comparing(output="o", absolute=1, relative=2),
        shadowing=Shadowing(sample=0.3, in_flight=9, bytes_in_flight=10, deadline_s=11),
    )  # fmt: skip


def test_below_zero_means_none() -> None:
    limits = pb.RolloutLimits(error_increase=-1, latency_ratio=-1, latency_slack_seconds=-1, agreement=-1)
    comparing, shadowing = pb.RolloutComparing(absolute=-1, relative=-1), pb.RolloutShadowing(sample=-1)
    made = planned(steps=[0.5], step_seconds=-1, limits=limits, comparing=comparing, shadowing=shadowing)
    assert made.limits == Limits(error_increase=1.0, latency_ratio=math.inf, latency_slack_s=0.0, agreement=0.0)
    assert (made.step_s, made.shadowing.sample, made.comparing.absolute, made.comparing.relative) == (
        0.0,
        0.0,
        0.0,
        0.0,
    )


def test_copies_are_a_stage_of_their_own() -> None:
    rollout = Rollout("m", Plan(stable=1, candidate=2))
    stages = [stage_of(rollout)]
    rollout.arrive("x", 0.0)
    stages.append(stage_of(rollout))
    rollout.step = 1
    stages.append(stage_of(rollout))
    for stage in (Stage.PROMOTED, Stage.ROLLED_BACK, Stage.ABORTED):
        rollout.stage = stage
        stages.append(stage_of(rollout))
    assert stages == [pb.WAITING, pb.SHADOW, pb.CANARY, pb.PROMOTED, pb.ROLLED_BACK, pb.ABORTED]
