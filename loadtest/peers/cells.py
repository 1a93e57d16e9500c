"""What is measured of a server: closed loops, then open loops at multiples of what it got through.

Rule: every figure of one peer is taken while no other server runs; its answers are checked before anything is timed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from loadtest.load.once import run_once
from loadtest.load.plan import infer_request, make
from loadtest.load.scenario import Kind, Scenario
from loadtest.load.schedule import Arrivals
from loadtest.peers.models import MODELS, Model
from loadtest.peers.servers import INSIDE, Peer, Running, Setting, free_port, running

DEADLINES: Final = (1, 2, 4)
"""Times the shortest, a third of the requests each."""
SHORTEST_S: Final = 0.025
FULL_BATCHES: Final = 1.5
"""The shortest deadline is at least this many executions of a full batch."""
_PATIENCE_S: Final = 60.0
_DTYPES: Final = {"FP32": np.float32, "INT64": np.int64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much is measured."""

    models: Sequence[str]
    callers: Sequence[int] = (1, 8, 64)
    loads: Sequence[float] = (0.5, 0.9, 1.5, 2.5)
    closed_s: float = 3.0
    open_s: float = 4.0
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One figure of the tables."""

    peer: str
    model: str
    round: int
    callers: int = 0
    """Of a closed loop; 0: an open one."""
    load: float = 0.0
    """Of an open loop, as a multiple of what the most callers of a closed one got."""
    asked_per_s: float
    answers_per_s: float
    good_per_s: float
    capacity: float = 0.0
    p50_ms: float = math.nan
    p99_ms: float = math.nan
    cpu_us: float
    """CPU of all processes of the server for each request that was sent."""
    codes: Mapping[str, int]
    faults: Sequence[str] = ()


class WrongAnswer(RuntimeError):
    """A server's answer is not ONNX Runtime's."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told as it goes."""

    cell: Callable[[Cell], None]
    failure: Callable[[str, Exception], None]
    """Of a model whose cells end here, and why."""


def limits(files: Mapping[str, Path], options: Options) -> dict[str, dict[int, tuple[float, float]]]:
    """Rows a second and CPU microseconds a row of ONNX Runtime alone, by model and rows in a batch."""
    found = {}
    for name, file in files.items():
        sizes = [str(size) for size in sorted({1, MODELS[name].max_rows})]
        script = [sys.executable, str(INSIDE / "limit.py"), str(file), str(options.threads), "1.5", *sizes]
        told = subprocess.run(script, capture_output=True, text=True, check=True).stdout
        found[name] = {int(rows): (rate, cpu) for rows, (rate, cpu) in json.loads(told).items()}
    return found


def deadlines_ms(model: Model, limit: Mapping[int, tuple[float, float]]) -> dict[str, float]:
    """The deadlines of a model's open loops, the same for all servers."""
    full_s = model.max_rows / limit[model.max_rows][0]
    shortest_ms = max(SHORTEST_S, FULL_BATCHES * full_s) * 1e3
    return {f"{shortest_ms * times:.0f}": 1.0 for times in DEADLINES}


