"""Rollouts on whole servers: real models, real calls, real restarts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.repository.manager import ControlMode
from server.app import Server
from server.pb import grpc_service_pb2 as pb
from server.pb import rollout_pb2
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.pb.rollout_pb2_grpc import RolloutStub
from server.telemetry.meter import Outcome
from server.transport.listen import TransportKind
from tests.support import onnx_models
from tests.support.repositories import ONE_ENGINE
from tests.support.servers import RunningServer, running_server, serving, start_server, wait_until

CONFIG = f"max_batch_size: 8\n{ONE_ENGINE}"
PATIENCE_S = 60.0


def crashing() -> onnx.ModelProto:
    """As `onnx_models.scale`, but each execution fails: it looks up what is not there."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])]
    weights = [
        numpy_helper.from_array(np.ones((2, 4), np.float32), "table"),
        numpy_helper.from_array(np.array(1000.0, np.float32), "far"),
    ]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], axes=[1], keepdims=0),
        helper.make_node("Abs", ["largest"], ["positive"]),
        helper.make_node("Add", ["positive", "far"], ["beyond"]),
        helper.make_node("Cast", ["beyond"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["y"]),
    ]
    return onnx_models.model(helper.make_graph(nodes, "crashing", inputs, outputs, weights))


def publish(root: Path, version: int, proto: onnx.ModelProto, config: str = CONFIG) -> None:
    onnx_models.write(root, "m", versions=(version,), proto=proto, config=config)


def message(key: str = "", version: str = "") -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="m", model_version=version, id=key)
    made.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    made.raw_input_contents.append(np.ones((1, 4), np.float32).tobytes())
    return made


def factor(answer: pb.ModelInferResponse) -> float:
    return float(np.frombuffer(answer.raw_output_contents[0], np.float32)[0])


@contextlib.asynccontextmanager
async def explicit(
    root: Path, transport: TransportKind, state: Path | None = None
) -> AsyncIterator[tuple[Server, Any, Any]]:
    """A server that has loaded version 1, and stubs for inference and rollouts."""
    publish(root, 1, onnx_models.scale(2.0))
    async with serving(
        root, transport=transport, mode=ControlMode.EXPLICIT, startup_models=("m",), state_dir=state
    ) as (server, url), grpc.aio.insecure_channel(url) as channel:  # fmt: skip
        yield server, GRPCInferenceServiceStub(channel), RolloutStub(channel)  # type: ignore[no-untyped-call]


async def state_of(rollouts: Any) -> rollout_pb2.RolloutState:
    (found,) = (await rollouts.Status(rollout_pb2.RolloutStatusRequest(model="m"))).rollouts
    return found


async def call_until(stub: Any, rollouts: Any, stage: rollout_pb2.RolloutStage) -> Counter[tuple[str, float]]:
    """Call as different callers until that stage; the versions and factors that they were answered with."""
    answers: Counter[tuple[str, float]] = Counter()
    async with asyncio.timeout(PATIENCE_S):
        number = 0
        while (await state_of(rollouts)).stage != stage:
            for answer in await asyncio.gather(*(stub.ModelInfer(message(f"caller {number + i}")) for i in range(4))):
                answers[answer.model_version, factor(answer)] += 1
            number += 4
    return answers


def request(**rest: Any) -> rollout_pb2.RolloutStartRequest:
    settings = {"step_seconds": -1, "samples": 20, "candidate": 2, **rest}
    limits = rollout_pb2.RolloutLimits(latency_ratio=-1, **settings.pop("limits", {}))
    shadowing = rollout_pb2.RolloutShadowing(**{"sample": 1.0, **settings.pop("shadowing", {})})
    return rollout_pb2.RolloutStartRequest(model="m", limits=limits, shadowing=shadowing, **settings)


TRANSPORTS = pytest.mark.parametrize("transport", list(TransportKind))


