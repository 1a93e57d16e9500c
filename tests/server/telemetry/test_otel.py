"""The standard variables."""

from __future__ import annotations

import pytest

from server.telemetry.otel import Environment, open_exporter, read_environment

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}


def test_without_variables_there_is_no_tracing() -> None:
    assert read_environment({}) == Environment()
    assert not read_environment({}).tracing


@pytest.mark.parametrize(
    ("variables", "exporter", "protocol"),
    [
        (ENDPOINT, "otlp", "grpc"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, "otlp", "grpc"),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, "none", "grpc"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console", "grpc"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp", "grpc"),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, "none", "grpc"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "otlp", "http/protobuf"),
        (
            ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
            "otlp",
            "grpc",
        ),
    ],
)
def test_exporters(variables: dict[str, str], exporter: str, protocol: str) -> None:
    found = read_environment(variables)
    assert (found.exporter, found.protocol) == (exporter, protocol)


@pytest.mark.parametrize(
    ("sampler", "argument", "ratio", "parent_based"),
    [
        ("", "", None, True),
        ("always_on", "", 1.0, False),
        ("always_off", "", 0.0, False),
        ("traceidratio", "0.25", 0.25, False),
        ("parentbased_always_on", "", 1.0, True),
        ("parentbased_always_off", "", 0.0, True),
        ("parentbased_traceidratio", "0.01", 0.01, True),
        ("parentbased_traceidratio", "", 1.0, True),
    ],
)
def test_samplers(sampler: str, argument: str, ratio: float | None, parent_based: bool) -> None:
    found = read_environment({"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument})
    assert (found.ratio, found.parent_based) == (ratio, parent_based)


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {"OTEL_TRACES_SAMPLER": "jaeger_remote"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "some"},
    ],
)
def test_what_is_not_understood_is_not_guessed(variables: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="OTEL_"):
        read_environment(variables)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_exporter_that_is_named_is_opened(protocol: str) -> None:
    exporter = open_exporter(Environment(exporter="otlp", protocol=protocol))
    assert f".{protocol[:4]}." in type(exporter).__module__
    exporter.shutdown()


def test_spans_can_be_printed() -> None:
    assert type(open_exporter(Environment(exporter="console"))).__name__ == "ConsoleSpanExporter"
