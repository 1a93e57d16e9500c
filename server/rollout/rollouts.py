"""All rollouts of a server: starts and ends them, tells the repository what an empty version means, remembers.

Rule: belongs to one event loop.
Promise: from the moment a rollout is started, also before its candidate is loaded and after its end, an empty version
means nothing but what the rollout says; only `forget` gives that back to the repository.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from engines.errors import AlreadyExists, InvalidRequest, LoadFailed, ModelNotReady, NotFound
from engines.inference import Inference
from server.rollout.agreement import unlike
from server.rollout.judge import Alarms, Signals, alarms_of
from server.rollout.plan import Plan
from server.rollout.rollout import Rollout, Stage
from server.rollout.router import Front, RoutedInference
from server.rollout.shadow import Fate
from server.rollout.split import metadata_key
from server.rollout.store import RolloutStore
from server.rollout.versions import Handle

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
"""Between two looks at what only time changes; what speaks against a candidate is looked at as it comes."""


class Repository(Protocol):
    """What rollouts ask of the model manager."""

    def versions(self, name: str) -> Sequence[int]: ...
    def steer(self, name: str) -> None: ...
    async def bring(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class RolloutStatistics:
    """A snapshot of one rollout."""

    rollout: Rollout
    in_flight: int
    """Copies under way."""
    retries: int
    fates: Mapping[Fate, int]


@dataclass(slots=True)
class _Course:
    """A rollout, and the layer that carries it out."""

    rollout: Rollout
    router: RoutedInference
    stable: Handle | None = None
    candidate: Handle | None = None
    front: AbstractContextManager[Any] | None = None


class Rollouts:
    """See the module. It is the repository's Steering."""

    def __init__(
        self,
        store: RolloutStore,
        dress: Callable[[Any, Inference, str], object],
        signals: Signals | None = None,
    ) -> None:
        """`dress(version, inference, metadata_key)`: the same version with another stack and a key to split by."""
        self._store = store
        self._dress = dress
        self.signals = signals
        self._courses: dict[str, _Course] = {}
        self._repository: Repository | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = False

    def open(self, repository: Repository) -> None:
        """Take up what the last process left. To be called before anything is loaded. Raises LoadFailed."""
        self._repository = repository
        for rollout in self._store.read(self._changed):
            self._courses[rollout.model] = _Course(rollout, RoutedInference(rollout))
            log.info("resumed %r", rollout)
        self._set_alarm()

    async def close(self) -> None:
        """Leave everything as it is for the next process; copies are withdrawn."""
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        for course in self._courses.values():
            await course.router.shadow.close()

    # ---- what operators do

    async def start(self, model: str, candidate: int, stable: int = 0, **settings: Any) -> Rollout:  # noqa: ANN401  (fields of Plan)
        """Begin; `stable` 0 is the present default, or where that is the candidate, the highest other version.

        Another `stable` must be ready: nothing but it would answer from now on.

        Returns at once when the candidate is up, else when it has been brought up, where the repository's mode allows
        that. Raises InvalidRequest, AlreadyExists, ModelNotReady, or LoadFailed when nothing can be written.
        """
        before = self._courses.get(model)
        if before is not None and before.rollout.active:
            raise AlreadyExists(f"{before.rollout!r} is under way: promote or abort it first")
        try:
            plan = Plan(stable=self._stable(model, candidate, stable), candidate=candidate, **settings)
        except (ValueError, TypeError) as error:
            raise InvalidRequest(f"rollout of '{model}': {error}") from error
        rollout = Rollout(model, plan, self._changed)
        self._courses[model] = _Course(rollout, RoutedInference(rollout))
        try:
            self._save()
        except OSError as error:
            self._put_back(model, before)
            raise LoadFailed(f"rollout of '{model}': the state folder cannot be written to: {error}") from error
        if before is not None:
            await before.router.shadow.close()
        log.info("started %r", rollout)
        assert self._repository is not None
        self._repository.steer(model)
        self._review(model)
        self._set_alarm()
        if rollout.stage is not Stage.WAITING:
            return rollout
        try:
            await self._repository.bring(model)
        except LoadFailed as error:
            rollout.fail(f"cannot be loaded: {error}")
            raise
        return rollout

    def status(self, model: str = "") -> Sequence[RolloutStatistics]:
        """Of one model's rollout, or of all."""
        courses = [course for name, course in sorted(self._courses.items()) if model in ("", name)]
        return [
            RolloutStatistics(each.rollout, each.router.shadow.in_flight, each.router.retries, each.router.shadow.fates)
            for each in courses
        ]

    def promote(self, model: str) -> Rollout:
        """The candidate becomes the default at once. Raises NotFound or InvalidRequest."""
        return self._act(model, Rollout.promote)

    def abort(self, model: str, *, forget: bool = False) -> Rollout:
        """Back to the stable version at once; with `forget` the repository's own default counts again.

        `forget` also works on a rollout that has come to its end. Raises NotFound or InvalidRequest.
        """
        rollout = self._rollout(model)
        if rollout.active or not forget:
            self._act(model, Rollout.abort)
        if forget:
            del self._courses[model]
            self._changed(rollout)
        return rollout

    def remark(self, model: str, version: int) -> str:
        """What the index says of a version; empty for most."""
        course = self._courses.get(model)
        return "" if course is None else course.rollout.describe(version)

    def _stable(self, model: str, candidate: int, asked: int) -> int:
        assert self._repository is not None
        if asked == candidate:
            return asked  # which the plan refuses
        if asked:
            if asked not in self._repository.versions(model):
                raise ModelNotReady(f"version {asked} of model '{model}' is not ready: it cannot be the stable one")
            return asked
        ready = [version for version in self._repository.versions(model) if version != candidate]
        course = self._courses.get(model)
        if course is not None and course.rollout.default in ready:
            return course.rollout.default
        if not ready:
            raise ModelNotReady(f"model '{model}' has no version that is ready to be the stable one")
        return max(ready)

    def _rollout(self, model: str) -> Rollout:
        if model not in self._courses:
            raise NotFound(f"model '{model}' has no rollout")
        return self._courses[model].rollout

    def _act(self, model: str, action: Callable[[Rollout], None]) -> Rollout:
        rollout = self._rollout(model)
        try:
            action(rollout)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        return rollout

    def _put_back(self, model: str, before: _Course | None) -> None:
        del self._courses[model]
        if before is not None:
            self._courses[model] = before

    # ---- what the repository asks and tells

    def kept(self, name: str) -> AbstractSet[int]:
        """See Steering.kept."""
        course = self._courses.get(name)
        return frozenset() if course is None else course.rollout.kept

    def front(self, name: str, lent: Mapping[int, Handle]) -> AbstractContextManager[Any] | None:
        """See Steering.front. Without the default version nothing answers: another one has proven nothing."""
        course = self._courses.get(name)
        if course is None:
            return lent[max(lent)]
        plan, rollout = course.rollout.plan, course.rollout
        stable, candidate = lent.get(plan.stable), lent.get(plan.candidate)
        if stable is None or candidate is None or not rollout.active or not rollout.digest:
            course.stable, course.candidate, course.front = stable, candidate, None
            return lent.get(rollout.default)
        if course.front is None or course.stable is not stable or course.candidate is not candidate:
            course.stable, course.candidate = stable, candidate
            course.router.route(stable.service.spec, stable, candidate)
            course.front = Front(stable, self._dress(stable.service, course.router, metadata_key(plan.split_by)))
        return course.front

    def version_changed(self, name: str, version: int, state: object, reason: str) -> None:
        """The repository's Listener."""
        del version, state, reason
        if name in self._courses and not self._closed:
            self._review(name)

    def _review(self, name: str) -> None:
        """Bring the rollout in line with the versions that are there."""
        course = self._courses[name]
        rollout = course.rollout
        if not rollout.active:
            return
        if course.stable is None or course.candidate is None:
            rollout.leave()
            return
        stable, candidate = course.stable.service.spec, course.candidate.service.spec
        if problem := unlike(stable, candidate):
            rollout.fail(problem)
            return
        rollout.arrive(candidate.digest or "unknown", asyncio.get_running_loop().time())

    # ---- what happens by itself

    def _tick(self) -> None:
        now = asyncio.get_running_loop().time()
        for course in list(self._courses.values()):
            course.rollout.tick(now, self._alarms(course.rollout))
        self._set_alarm(again=True)

    def _alarms(self, rollout: Rollout) -> Alarms:
        if self.signals is None:
            return Alarms()
        try:
            return alarms_of(self.signals, rollout.model, rollout.plan)
        except Exception:  # the watch is an adviser: without it the other figures decide
            log.exception("no readings for the rollout of '%s'", rollout.model)
            return Alarms()

    def _set_alarm(self, *, again: bool = False) -> None:
        """Look again in a while, as long as there is anything to look at."""
        if self._alarm is not None and not again:
            return
        self._alarm = None
        if any(course.rollout.active for course in self._courses.values()) and not self._closed:
            self._alarm = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _changed(self, rollout: Rollout) -> None:
        if rollout.history:
            log.info("rollout of '%s': %s", rollout.model, rollout.history[-1].text)
        try:
            self._save()
        except OSError:
            log.exception("rollouts cannot be written; a restart would go back to the last state that could")
        assert self._repository is not None
        self._repository.steer(rollout.model)

    def _save(self) -> None:
        self._store.write(course.rollout for course in self._courses.values())