def measure(
    peer: Peer,
    files: Mapping[str, Path],
    deadlines: Mapping[str, Mapping[str, float]],
    options: Options,
    number: int,
    listener: Listener,
) -> None:
    """All cells of one peer in one round. It is started anew for each model: one that dies loses no other model."""
    models = [MODELS[name] for name in options.models]
    for model in models:
        with tempfile.TemporaryDirectory() as name:
            setting = Setting(folder=Path(name), models=models, files=files, threads=options.threads, port=free_port())
            try:
                with running(peer, setting) as server:
                    check_answer(peer, server, model, files[model.name])
                    for cell in _of_model(_Asked(peer, server, model, number), deadlines[model.name], options):
                        listener.cell(cell)
            except (RuntimeError, OSError, grpc.RpcError) as error:
                listener.failure(model.name, error)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A model of a running server."""

    peer: Peer
    server: Running
    model: Model
    round: int

    def run(self, arrivals: Arrivals, seconds: float, deadlines: Mapping[str, float] | None = None) -> dict[str, Any]:
        """One run, and the CPU that the server used for each request. Begins and ends with an idle server."""
        kind = Kind(
            model=self.model.name,
            inputs=8,
            deadline_ms=deadlines or {},
            send_timeout=bool(deadlines) and self.peer.reads_timeout,
        )
        scenario = Scenario(
            requests=(kind,), address=self.server.address, seconds=seconds, arrivals=arrivals,
            connections=min(8, arrivals.callers) if arrivals.kind == "closed" else 8,
            drain_s=_PATIENCE_S if arrivals.kind == "closed" else 2.0,
        )  # fmt: skip
        plan = make(scenario, lambda _: self.model.metadata(), self.peer.body)
        if self.peer.reads_timeout:
            plan = dataclasses.replace(plan, shots=[shot._replace(patient=True) for shot in plan.shots])
        before = self.server.cpu_s()
        result = run_once(scenario, plan=plan)
        ask_until_served(
            self.peer, self.server, self.model
        )  # whoever still works on what nobody waits for is waited for
        result["cpu_us"] = (self.server.cpu_s() - before) / max(1, result["sent"]) * 1e6
        return result

    def cell(self, result: Mapping[str, Any], **which: Any) -> Cell:  # noqa: ANN401 - fields of a Cell
        """The result as a figure of the tables."""
        latency = result["latency_ms"]
        return Cell(
            peer=self.peer.name, model=self.model.name, round=self.round, asked_per_s=result["offered_per_s"],
            answers_per_s=result["answers_per_s"], good_per_s=result["good_per_s"], cpu_us=result["cpu_us"],
            p50_ms=latency.get("p50", math.nan), p99_ms=latency.get("p99", math.nan), codes=result["codes"],
            faults=result["invalid_because"], **which,
        )  # fmt: skip


def _of_model(asked: _Asked, deadlines: Mapping[str, float], options: Options) -> Iterator[Cell]:
    asked.run(Arrivals(kind="closed", callers=8), 0.7)  # warm up
    capacity = 0.0
    for callers in options.callers:
        result = asked.run(Arrivals(kind="closed", callers=callers), options.closed_s)
        capacity = max(capacity, result["answers_per_s"])
        yield asked.cell(result, callers=callers)
    for load in options.loads:
        result = asked.run(Arrivals(rate=max(1.0, load * capacity)), options.open_s, deadlines)
        yield asked.cell(result, load=load, capacity=capacity)


def ask(peer: Peer, server: Running, model: Model) -> tuple[bytes, bytes]:
    """One request of one row: what was sent, raw, and the raw answer. Waits as long as it takes to be served."""
    request = infer_request(Kind(model=model.name), model.metadata(), 1, math.inf, np.random.default_rng(0))
    body = peer.body(Kind(model=model.name), request)
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(body.path, None, None)
        answer = call(body.message, timeout=_PATIENCE_S, metadata=body.metadata, wait_for_ready=True)
    return request.raw_input_contents[0], peer.outputs(answer)


def check_answer(peer: Peer, server: Running, model: Model, file: Path) -> None:
    """WrongAnswer unless the server answers as ONNX Runtime does."""
    sent, told = ask_until_served(peer, server, model)
    values = np.frombuffer(sent, _DTYPES[model.datatype]).reshape(1, *model.shape)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    wanted: NDArray[np.float32] = session.run(None, {model.input: values})[0]
    answered = np.frombuffer(told, np.float32)
    if answered.size != wanted.size or not np.allclose(answered, wanted.ravel(), atol=1e-4):
        raise WrongAnswer(
            f"{peer.name} answers {model.name} with {answered[:4]}, ONNX Runtime with {wanted.ravel()[:4]}"
        )


def ask_until_served(peer: Peer, server: Running, model: Model) -> tuple[bytes, bytes]:
    """The first answer: a server may listen before its models are there, or still refuse what it has no room for."""
    for _ in range(60):
        server.check_alive()
        try:
            return ask(peer, server, model)
        except grpc.RpcError as error:
            refused = error
            time.sleep(0.5)
    raise RuntimeError(f"{peer.name} does not serve {model.name}: {refused}")
