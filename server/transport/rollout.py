"""The RPCs of kairos.v1.Rollout."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from engines.errors import InvalidRequest, NotFound
from server.pb import rollout_pb2 as pb
from server.pb.rollout_pb2_grpc import RolloutServicer
from server.rollout.evidence import Arm
from server.rollout.plan import Comparing, Limits, Shadowing
from server.rollout.rollout import Rollout, Stage
from server.rollout.rollouts import Rollouts, RolloutStatistics
from server.rollout.shadow import Fate
from server.transport.service import Call, abort_call, answering
from server.transport.status import StatusCodes

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Rollout"].full_name

_STAGES: Final[Mapping[Stage, pb.RolloutStage]] = {
    Stage.WAITING: pb.WAITING,
    Stage.RUNNING: pb.CANARY,
    Stage.PROMOTED: pb.PROMOTED,
    Stage.ROLLED_BACK: pb.ROLLED_BACK,
    Stage.ABORTED: pb.ABORTED,
}


class RolloutService(RolloutServicer):
    """Answers for one server process."""

    def __init__(self, rollouts: Rollouts, codes: StatusCodes) -> None:
        self._rollouts = rollouts
        self._codes = codes

    @answering
    async def Start(self, request: pb.RolloutStartRequest, context: Any) -> pb.RolloutState:
        """Begin; answered when the candidate is up, or awaited."""
        if not request.model:
            raise InvalidRequest("the request names no model")
        await self._rollouts.start(request.model, request.candidate, request.stable, **_settings(request))
        return self._state(request.model)

    @answering
    async def Status(self, request: pb.RolloutStatusRequest, context: Any) -> pb.RolloutStatusResponse:
        """How rollouts stand."""
        return pb.RolloutStatusResponse(rollouts=[_state(each) for each in self._rollouts.status(request.model)])

    @answering
    async def Promote(self, request: pb.RolloutPromoteRequest, context: Any) -> pb.RolloutState:
        """Make the candidate the default at once."""
        self._rollouts.promote(request.model)
        return self._state(request.model)

    @answering
    async def Abort(self, request: pb.RolloutAbortRequest, context: Any) -> pb.RolloutState:
        """Back to the stable version at once."""
        found = self._rollouts.status(request.model) if request.model else ()
        if not found:
            raise NotFound(f"model '{request.model}' has no rollout")
        self._rollouts.abort(request.model, forget=request.forget)
        return _state(found[0])

    async def abort(self, context: Call, error: Exception, request_id: str = "") -> NoReturn:
        """End the call with the error's status."""
        await abort_call(context, error, self._codes, request_id)

    def _state(self, model: str) -> pb.RolloutState:
        return _state(self._rollouts.status(model)[0])


def _settings(request: pb.RolloutStartRequest) -> dict[str, Any]:
    """What the request says, in the words of a Plan; what it leaves open is left out."""
    limits, shadowing, comparing = request.limits, request.shadowing, request.comparing
    settings = _given(steps=tuple(request.steps), samples=request.samples, split_by=request.split_by, salt=request.salt)
    return {
        **settings,
        **_given(step_s=request.step_seconds, none=0.0),
        "retry": not request.no_retry,
        "signals": not request.no_signals,
        "limits": Limits(
            **_given(error_increase=limits.error_increase, none=1.0),
            **_given(latency_ratio=limits.latency_ratio, none=math.inf),
            **_given(latency_slack_s=limits.latency_slack_seconds, agreement=limits.agreement, none=0.0),
            **_given(false_alarm=limits.false_alarm),
        ),
        "comparing": Comparing(
            output=comparing.output, **_given(absolute=comparing.absolute, relative=comparing.relative, none=0.0)
        ),
        "shadowing": Shadowing(
            **_given(sample=shadowing.sample, none=0.0),
            **_given(in_flight=shadowing.in_flight, bytes_in_flight=shadowing.bytes_in_flight),
            **_given(deadline_s=shadowing.deadline_seconds),
        ),
    }


def _given(*, none: float | None = None, **values: Any) -> dict[str, Any]:
    """Values that are there; where `none` is something, a negative number asks for that."""
    return {
        name: none if none is not None and value < 0 else value
        for name, value in values.items()
        if value or (none is None and value not in (0, "", ()))
    }


def _state(found: RolloutStatistics) -> pb.RolloutState:
    rollout, fates = found.rollout, found.fates
    plan, evidence, limits = rollout.plan, rollout.evidence, rollout.plan.limits
    return pb.RolloutState(
        model=rollout.model, stable=plan.stable, candidate=plan.candidate, stage=stage_of(rollout),
        share=rollout.share, step=rollout.step, steps=plan.steps,
        step_elapsed_seconds=rollout.stayed_s(asyncio.get_running_loop().time()) if rollout.active else 0.0,
        step_seconds=plan.step_s, samples=plan.samples, reason=rollout.reason,
        stable_arm=_arm(evidence.stable), candidate_arm=_arm(evidence.candidate),
        compared=evidence.compared, agreement=evidence.agreement if evidence.compared else 0.0,
        max_error=evidence.max_error,
        limits=pb.RolloutLimits(
            error_increase=limits.error_increase, latency_ratio=limits.latency_ratio,
            latency_slack_seconds=limits.latency_slack_s, agreement=limits.agreement, false_alarm=limits.false_alarm,
        ),
        copies_compared=fates[Fate.COMPARED], copies_failed=fates[Fate.FAILED],
        copies_refused=fates[Fate.REFUSED], copies_dropped=fates[Fate.DROPPED],
        retries=found.retries, split_by=plan.split_by,
        history=[pb.RolloutEntry(at=entry.at, text=entry.text) for entry in rollout.history],
    )  # fmt: skip


def stage_of(rollout: Rollout) -> pb.RolloutStage:
    """The stage as the protocol has it, which tells copies from a share."""
    return pb.SHADOW if rollout.shadowing else _STAGES[rollout.stage]


def _arm(arm: Arm) -> pb.RolloutArm:
    p50, p99 = (arm.quantile_s(quantile) for quantile in (0.5, 0.99))
    return pb.RolloutArm(
        requests=arm.requests, failures=arm.failures,
        p50_seconds=p50 if p50 < math.inf else 0.0, p99_seconds=p99 if p99 < math.inf else 0.0,
    )  # fmt: skip
