"""The layer that decides which version answers a request that names none.

Rule: whatever becomes of the candidate, a caller is told only what the stable version could have told it, or the
candidate's answer; with `Plan.retry` that holds for the candidate's faults and refusals, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Final

from engines.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailed,
    InferError,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
)
from engines.inference import Inference
from engines.request import InferRequest, InferResponse
from engines.spec import ModelSpec
from server.rollout.agreement import compare
from server.rollout.evidence import Arm
from server.rollout.plan import Plan
from server.rollout.rollout import Rollout
from server.rollout.shadow import Shadow
from server.rollout.split import Splitter
from server.rollout.versions import Lender
from server.telemetry.metered import is_over

log = logging.getLogger(__name__)

_FAULTS: Final = (EngineFailed, Overloaded, ModelNotReady, Draining, DeadlineExceeded)
"""What speaks against a version; a caller who left does not, nor does an invalid request by itself."""
_LOAD: Final = (Overloaded, DeadlineExceeded, asyncio.CancelledError)
"""Of these, what may as well come of too much to do."""
_RETRIED: Final = (EngineFailed, Overloaded, ModelNotReady, Draining, InvalidRequest)
"""What the stable version is asked after: had there been no candidate, it would have been asked anyway."""


class RoutedInference:
    """An Inference over two versions."""

    def __init__(self, rollout: Rollout) -> None:
        """It answers once it has been told by `route` what with."""
        plan = rollout.plan
        self._rollout = rollout
        self._splitter = splitter_of(rollout.model, plan)
        self.shadow = Shadow(plan.shadowing, self._compare)
        self.retries = 0
        """Requests that the stable version was asked for after the candidate had failed."""

    def route(self, spec: ModelSpec, stable: Lender, candidate: Lender) -> None:
        """Route between these from now on. `spec`: the stable version's, which requests have been checked against."""
        self._spec = spec
        self._stable = stable
        self._candidate = candidate

    def __repr__(self) -> str:
        return f"<RoutedInference {self._rollout!r} {self.shadow!r}>"

    async def infer(self, request: InferRequest) -> InferResponse:
        """See Inference.infer."""
        rollout = self._rollout
        share = rollout.share
        if share > 0.0 and self._splitter.place(request) < share:
            return await self._canary(request)
        with self._stable as version:
            response = await self._measured(version.inference, request, rollout.evidence.stable)
        if rollout.active:
            self.shadow.offer(request, response, self._candidate)
        return response

    async def _canary(self, request: InferRequest) -> InferResponse:
        plan, arm = self._rollout.plan, self._rollout.evidence.candidate
        asked = replace(request, version=plan.candidate)
        try:
            with self._candidate as version:
                response = await self._measured(version.inference, asked, arm)
        except Exception as error:
            if not plan.retry or not _may_retry(error):
                raise
            if asyncio.get_running_loop().time() >= request.deadline:
                raise
            refused = isinstance(error, InvalidRequest)
        else:
            if self._rollout.active:
                self.shadow.offer(request, response, self._stable)
            return response
        self.retries += 1
        with self._stable as version:
            response = await version.inference.infer(request)
        if refused:  # the candidate refuses what the stable version takes: that is not the caller's fault
            with self._guarded():
                self._rollout.failed(arm)
        return response

    async def _measured(self, inference: Inference, request: InferRequest, arm: Arm) -> InferResponse:
        time = asyncio.get_running_loop().time
        began = time()
        try:
            response = await inference.infer(request)
        except BaseException as error:
            if _speaks_against(error, began, time(), request.deadline):
                with self._guarded():
                    self._rollout.failed(arm, fault=not isinstance(error, _LOAD))
            raise
        with self._guarded():
            self._rollout.answered(arm, time() - began)
        return response

    def _compare(self, answered: InferResponse, copied: InferResponse | None) -> None:
        """One of the two is the candidate's. Its fault counts as no agreement, the stable version's as nothing."""
        rollout, plan = self._rollout, self._rollout.plan
        if not rollout.active:
            return
        with self._guarded():
            if copied is None:
                if answered.version == plan.stable:
                    rollout.compared(0.0, 0.0)
                return
            stable, candidate = (answered, copied) if answered.version == plan.stable else (copied, answered)
            rollout.compared(*compare(stable, candidate, self._spec, plan.comparing))

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """A fault in our own book-keeping is no caller's business; the candidate does not get further by it."""
        try:
            yield
        except Exception as error:
            log.exception("the rollout of '%s' cannot go on", self._rollout.model)
            self._rollout.fail(f"internal error: {type(error).__name__}")


def splitter_of(model: str, plan: Plan) -> Splitter:
    """The same for all replicas of a rollout, and another one for the next rollout."""
    return Splitter(plan.split_by, plan.salt or f"{model}:{plan.candidate}")


def _may_retry(error: Exception) -> bool:
    return isinstance(error, _RETRIED) or not isinstance(error, InferError)


def _speaks_against(error: BaseException, began: float, now: float, deadline: float) -> bool:
    if isinstance(error, asyncio.CancelledError):  # a caller whose time was over, or one who just left
        return is_over(began, now, deadline)
    return isinstance(error, _FAULTS) or (isinstance(error, Exception) and not isinstance(error, InferError))


class Front:
    """What is lent in place of the stable version during a rollout; holds that version up like its own handle."""

    __slots__ = ("_service", "_stable")

    def __init__(self, stable: Lender, service: object) -> None:
        self._stable = stable
        self._service = service

    def __enter__(self) -> object:
        self._stable.__enter__()
        return self._service

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stable.__exit__(kind, error, trace)
