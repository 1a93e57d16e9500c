"""Runs a plan in processes of its own, which all start at one moment of the machine's monotonic clock."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from loadtest.load.aio import GrpcAioClient
from loadtest.load.client import MOST_CONNECTIONS, Body, Client, Http2Client
from loadtest.load.generator import ClosedLoop, OpenLoop, Progress, Record, Source, run
from loadtest.load.plan import Plan
from loadtest.load.scenario import Scenario, ScenarioError

_HEAD_START_S = 0.05
_PRECEDENCE = -10
"""Niceness, where it may be lowered (by root): a server on the same machine must not take the generator's turns."""


class LoadFailed(RuntimeError):
    """A process of the generator could not do its part; the text says why."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What one process brought home."""

    record: Record
    cpu_s: float
    wall_s: float


Report = Callable[[float, Sequence[Progress]], None]
"""Told several times a second how far the run is, with the progress of each process."""


def connect(scenario: Scenario, bodies: Sequence[Body]) -> Client:
    """The client that the scenario asks for."""
    if scenario.client == "grpc.aio":
        return GrpcAioClient(scenario.address, bodies, scenario.connections)
    return Http2Client(scenario.address, bodies, scenario.connections)


def run_all(scenario: Scenario, plan: Plan, report: Report | None = None) -> list[Finished]:
    """Run the plan in the scenario's number of processes. LoadFailed where one fails."""
    if scenario.connections > MOST_CONNECTIONS:
        raise ScenarioError(f"connections: at most {MOST_CONNECTIONS} for each process; take more processes")
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    try:
        for number in range(scenario.processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, scenario, plan.part(number, scenario.processes)))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            _expect(pipe, "ready")
        began = time.monotonic() + _HEAD_START_S
        for pipe in pipes:
            pipe.send(began)
        finished = _collect(pipes, began, report)
    finally:
        for process in processes:
            if process.is_alive():
                process.join(2.0)
            if process.is_alive():
                process.terminate()
            process.join()
    return finished


def _expect(pipe: Connection, word: str) -> object:
    try:
        said, content = pipe.recv()
    except EOFError:
        raise LoadFailed("a process of the generator ended without a word") from None
    if said != word:
        raise LoadFailed(str(content))
    return content


def _collect(pipes: Sequence[Connection], began: float, report: Report | None) -> list[Finished]:
    """Hear the processes until all are done."""
    finished: dict[int, Finished] = {}
    progress = [Progress() for _ in pipes]
    numbers = {pipe: number for number, pipe in enumerate(pipes)}
    while len(finished) < len(pipes):
        for ready in wait([pipe for pipe in pipes if numbers[pipe] not in finished]):
            assert isinstance(ready, Connection)
            number = numbers[ready]
            try:
                said, content = ready.recv()
            except EOFError:
                raise LoadFailed("a process of the generator ended in the middle of the run") from None
            if said == "failed":
                raise LoadFailed(content)
            if said == "done":
                finished[number] = content
            else:
                progress[number] = content
        if report is not None:
            report(time.monotonic() - began, progress)
    return [finished[number] for number in range(len(pipes))]


def _work(pipe: Connection, scenario: Scenario, plan: Plan) -> None:
    """The body of a process."""
    try:
        client = connect(scenario, plan.bodies)
    except (OSError, TimeoutError) as error:
        pipe.send(("failed", f"no connection to {scenario.address}: {error or 'nobody answers'}"))
        return
    with contextlib.suppress(PermissionError):
        os.nice(_PRECEDENCE)
    gc.freeze()
    gc.disable()  # its pauses would be taken for the server's
    pipe.send(("ready", None))
    began: float = pipe.recv()
    try:
        cpu_s = time.process_time()
        record = run(client, _source(scenario, plan), began, scenario.drain_s, lambda _, how: pipe.send(("far", how)))
        pipe.send(("done", Finished(record, time.process_time() - cpu_s, time.monotonic() - began)))
    except BrokenPipeError:
        pass  # whoever started us has gone
    except Exception as error:  # noqa: BLE001 - it is told to the parent, which raises it
        pipe.send(("failed", f"the generator failed: {error!r}"))
    finally:
        client.close()


def _source(scenario: Scenario, plan: Plan) -> Source:
    if scenario.arrivals.kind == "closed":
        return ClosedLoop(plan.shots, plan.callers, scenario.seconds)
    return OpenLoop(plan.shots)
