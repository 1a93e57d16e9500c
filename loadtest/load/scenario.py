"""Scenario files: what is asked of a server, when, and by what means. TOML; every mistake is named with its place."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.scheduling.arrivals import Bursts
from loadtest.load.schedule import KINDS, Arrivals


class ScenarioError(ValueError):
    """The scenario cannot be run; the text says where and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellations:
    """Callers who give up."""

    share: float = 0.0
    """Of the requests, 0 to 1."""
    after_ms: float = 1.0
    """Time from when the request was due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of request of the mix."""

    model: str
    version: str = ""
    share: float = 1.0
    """Shares need not add to 1."""
    rows: Mapping[str, float] = field(default_factory=lambda: {"1": 1.0})
    """Share of the requests by rows: { 1 = 0.8, 4 = 0.2 }."""
    deadline_ms: Mapping[str, float] = field(default_factory=dict)
    """Share of the requests by deadline: { 50 = 0.5, 200 = 0.5 }. Empty: none have one."""
    shapes: Mapping[str, list[int]] = field(default_factory=dict)
    """By input, its shape without the row dimension, where the model leaves dimensions open."""
    inputs: int = 32
    """Different inputs; each request draws one."""
    zipf: float = 0.0
    """Exponent of Zipf's law by which inputs are drawn. 0: all alike."""
    priority: int = 0
    """Sent as the parameter `priority`; 0: not sent."""
    send_timeout: bool = False
    """Also send the deadline as the parameter `timeout`, in microseconds, for servers that do not read gRPC's."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    cancel: Cancellations = Cancellations()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A whole run."""

    requests: tuple[Kind, ...]
    name: str = "scenario"
    address: str = "127.0.0.1:8001"
    metrics: str = ""
    """URL of the server's metrics, http://127.0.0.1:8002/metrics; empty: not read."""
    seconds: float = 10.0
    drain_s: float = 5.0
    """How long answers are waited for when the last request is sent."""
    seed: int = 1
    processes: int = 1
    connections: int = 4
    """Of each process."""
    client: str = "http2"
    """http2: our own, cheap. grpc.aio: the reference, some 300 microseconds of CPU a call."""
    max_slip_ms: float = 5.0
    """A run in which more than 1 % of the requests left later than this is invalid: the generator was the limit."""
    arrivals: Arrivals = field(default_factory=Arrivals)


CLIENTS = ("http2", "grpc.aio")


def load(path: Path) -> Scenario:
    """The scenario in a file; a trace's path is relative to it. ScenarioError, naming the place, if it is wrong."""
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: not TOML: {error}") from error
    try:
        scenario = parse(data)
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from None
    if scenario.arrivals.trace:
        trace = str(path.parent / scenario.arrivals.trace)
        scenario = dataclasses.replace(scenario, arrivals=dataclasses.replace(scenario.arrivals, trace=trace))
    return scenario


def parse(data: Mapping[str, Any]) -> Scenario:
    """A scenario from the tables of a file."""
    scenario: Scenario = _build(Scenario, data, "")
    check(scenario)
    return scenario


def check(scenario: Scenario) -> None:
    """ScenarioError if it cannot be run."""
    _need(bool(scenario.requests), "requests: at least one [[requests]] is needed")
    _need(scenario.client in CLIENTS, f"client: {scenario.client!r} is none of {', '.join(CLIENTS)}")
    _need(":" in scenario.address, f"address: {scenario.address!r} is not host:port")
    for name in ("seconds", "processes", "connections", "max_slip_ms"):
        _need(getattr(scenario, name) > 0, f"{name}: must be more than 0")
    _check_arrivals(scenario.arrivals)
    for number, kind in enumerate(scenario.requests):
        _check_kind(kind, f"requests[{number}]")


def _check_arrivals(arrivals: Arrivals) -> None:
    _need(arrivals.kind in KINDS, f"arrivals.kind: {arrivals.kind!r} is none of {', '.join(KINDS)}")
    _need(arrivals.rate > 0, "arrivals.rate: must be more than 0")
    _need(arrivals.callers > 0, "arrivals.callers: must be more than 0")
    _need(arrivals.kind != "step" or bool(arrivals.steps), "arrivals.steps: the rates of the steps are missing")
    _need(arrivals.kind != "ramp" or arrivals.to_rate > 0, "arrivals.to_rate: where the ramp ends is missing")
    _need(arrivals.kind != "trace" or bool(arrivals.trace), "arrivals.trace: the file to replay is missing")


def _check_kind(kind: Kind, place: str) -> None:
    _need(kind.share > 0, f"{place}.share: must be more than 0")
    _need(kind.inputs > 0, f"{place}.inputs: must be more than 0")
    _need(0 <= kind.cancel.share <= 1, f"{place}.cancel.share: must be from 0 to 1")
    for name, whole in (("rows", True), ("deadline_ms", False)):
        for key, share in getattr(kind, name).items():
            number = _number(key)
            good = number is not None and number > 0 and (not whole or number == int(number))
            _need(good and share > 0, f"{place}.{name}: {key} = {share:g}: both must be numbers of more than 0")
    _need(bool(kind.rows), f"{place}.rows: is empty")
    _need(not kind.send_timeout or bool(kind.deadline_ms), f"{place}.send_timeout: there is no deadline to send")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ScenarioError(message)


# From TOML's values to the dataclasses above, by their annotations.


def _build(cls: type[Any], data: object, place: str) -> Any:  # noqa: ANN401 - an instance of `cls`
    if not isinstance(data, Mapping):
        raise ScenarioError(f"{place or 'the file'}: must be a table")
    hints = typing.get_type_hints(cls)
    known = {each.name: each for each in dataclasses.fields(cls)}
    for key in data:
        if key not in known:
            raise ScenarioError(f"{_join(place, key)}: no such key; there are {', '.join(sorted(known))}")
    for name, each in known.items():
        optional = each.default is not dataclasses.MISSING or each.default_factory is not dataclasses.MISSING
        if name not in data and not optional:
            raise ScenarioError(f"{_join(place, name)}: is missing")
    return cls(**{key: _value(hints[key], value, _join(place, key)) for key, value in data.items()})


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _value(hint: Any, value: object, place: str) -> Any:  # noqa: ANN401 - of the type that `hint` says
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, place)
    if origin is tuple:
        if not isinstance(value, list):
            raise ScenarioError(f"{place}: must be a list")
        return tuple(_value(inner[0], each, f"{place}[{number}]") for number, each in enumerate(value))
    if origin is list:
        return list(_value(types.GenericAlias(tuple, inner), value, place))
    if origin is not None:  # Mapping
        if inner[1] is float and isinstance(value, int | float) and not isinstance(value, bool):
            return {f"{value:g}": 1.0}  # deadline_ms = 50 is short for { 50 = 1 }
        if not isinstance(value, Mapping):
            raise ScenarioError(f"{place}: must be a table")
        return {str(key): _value(inner[1], each, f"{place}.{key}") for key, each in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ScenarioError(f"{place}: must be {_NAMES[hint]}, not {value!r}")
    return value


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}

__all__ = ["Bursts", "Cancellations", "Kind", "Scenario", "ScenarioError", "check", "load", "parse"]
