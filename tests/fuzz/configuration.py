"""A model's configuration: protobuf text (config.pbtxt), or JSON where the first byte is an opening brace."""

from __future__ import annotations

import contextlib
from random import Random
from typing import Final

from google.protobuf import json_format, text_format

from engines.errors import LoadFailed
from engines.repository.config import complete, parse_json, parse_text
from engines.repository.graph import Graph, GraphTensor
from engines.repository.settings import (
    chosen_versions,
    deadline_options_of,
    default_deadline_s,
    engine_options_of,
    limits_of,
    policy_of,
)
from engines.tensor import DType
from server.pb import model_config_pb2 as pb
from tests.fuzz.mutate import change, mutate_bytes
from tests.fuzz.target import Target

GRAPH: Final = Graph((GraphTensor("x0", DType.FP32, (-1, 4)),), (GraphTensor("y0", DType.FP32, (-1, 4)),), ())
_WORDS: Final = (
    *("x0", "y0", "m", "", "model.onnx", "../model.onnx", "onnxruntime", "onnxruntime_onnx", "1", "-1", "true"),
    *("intra_op_thread_count", "session.intra_op.allow_spinning", "default_deadline_ms", "TYPE_FP32", "1e999", "é\0"),
)


def run(data: bytes) -> None:
    """As a load treats a configuration."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    with contextlib.suppress(LoadFailed):
        config = complete(parse_json(text) if text.startswith("{") else parse_text(text), "m", GRAPH)
        limits = limits_of(config)
        assert limits.max_rows == max(1, config.max_batch_size)
        assert all(size <= limits.max_rows for size in (*limits.allowed_rows, *limits.preferred_rows))
        policy_of(config)
        deadline_options_of(config)
        default_deadline_s(config)
        engine_options_of(config)
        chosen_versions(config, {1, 2})
        assert complete(config, "m", GRAPH) == config


def mutate(data: bytes, random: Random) -> bytes:
    """Changes fields where the text can be read, else bytes of it."""
    if random.random() < 0.4:
        return mutate_bytes(data, random)
    config = pb.ModelConfig()
    as_json = data.startswith(b"{")
    try:
        (json_format if as_json else text_format).Parse(data.decode(), config)
    except (text_format.ParseError, json_format.ParseError, ValueError, TypeError, RecursionError):
        return mutate_bytes(data, random)
    for _ in range(random.randint(1, 3)):
        change(config, random, _WORDS)
    try:
        written = json_format.MessageToJson(config) if as_json else text_format.MessageToString(config)
    except (json_format.Error, ValueError):
        return mutate_bytes(data, random)
    return written.encode()


def seeds() -> list[bytes]:
    """One of each form."""
    text = (
        "name: 'm' max_batch_size: 8 input { name: 'x0' data_type: TYPE_FP32 dims: 4 } "
        "output { name: 'y0' data_type: TYPE_FP32 dims: 4 } version_policy { latest { num_versions: 2 } } "
        "instance_group { count: 1 kind: KIND_CPU } dynamic_batching { preferred_batch_size: 4 "
        "default_queue_policy { default_timeout_microseconds: 100 } } "
        "parameters { key: 'intra_op_thread_count' value { string_value: '1' } }"
    )
    config = text_format.Parse(text, pb.ModelConfig())
    return [text.encode(), json_format.MessageToJson(config).encode()]


TARGET: Final = Target(name="configuration", run=run, mutate=mutate, seeds=seeds)
