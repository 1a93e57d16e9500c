"""Whether a step has shown enough: for the next one, or for the way back.

Rule: pure; the time that has passed, and the alarms there are, are arguments.

Going back needs proof: a bound says that a limit is broken, at a level at which a candidate that keeps all limits is
rolled back with at most `Limits.false_alarm` over the whole rollout, however often it is looked at. Going on needs a
minimum of samples and time, and every figure within its limit. What is neither proven bad nor looks good waits.

Versions are compared over the same time, since what they take, and whom they must refuse, depends on the load. A
candidate with all the traffic has nobody beside it: there only faults count, against those of the step before, and
comparisons of answers.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from server.rollout.bounds import Looks, lower, upper
from server.rollout.evidence import Arm, Evidence
from server.rollout.plan import SHADOW_STEP, Limits, Plan

QUANTILES: Final = ((0.5, 0.5, "median"), (0.99, 0.05, "95th percentile"))
"""Of the stable version's latency; the share of the candidate's answers that may be slower; and what that bounds."""
_MEASURES: Final = 2 + len(QUANTILES)


class Verdict(enum.Enum):
    """What to do with the candidate."""

    WAIT = "wait"
    ADVANCE = "advance"
    ROLL_BACK = "roll back"


class Finding(NamedTuple):
    """A verdict and why; for WAIT, what is waited for."""

    verdict: Verdict
    reason: str


class Reading(Protocol):
    """What the watch says of one measure of a version, for instance of the drift of its answers."""

    @property
    def value(self) -> float: ...
    @property
    def alarm(self) -> bool:
        """Whether the value is beyond what was allowed, by the watch's own rules of how long and how surely."""
        ...


class Signals(Protocol):
    """Where readings come from."""

    def readings(self, model: str, version: int) -> Mapping[str, Reading]:
        """The latest reading of each measure, by its name; empty for a version that is not watched."""
        ...


@dataclass(frozen=True, slots=True)
class Alarms:
    """Names of measures in alarm."""

    candidate: frozenset[str] = frozenset()
    stable: frozenset[str] = frozenset()


def alarms_of(signals: Signals, model: str, plan: Plan) -> Alarms:
    """What is in alarm now."""

    def of(version: int) -> frozenset[str]:
        return frozenset(name for name, reading in signals.readings(model, version).items() if reading.alarm)

    return Alarms(of(plan.candidate), of(plan.stable)) if plan.signals else Alarms()


