"""What the watch and the outcomes say of a candidate decides about its rollout, on a whole server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from engines.repository.manager import ControlMode
from server.pb import feedback_pb2, grpc_service_pb2, rollout_pb2
from server.pb.feedback_pb2_grpc import FeedbackStub
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.pb.rollout_pb2_grpc import RolloutStub
from server.watch.trigger_file import TriggerOptions
from server.watch.triggers import Rule
from tests.support import onnx_models
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import serving

WATCH = "watch { enable: true sample_rate: 1 window_rows: 40 learn_rows: 80 look_milliseconds: 1 }\n"
CONFIG = f"max_batch_size: 8\n{WATCH}{ONE_ENGINE}"
COSTLY = Rule(name="costly", signal="outcome.cost", above=1.0, min_samples=10)
QUIET = Rule(name="quiet", signal="volume", below=1e9)
"""Raised for every version at once, and no reason to send one back."""
PATIENCE_S = 60.0


class World:
    """A server with versions 1 and 2, and those who call it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.infer = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        self.feedback = FeedbackStub(channel)  # type: ignore[no-untyped-call]
        self.rollouts = RolloutStub(channel)  # type: ignore[no-untyped-call]
        self.random = np.random.default_rng(0)
        self.calls = 0

    async def call(self, mean: float = 0.0, version: str = "") -> tuple[str, str]:
        """Ask with a row of that mean: the request's id, and the version that answered."""
        self.calls += 1
        request = grpc_service_pb2.ModelInferRequest(model_name="m", model_version=version, id=f"q{self.calls}")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        request.raw_input_contents.append(self.random.normal(mean, size=(1, 4)).astype(np.float32).tobytes())
        answer = await self.infer.ModelInfer(request, timeout=30)
        return request.id, answer.model_version

    async def teach(self, version: str, mean: float) -> None:
        """Let a version learn what is normal."""
        for _ in range(80):
            await self.call(mean, version)

    async def cost(self, identifier: str, value: float) -> None:
        outcome = feedback_pb2.Outcome(model="m", id=identifier, metric="cost", value=value)
        await self.feedback.Report(feedback_pb2.ReportRequest(outcomes=[outcome]), timeout=30)

    async def begin(self) -> None:
        """Half of the callers get version 2, for as long as nothing speaks against it."""
        shadowing = rollout_pb2.RolloutShadowing(sample=-1)
        limits = rollout_pb2.RolloutLimits(latency_ratio=-1)
        await self.rollouts.Start(
            rollout_pb2.RolloutStartRequest(
                model="m", candidate=2, stable=1, steps=[0.5], step_seconds=3600, shadowing=shadowing, limits=limits
            )
        )

    async def state(self) -> Any:
        (found,) = (await self.rollouts.Status(rollout_pb2.RolloutStatusRequest(model="m"))).rollouts
        return found


@contextlib.asynccontextmanager
async def world(folder: Path, *rules: Rule) -> AsyncIterator[World]:
    for version in (1, 2):
        onnx_models.write(folder / "models", "m", versions=(version,), proto=onnx_models.scale(2.0), config=CONFIG)
    with (folder / "models" / "m" / "config.pbtxt").open("a") as config:
        config.write("version_policy { all { } }\n")
    options: dict[str, Any] = {"mode": ControlMode.NONE, "state_dir": folder / "state"}
    if rules:
        options["triggers"] = TriggerOptions(rules=rules, actions={}, every_s=0.05)
    async with serving(folder / "models", **options) as (_, url), grpc.aio.insecure_channel(url) as channel:
        yield World(channel)


def test_a_canary_that_drifts_alone_is_rolled_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as there:
            await there.teach("1", mean=0.0)
            await there.teach("2", mean=3.0)  # it was made for another world than the one it will see
            await there.begin()
            async with asyncio.timeout(PATIENCE_S):
                while (await there.state()).stage != rollout_pb2.ROLLED_BACK:
                    await there.call(mean=0.0)
            reason = (await there.state()).reason
            assert reason.startswith("alarm of drift, drift.x"), reason
            assert {(await there.call())[1] for _ in range(20)} == {"1"}

    asyncio.run(main())


def test_a_canary_with_costly_outcomes_is_rolled_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, COSTLY, QUIET) as there:
            await there.begin()
            async with asyncio.timeout(PATIENCE_S):
                while (await there.state()).stage != rollout_pb2.ROLLED_BACK:
                    identifier, version = await there.call()
                    await there.cost(identifier, 5.0 if version == "2" else 0.0)
            assert (await there.state()).reason == "alarm of rule.costly, which the stable version does not raise"

    asyncio.run(main())
