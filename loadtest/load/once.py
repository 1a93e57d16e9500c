"""One run of a scenario from beginning to end, and runs of it at several loads."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import grpc

from loadtest.load.metrics import Watch
from loadtest.load.plan import Plan, make
from loadtest.load.scenario import Kind, Scenario, ScenarioError
from loadtest.load.schedule import Arrivals
from loadtest.load.summary import summarise
from loadtest.load.workers import Report, run_all
from server.pb import grpc_service_pb2 as pb

Result = dict[str, Any]
METADATA = "/inference.GRPCInferenceService/ModelMetadata"
_ASK_S = 10.0


def run_once(scenario: Scenario, report: Report | None = None, plan: Plan | None = None) -> Result:
    """Run it. ScenarioError where it does not fit the server; LoadFailed where the generator could not run."""
    made = make(scenario, asking(scenario.address)) if plan is None else plan
    watch = Watch(scenario.metrics) if scenario.metrics else None
    if watch is not None:
        try:
            watch.start()
        except OSError as error:
            raise ScenarioError(f"metrics: {scenario.metrics}: {error}") from error
    try:
        finished = run_all(scenario, made, report)
    finally:
        server = None if watch is None else watch.stop()
    about = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    return about | summarise(scenario, finished, server)


def asking(address: str) -> Callable[[Kind], pb.ModelMetadataResponse]:
    """Asks the server at `address` for the metadata of a model; ScenarioError where it has none."""

    def ask(kind: Kind) -> pb.ModelMetadataResponse:
        with grpc.insecure_channel(address) as channel:
            method = channel.unary_unary(
                METADATA,
                request_serializer=pb.ModelMetadataRequest.SerializeToString,
                response_deserializer=pb.ModelMetadataResponse.FromString,
            )
            request = pb.ModelMetadataRequest(name=kind.model, version=kind.version)
            try:
                told: pb.ModelMetadataResponse = method(request, timeout=_ASK_S)
            except grpc.RpcError as error:
                raise ScenarioError(
                    f"model {kind.model!r} at {address}: {error.code().name}: {error.details()}"
                ) from None
        return told

    return ask


def capacity(scenario: Scenario, callers: int, seconds: float) -> tuple[float, Result]:
    """Answers a second that so many callers without deadlines get, who wait for each answer."""
    requests = tuple(dataclasses.replace(kind, deadline_ms={}, send_timeout=False) for kind in scenario.requests)
    closed = Arrivals(kind="closed", callers=callers)
    result = run_once(
        dataclasses.replace(scenario, requests=requests, arrivals=closed, seconds=seconds, name="capacity")
    )
    return result["answers_per_s"], result


def sweep(
    scenario: Scenario,
    loads: Sequence[float],
    of: float,
    before: Callable[[float, Scenario], Report | None] | None = None,
) -> list[Result]:
    """The scenario at each of the loads, as multiples of `of` requests a second; `before` gives each run's reporter."""
    if scenario.arrivals.kind not in {"poisson", "uniform", "bursty"}:
        raise ScenarioError(f"arrivals.kind: {scenario.arrivals.kind!r} cannot be swept: it has no one rate")
    results = []
    for load in loads:
        arrivals = dataclasses.replace(scenario.arrivals, rate=load * of)
        at = dataclasses.replace(scenario, arrivals=arrivals, name=f"{scenario.name} at {load:g}")
        result = run_once(at, before(load, at) if before is not None else None)
        results.append(result | {"load": load, "capacity": of})
    return results


def machine() -> str:
    """What the generator runs on, in a line."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("grpcio", "numpy"))
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {processor()}, Python {platform.python_version()}, {versions}"


def processor() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123 - it is no file but an interface
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
