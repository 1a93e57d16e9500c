"""From a scenario to the very requests: bodies are serialised and every choice is drawn before the clock starts."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.scheduling.arrivals import Arrival, recorded
from loadtest.load import schedule
from loadtest.load.client import Body
from loadtest.load.generator import Shot
from loadtest.load.scenario import Kind, Scenario, ScenarioError
from server.pb import grpc_service_pb2 as pb

INFER = "/inference.GRPCInferenceService/ModelInfer"
MOST_BYTES = 512 * 1024 * 1024
"""Of all bodies together; they are kept in memory by each process."""
_CLOSED_SHOTS = 20_000

Metadata = Callable[[Kind], pb.ModelMetadataResponse]
Encode = Callable[[Kind, pb.ModelInferRequest], Body]
"""Makes a body of a request, in the words that a server understands."""

_FLOATS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}


@dataclass(frozen=True, slots=True)
class Plan:
    """What one process sends."""

    bodies: Sequence[Body]
    shots: Sequence[Shot]
    callers: int = 0
    """More than 0: a closed loop, whose callers ask for the shots over and over."""

    def part(self, number: int, of: int) -> Plan:
        """The share of one process among several: every so-many-th request, which keeps a Poisson process one."""
        callers = len(range(number, self.callers, of))
        return dataclasses.replace(self, shots=self.shots[number::of], callers=callers)


def make(scenario: Scenario, metadata: Metadata, encode: Encode | None = None) -> Plan:
    """The plan of all processes together. `metadata` tells what a model's inputs are, `encode` how to ask for them."""
    rng = random.Random(scenario.seed)
    bodies = _Bodies(scenario, metadata, encode or infer_body)
    arrivals = scenario.arrivals
    if arrivals.kind == "trace":
        shots = _replayed(scenario, bodies, rng)
        return Plan(bodies.made, shots)
    closed = arrivals.kind == "closed"
    times = [0.0] * _CLOSED_SHOTS if closed else list(schedule.times(arrivals, scenario.seconds, rng))
    kinds = rng.choices(range(len(scenario.requests)), [kind.share for kind in scenario.requests], k=len(times))
    draws = [_Draw(kind, rng) for kind in scenario.requests]
    shots = []
    for at, number in zip(times, kinds, strict=True):
        rows, deadline_s, cancel_s = draws[number].one()
        shots.append(Shot(at, bodies.number(number, rows, deadline_s, rng), number, deadline_s, cancel_s))
    return Plan(bodies.made, shots, arrivals.callers if closed else 0)


def _replayed(scenario: Scenario, bodies: _Bodies, rng: random.Random) -> list[Shot]:
    """A trace's requests, all of the scenario's first kind, but for rows and deadlines, which are the trace's."""
    path = Path(scenario.arrivals.trace)
    try:
        with path.open() as lines:
            trace: list[Arrival] = recorded(lines, speed=scenario.arrivals.speed)
    except OSError as error:
        raise ScenarioError(f"arrivals.trace: {path}: {error.strerror}") from error
    except ValueError as error:
        raise ScenarioError(f"arrivals.trace: {path}: {error}") from error
    within = [arrival for arrival in trace if arrival.at < scenario.seconds]
    return [Shot(a.at, bodies.number(0, a.rows, a.left_s, rng), 0, a.left_s) for a in within]


class _Draw:
    """Draws what a request of one kind is like."""

    def __init__(self, kind: Kind, rng: random.Random) -> None:
        self._rng, self._cancel = rng, kind.cancel
        self._rows = [int(float(rows)) for rows in kind.rows], list(kind.rows.values())
        self._deadlines = [float(ms) / 1e3 for ms in kind.deadline_ms], list(kind.deadline_ms.values())

    def one(self) -> tuple[int, float, float]:
        """Rows, deadline and time until the caller gives up, in seconds."""
        rows = self._rng.choices(*self._rows)[0]
        deadline_s = self._rng.choices(*self._deadlines)[0] if self._deadlines[0] else math.inf
        given_up = self._cancel.share > 0 and self._rng.random() < self._cancel.share
        return rows, deadline_s, self._cancel.after_ms / 1e3 if given_up else math.inf


