"""What the standard OTEL_* variables say about tracing: whether, how much, and to whom.

Read once, at the start. Those of the exporter itself (endpoint, headers, certificates, timeouts, compression), of
resources (OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME) and of batching (OTEL_BSP_*) are read by the SDK.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTERS: Final = {
    "console": ("opentelemetry.sdk.trace.export", "ConsoleSpanExporter"),
    "grpc": ("opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "OTLPSpanExporter"),
    "http/protobuf": ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "OTLPSpanExporter"),
}
EXPORTERS: Final = ("none", "otlp", "console")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The variables that matter here."""

    exporter: str = "none"
    """`otlp` once an endpoint is named, unless OTEL_TRACES_EXPORTER says otherwise."""
    protocol: str = "grpc"
    ratio: float | None = None
    """Share of the requests without a tracing caller. None: OTEL_TRACES_SAMPLER says nothing."""
    parent_based: bool = True
    """Whether a caller's own decision goes before the ratio."""

    @property
    def tracing(self) -> bool:
        """Whether spans are wanted at all."""
        return self.exporter != "none"


def read_environment(variables: Mapping[str, str]) -> Environment:
    """What the variables say. Raises ValueError for values that are not understood."""
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Environment()
    exporter = variables.get("OTEL_TRACES_EXPORTER") or ("otlp" if _first(variables, _ENDPOINTS) else "none")
    if exporter not in EXPORTERS:
        raise ValueError(f"OTEL_TRACES_EXPORTER must be one of {', '.join(EXPORTERS)}, not '{exporter}'")
    protocol = _first(variables, _PROTOCOLS) or "grpc"
    if protocol not in ("grpc", "http/protobuf"):
        raise ValueError(f"{_PROTOCOLS[1]} must be grpc or http/protobuf, not '{protocol}'")
    ratio, parent_based = _sampler(variables)
    return Environment(exporter=exporter, protocol=protocol, ratio=ratio, parent_based=parent_based)


def open_exporter(environment: Environment) -> SpanExporter:
    """The exporter that is asked for. Nothing is imported for the others, since each takes its time."""
    kind = "console" if environment.exporter == "console" else environment.protocol
    module, name = _EXPORTERS[kind]
    exporter: SpanExporter = getattr(importlib.import_module(module), name)()
    return exporter


def _sampler(variables: Mapping[str, str]) -> tuple[float | None, bool]:
    name = variables.get("OTEL_TRACES_SAMPLER", "")
    if not name:
        return None, True
    parent_based = name.startswith("parentbased_")
    match name.removeprefix("parentbased_"):
        case "always_on":
            return 1.0, parent_based
        case "always_off":
            return 0.0, parent_based
        case "traceidratio":
            return _ratio(variables.get("OTEL_TRACES_SAMPLER_ARG") or "1"), parent_based
    raise ValueError(f"OTEL_TRACES_SAMPLER '{name}' is not known")


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1, not '{text}'")
    return ratio


def _first(variables: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := variables.get(name, ""))), "")