class Judge:
    """Judges one step. Keeps count of its looks, and nothing else."""

    def __init__(self, plan: Plan, share: float) -> None:
        self._plan = plan
        self._share = share
        self._alone = share == 1.0
        level = plan.limits.false_alarm / len(plan.steps) / _MEASURES
        self._asked = Looks(level * (_MEASURES - 1))  # errors and latencies are looked at together
        self._compared = Looks(level)

    def prove(self, evidence: Evidence) -> str:
        """Why the candidate must go back; empty when there is no proof. Cheap until a look is due."""
        limits = self._plan.limits
        asked, compared = evidence.candidate.requests, evidence.compared
        if compared >= self._compared.due and (level := self._compared.take(compared)) is not None:
            most = upper(evidence.agreement, compared, level)
            if most < limits.agreement:
                return (
                    f"agrees on {evidence.agreement:.1%} of {compared} compared requests (at most {most:.1%}), "
                    f"and {limits.agreement:.1%} are asked for"
                )
        if asked >= self._asked.due and (level := self._asked.take(asked)) is not None:
            # Each of these measures has its share of the level, and two bounds share that.
            level /= 2 * (_MEASURES - 1)
            return self._prove_failures(evidence, level) or self._prove_latency(evidence, level)
        return ""

    def judge(self, evidence: Evidence, stayed_s: float, alarms: Alarms) -> Finding:
        """All there is to say after so long on this step."""
        if proof := self.prove(evidence):
            return Finding(Verdict.ROLL_BACK, proof)
        if own := sorted(alarms.candidate - alarms.stable):
            return Finding(Verdict.ROLL_BACK, f"alarm of {', '.join(own)}, which the stable version does not raise")
        if waits := self._waits_for(evidence, stayed_s, alarms):
            return Finding(Verdict.WAIT, waits)
        return Finding(Verdict.ADVANCE, _summary(evidence))

    def _waits_for(self, evidence: Evidence, stayed_s: float, alarms: Alarms) -> str:
        plan, limits = self._plan, self._plan.limits
        wanted = 0 if self._share == SHADOW_STEP else plan.samples
        if evidence.candidate.requests < wanted:
            return f"{evidence.candidate.requests} of {wanted} requests"
        # Where the candidate has all the traffic, or most of it, copies are made of its own requests.
        comparisons = plan.samples if self._share == SHADOW_STEP else min(plan.samples, self._looks_worth)
        if plan.shadowing.sample and limits.agreement and evidence.compared < comparisons:
            return f"{evidence.compared} of {comparisons} comparisons"
        if stayed_s < plan.step_s:
            return f"{stayed_s:.0f} of {plan.step_s:.0f} s"
        if shared := sorted(alarms.candidate & alarms.stable):
            return f"alarm of {', '.join(shared)}, which the stable version raises as well, to end"
        return self._doubt(evidence)

    @property
    def _looks_worth(self) -> int:
        """Comparisons that a step of its own traffic needs: as many as its sample gives of the requests it needs."""
        return int(self._plan.samples * self._plan.shadowing.sample)

    def _rate(self, arm: Arm) -> float:
        return arm.fault_rate if self._alone else arm.failure_rate

    def _prove_failures(self, evidence: Evidence, level: float) -> str:
        stable, candidate = evidence.stable, evidence.candidate
        most = upper(self._rate(stable), stable.requests, level) + self._plan.limits.error_increase
        least = lower(self._rate(candidate), candidate.requests, level)
        if least <= most:
            return ""
        return (
            f"fails {self._rate(candidate):.1%} of {candidate.requests} requests (at least {least:.1%}); "
            f"the stable version fails {self._rate(stable):.1%} of {stable.requests}"
        )

    def _prove_latency(self, evidence: Evidence, level: float) -> str:
        limits, candidate = self._plan.limits, evidence.candidate
        if self._alone or not candidate.answers:
            return ""
        for quantile, allowed, called in QUANTILES:
            bound_s = _bound_s(evidence.stable, quantile, limits, level)
            slower = candidate.share_above(bound_s)
            if lower(slower, candidate.answers, level) > allowed:
                return (
                    f"its {called} is above {bound_s * 1e3:.3g} ms, {limits.latency_ratio:g} times what the stable "
                    f"version stays below: {slower:.1%} of {candidate.answers} answers are slower"
                )
        return ""

    def _doubt(self, evidence: Evidence) -> str:
        """Which figure does not look good, though nothing is proven."""
        limits, stable, candidate = self._plan.limits, evidence.stable, evidence.candidate
        if evidence.compared and evidence.agreement < limits.agreement:
            return f"an agreement of {evidence.agreement:.1%} to become {limits.agreement:.1%}"
        if self._rate(candidate) > self._rate(stable) + limits.error_increase:
            return f"failures of {self._rate(candidate):.1%} to become fewer"
        for quantile, allowed, called in () if self._alone else QUANTILES:
            if candidate.share_above(_bound_s(stable, quantile, limits)) > allowed:
                return f"its {called} to become shorter"
        return ""


def _bound_s(stable: Arm, quantile: float, limits: Limits, level: float = 0.0) -> float:
    """What the candidate's quantile must not exceed; infinite (or NaN, which nothing exceeds) when that is unknown."""
    own_s = stable.quantile_s(quantile, level)
    return max(own_s * limits.latency_ratio, own_s + limits.latency_slack_s)


def _summary(evidence: Evidence) -> str:
    candidate = evidence.candidate
    said = []
    if candidate.requests:
        said.append(f"{candidate.failure_rate:.1%} of {candidate.requests} requests failed")
    if evidence.compared:
        said.append(f"agreed on {evidence.agreement:.1%} of {evidence.compared}")
    return ", ".join(said)
