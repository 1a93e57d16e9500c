"""`kairos rollout`: options become a request, a state becomes a picture."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import rich_click as click
from click.testing import CliRunner
from rich.console import Console

from server.cli.rollout import draw, rollout, shares
from server.pb import rollout_pb2 as pb
from server.rollout.plan import Plan
from server.transport.rollout import _settings


def requested(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> pb.RolloutStartRequest:
    sent: list[pb.RolloutStartRequest] = []

    class Stub:
        def __init__(self, channel: Any) -> None: ...

        def Start(self, request: pb.RolloutStartRequest, timeout: float) -> pb.RolloutState:
            sent.append(request)
            return pb.RolloutState(model=request.model, stage=pb.WAITING)

    monkeypatch.setattr(sys.modules["server.cli.rollout"], "RolloutStub", Stub)
    done = CliRunner().invoke(rollout, ["start", *arguments])
    assert done.exit_code == 0, done.output
    return sent[0]


def test_the_options_defaults_are_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    request = requested(monkeypatch, "m", "2")
    assert Plan(stable=1, candidate=2, **_settings(request)) == Plan(stable=1, candidate=2)


def test_zero_is_said_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    request = requested(monkeypatch, "m", "2", "--stable", "4", "--steps", "10%,50", "--step-time", "0s",
                        "--min-agreement", "0", "--shadow-sample", "0", "--latency-slack", "0s",
                        "--tolerance", "0", "0", "--max-latency-ratio", "inf", "--max-error-increase", "1")  # fmt: skip
    made = Plan(stable=request.stable, candidate=2, **_settings(request))
    assert (made.stable, made.steps, made.step_s, made.shadowing.sample) == (4, (0.1, 0.5), 0.0, 0.0)
    assert (made.limits.agreement, made.limits.latency_slack_s, made.limits.error_increase) == (0.0, 0.0, 1.0)
    assert made.comparing.absolute == made.comparing.relative == 0.0


def test_bad_steps_are_explained() -> None:
    with pytest.raises(click.BadParameter, match="no list of percentages"):
        shares("a,b")


def test_a_state_is_drawn() -> None:
    state = pb.RolloutState(
        model="digits", stable=1, candidate=2, stage=pb.CANARY, share=0.05, step=1, steps=[0, 0.05, 1],
        step_elapsed_seconds=3, step_seconds=10, reason="waits for 3 of 10 s", compared=10, agreement=0.9,
        stable_arm=pb.RolloutArm(requests=1000, failures=10, p50_seconds=0.001, p99_seconds=0.01),
        limits=pb.RolloutLimits(agreement=0.9), history=[pb.RolloutEntry(at=0, text="the candidate is up")],
    )  # fmt: skip
    console = Console(width=100, file=(paper := io.StringIO()), color_system=None)
    console.print(draw([state]))
    drawn = paper.getvalue()
    for text in ("digits 1 → 2  CANARY  5 % of the default traffic", "1,000    1.00%   1 ms", "3 of 10 s", "waits for",
                 "the candidate is up", "90.00% of 10 agree"):  # fmt: skip
        assert text in drawn, drawn
    console.print(draw([]))
    assert "no model has a rollout" in paper.getvalue()