@TRANSPORTS
def test_a_good_candidate_is_promoted_and_none_is_answered_before_its_time(
    tmp_path: Path, transport: TransportKind
) -> None:
    async def main() -> None:
        async with explicit(tmp_path / "models", transport) as (server, stub, rollouts):
            publish(tmp_path / "models", 2, onnx_models.scale(2.0))
            assert (await stub.ModelInfer(message())).model_version == "1"
            begun = await rollouts.Start(request(steps=[0, 0.5, 1]))
            assert (begun.stage, begun.stable, begun.share) == (rollout_pb2.SHADOW, 1, 0.0)
            assert {(await stub.ModelInfer(message(str(n)))).model_version for n in range(50)} == {"1"}
            index = (await stub.RepositoryIndex(pb.RepositoryIndexRequest())).models
            assert [line.reason for line in index] == [
                "rollout: the stable version, on the way to 2",
                "rollout: shadow, sees copies (step 1 of 3)",
            ]
            answers = await call_until(stub, rollouts, rollout_pb2.PROMOTED)
            assert {version for version, _ in answers} == {"1", "2"}
            assert (await stub.ModelInfer(message("caller 0"))).model_version == "2"
            assert (await stub.ModelInfer(message("caller 0", "1"))).model_version == "1"
            publish(tmp_path / "models", 3, onnx_models.scale(9.0))
            await server.manager.load("m")
            assert (await stub.ModelInfer(message("caller 0", "3"))).model_version == "3"
            assert (await stub.ModelInfer(message("caller 0"))).model_version == "2"
            await rollouts.Abort(rollout_pb2.RolloutAbortRequest(model="m", forget=True))
            assert (await stub.ModelInfer(message("caller 0"))).model_version == "3"

    asyncio.run(main())


@TRANSPORTS
@pytest.mark.parametrize(("candidate", "counted"), [("wrong", "copies_compared"), ("crashing", "copies_failed")])
def test_a_broken_candidate_is_found_in_the_shadow_and_no_caller_knows(
    tmp_path: Path, transport: TransportKind, candidate: str, counted: str
) -> None:
    async def main() -> None:
        async with explicit(tmp_path / "models", transport) as (server, stub, rollouts):
            publish(tmp_path / "models", 2, onnx_models.scale(7.0) if candidate == "wrong" else crashing())
            await rollouts.Start(request(steps=[0, 0.5, 1]))
            answers = await call_until(stub, rollouts, rollout_pb2.ROLLED_BACK)
            assert set(answers) == {("1", 2.0)}
            ended = await state_of(rollouts)
            assert "agrees on 0.0%" in ended.reason
            assert getattr(ended, counted) >= 10
            stable, shadowed = (model.meter for model in server.models.served())
            assert stable.outcomes[Outcome.IN_DEADLINE] == sum(answers.values())
            assert sum(stable.outcomes.values()) == sum(answers.values())
            assert sum(shadowed.outcomes.values()) == 0
            assert {(await stub.ModelInfer(message(str(n)))).model_version for n in range(20)} == {"1"}
            with pytest.raises(grpc.RpcError) as refused:
                await rollouts.Promote(rollout_pb2.RolloutPromoteRequest(model="m"))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(main())


@TRANSPORTS
def test_a_crashing_canary_is_rolled_back_and_its_callers_are_answered_by_the_stable_version(
    tmp_path: Path, transport: TransportKind
) -> None:
    async def main() -> None:
        async with explicit(tmp_path / "models", transport) as (_, stub, rollouts):
            publish(tmp_path / "models", 2, crashing())
            await rollouts.Start(request(steps=[0.5, 1], shadowing={"sample": -1}))
            answers = await call_until(stub, rollouts, rollout_pb2.ROLLED_BACK)
            assert set(answers) == {("1", 2.0)}
            ended = await state_of(rollouts)
            assert ended.retries >= 10
            assert ended.reason.startswith("fails 100.0% of")

    asyncio.run(main())