class _Bodies:
    """Serialised requests, made when they are first drawn."""

    def __init__(self, scenario: Scenario, metadata: Metadata, encode: Encode) -> None:
        self._encode = encode
        self._kinds = scenario.requests
        self._metadata = [metadata(kind) for kind in self._kinds]
        self._known: dict[tuple[int, int, int, float], int] = {}
        self._seed = scenario.seed
        self._bytes = 0
        self._weights = [_zipf(kind) for kind in self._kinds]
        self.made: list[Body] = []

    def number(self, kind: int, rows: int, deadline_s: float, rng: random.Random) -> int:
        """The number of a body with these rows, its input drawn."""
        which = self._kinds[kind]
        weights = self._weights[kind]
        inputs = range(which.inputs)
        drawn = rng.choice(inputs) if weights is None else rng.choices(inputs, cum_weights=weights)[0]
        key = kind, rows, drawn, deadline_s if which.send_timeout else math.inf
        if key not in self._known:
            self._known[key] = len(self.made)
            random_state = np.random.default_rng((self._seed, kind, rows, drawn))
            request = infer_request(which, self._metadata[kind], rows, key[3], random_state)
            self._add(self._encode(which, request))
        return self._known[key]

    def _add(self, body: Body) -> None:
        self.made.append(body)
        self._bytes += len(body.message)
        if self._bytes > MOST_BYTES:
            raise ScenarioError(f"requests: the bodies exceed {MOST_BYTES >> 20} MiB; ask for fewer `inputs`")


def infer_body(kind: Kind, request: pb.ModelInferRequest) -> Body:
    """A request of the KServe protocol."""
    return Body(INFER, request.SerializeToString(), tuple(kind.metadata.items()))


def _zipf(kind: Kind) -> list[float] | None:
    """Cumulative weights of the inputs."""
    if kind.zipf <= 0:
        return None
    return list(np.cumsum(1.0 / np.arange(1, kind.inputs + 1) ** kind.zipf))


def infer_request(
    kind: Kind, metadata: pb.ModelMetadataResponse, rows: int, timeout_s: float, random_state: np.random.Generator
) -> pb.ModelInferRequest:
    """A request with drawn values. ScenarioError where a shape is open that the scenario does not give."""
    request = pb.ModelInferRequest(model_name=kind.model, model_version=kind.version)
    if kind.priority:
        request.parameters["priority"].uint64_param = kind.priority
    if timeout_s < math.inf:
        request.parameters["timeout"].int64_param = round(timeout_s * 1e6)
    for each in metadata.inputs:
        shape = _shape(kind, each, rows)
        request.inputs.add(name=each.name, datatype=each.datatype, shape=shape)
        request.raw_input_contents.append(_values(each.datatype, shape, random_state))
    return request


def _shape(kind: Kind, tensor: pb.ModelMetadataResponse.TensorMetadata, rows: int) -> list[int]:
    batched = bool(tensor.shape) and tensor.shape[0] == -1
    given = kind.shapes.get(tensor.name)
    shape = [*([rows] if batched else []), *(given if given is not None else tensor.shape[1 if batched else 0 :])]
    if any(size < 0 for size in shape):
        raise ScenarioError(
            f"requests: model {kind.model!r} leaves the shape of {tensor.name!r} open: {list(tensor.shape)}; "
            f"write shapes = {{ {tensor.name} = [...] }}, without the rows"
        )
    return shape


def _values(datatype: str, shape: Sequence[int], random_state: np.random.Generator) -> bytes:
    """Raw contents: small numbers, and words for BYTES."""
    count = math.prod(shape)
    if datatype == "BYTES":
        words = [b"word%d" % number for number in random_state.integers(0, 1000, count)]
        return b"".join(len(word).to_bytes(4, "little") + word for word in words)
    if datatype in _FLOATS:
        drawn: NDArray[np.float32] = random_state.standard_normal(count, dtype=np.float32)
        return drawn.astype(_FLOATS[datatype]).tobytes()
    if datatype == "BF16":
        bits = random_state.standard_normal(count, dtype=np.float32).view(np.uint32) >> 16
        return bits.astype(np.uint16).tobytes()
    if datatype == "BOOL":
        return random_state.integers(0, 2, count, dtype=np.uint8).tobytes()
    name = datatype.lower().replace("uint", "u").replace("int", "i")
    return random_state.integers(0, 16, count).astype(np.dtype(f"{name[0]}{int(name[1:]) // 8}")).tobytes()
