"""Answers, requests and versions for rollouts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from engines.errors import ModelNotReady
from engines.request import InferRequest, InferResponse
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType, from_array
from server.rollout.judge import Alarms
from server.rollout.plan import Limits, Plan, Shadowing
from server.rollout.rollout import Rollout

SPEC = ModelSpec(
    name="m",
    version=1,
    platform="fake",
    inputs=(TensorSpec("x", DType.FP32, (2,)),),
    outputs=(TensorSpec("scores", DType.FP32, (2,)), TensorSpec("extra", DType.INT32, (1,))),
    max_rows=8,
    digest="one",
)
QUIET = Alarms()


def plan(**rest: Any) -> Plan:
    """From 1 to 2, quickly."""
    limits = Limits(**rest.pop("limits", {}))
    shadowing = Shadowing(**{"sample": 1.0, **rest.pop("shadowing", {})})
    settings = {"steps": (0.0, 0.1, 0.5, 1.0), "step_s": 10.0, "samples": 50, **rest}
    return Plan(stable=1, candidate=2, limits=limits, shadowing=shadowing, **settings)


def running(step: int = 1, **rest: Any) -> Rollout:
    """A rollout that has come to this step at time 0."""
    made = Rollout("m", plan(**rest), wall=lambda: 0.0)
    made.step = step
    made.arrive("two", 0.0)
    return made


def request(key: str = "", **rest: Any) -> InferRequest:
    """One row."""
    tensor = from_array("x", DType.FP32, np.ones((1, 2), np.float32))
    tensor = replace(tensor, data=bytes(tensor.data))
    return InferRequest(model="m", version=1, inputs=(tensor,), wanted=("scores",), id=key, **rest)


def response(version: int, scores: Any = (0.9, 0.1)) -> InferResponse:
    """One answer of a version, a row of scores or several."""
    array = np.atleast_2d(np.array(scores, np.float32))
    return InferResponse(model="m", version=version, outputs=(from_array("scores", DType.FP32, array),))


@dataclass
class FakeVersion:
    """A version whose answers are the test's to choose. It is its own stack, its own engines and its own handle."""

    number: int
    answer: Callable[[InferRequest], Any] = lambda asked: (0.9, 0.1)
    seconds: float = 0.0
    idle: bool = True
    gone: bool = False
    asked: list[InferRequest] = field(default_factory=list)
    spec: ModelSpec = SPEC

    def __post_init__(self) -> None:
        self.spec = replace(self.spec, version=self.number, digest=f"digest {self.number}")
        self.inference = self
        self.engines = FakeEngines(self)
        self.service = self
        self.borrowed = 0

    async def infer(self, asked: InferRequest) -> InferResponse:
        self.asked.append(asked)
        return await self.run(asked)

    async def run(self, asked: InferRequest) -> InferResponse:
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return response(self.number, self.answer(asked))

    def __enter__(self) -> Self:
        if self.gone:
            raise ModelNotReady("gone")
        self.borrowed += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.borrowed -= 1


@dataclass
class FakeEngines:
    """What copies are put to."""

    version: FakeVersion
    copies: list[InferRequest] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        return self.version.idle

    async def infer(self, asked: InferRequest) -> InferResponse:
        self.copies.append(asked)
        return await self.version.run(asked)


def failing(error: Exception) -> Callable[[InferRequest], Any]:
    """An answer that is none."""

    def answer(asked: InferRequest) -> Mapping[str, Any]:
        raise error

    return answer