def test_a_candidate_that_takes_other_requests_or_cannot_be_loaded_never_begins(tmp_path: Path) -> None:
    async def main() -> None:
        async with explicit(tmp_path / "models", TransportKind.HTTP2) as (_, stub, rollouts):
            publish(tmp_path / "models", 2, onnx_models.identity())  # x0 and y0, not x and y
            begun = await rollouts.Start(request())
            assert begun.stage == rollout_pb2.ROLLED_BACK
            assert "the candidate has other inputs" in begun.reason
            publish(tmp_path / "models", 3, onnx_models.scale(2.0))
            (tmp_path / "models" / "m" / "3" / "model.onnx").write_bytes(b"junk")
            with pytest.raises(grpc.RpcError, match="failed to load"):
                await rollouts.Start(request(candidate=3))
            assert (await state_of(rollouts)).stage == rollout_pb2.ROLLED_BACK
            assert (await stub.ModelInfer(message())).model_version == "1"

    asyncio.run(main())


def test_callers_are_split_by_metadata(tmp_path: Path) -> None:
    async def main() -> None:
        async with explicit(tmp_path / "models", TransportKind.HTTP2) as (_, stub, rollouts):
            publish(tmp_path / "models", 2, onnx_models.scale(2.0))
            await rollouts.Start(request(steps=[0.5], step_seconds=3600, split_by="metadata:X-User"))
            seen: dict[str, set[str]] = {}
            for number in range(120):
                user = f"user {number % 30}"
                answer = await stub.ModelInfer(message(str(number)), metadata=(("x-user", user),))
                seen.setdefault(user, set()).add(answer.model_version)
            assert all(len(versions) == 1 for versions in seen.values())
            assert {version for versions in seen.values() for version in versions} == {"1", "2"}

    asyncio.run(main())


def cli(server: RunningServer, *arguments: str, status: int = 0) -> Any:
    command = [sys.executable, "-m", "server", "rollout", *arguments, "--url", server.url, "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.integration
def test_killed_in_the_middle_a_server_goes_on_where_it_was(tmp_path: Path) -> None:
    root, state = tmp_path / "models", tmp_path / "state"
    publish(root, 1, onnx_models.scale(2.0))
    flags = ("--state-dir", state, "--model-control-mode", "poll", "--repository-poll-secs", "0.05")
    first = start_server("--model-repository", root, *flags)
    try:
        first.wait_ready()
        begun = cli(first, "start", "m", "2", "--steps", "0,50,100", "--step-time", "0s", "--samples", "5",
                    "--shadow-sample", "1", "--max-latency-ratio", "inf")  # fmt: skip
        assert (begun["stage"], begun["stable"]) == ("WAITING", "1")
        publish(root, 2, onnx_models.scale(2.0))
        wait_until(lambda: cli(first, "status", "m")["rollouts"][0]["stage"] == "SHADOW", "the candidate")
        with grpc.insecure_channel(first.url) as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            wait_until(
                lambda: stub.ModelInfer(message("a"), timeout=30) and cli(first, "status")["rollouts"][0]["step"] == 1,
                "the canary",
            )
    finally:
        first.end()  # kills
    with running_server(root, *flags) as second:
        wait_until(lambda: cli(second, "status")["rollouts"][0]["stage"] == "CANARY", "the canary again")
        (found,) = cli(second, "status")["rollouts"]
        assert (found["step"], found["share"], found["stable"]) == (1, 0.5, "1")
        with grpc.insecure_channel(second.url) as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            sides = {
                key: {stub.ModelInfer(message(key), timeout=30).model_version for _ in range(3)} for key in "abcdefgh"
            }
            assert all(len(side) == 1 for side in sides.values())
            assert stub.ModelInfer(message("a", "2"), timeout=30).model_version == "2"
            with urllib.request.urlopen(second.metrics_url, timeout=30) as page:
                text = page.read().decode()
            assert 'kairos_rollout_share_ratio{candidate="2",model="m",stable="1"} ' in text
            assert cli(second, "abort", "m")["stage"] == "ABORTED"
            assert {stub.ModelInfer(message(key), timeout=30).model_version for key in "abcdefgh"} == {"1"}
    with running_server(root, *flags) as third, grpc.insecure_channel(third.url) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        assert {stub.ModelInfer(message(key), timeout=30).model_version for key in "abcdefgh"} == {"1"}
