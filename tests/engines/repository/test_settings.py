"""What configurations mean for the scheduler and for the engines."""

from __future__ import annotations

import math

import pytest

from engines.backends.cores import available_cores
from engines.backends.options import Accelerator, EngineOptions, GpuGroup, GpuOptions, GraphLevel, StreamOptions
from engines.errors import LoadFailed
from engines.repository.config import parse_text
from engines.repository.settings import (
    chosen_versions,
    deadline_options_of,
    default_deadline_s,
    engine_options_of,
    limits_of,
    name_accelerator,
    policy_of,
)
from engines.scheduling.policy import DeadlineOptions, Limits, Policy, QueuePolicy, TimeoutAction
from server.pb import model_config_pb2 as pb


def limits(text: str, max_batch_size: int = 8) -> Limits:
    config = parse_text(text)
    config.max_batch_size = max_batch_size
    return limits_of(config)


def engine(text: str) -> EngineOptions:
    return engine_options_of(parse_text(text))


def accelerated(*names: str, options: str = "") -> str:
    named = " ".join(f"cpu_execution_accelerator {{ name: '{name}' {options} }}" for name in names)
    return f"optimization {{ execution_accelerators {{ {named} }} }}"


def parameter(key: str, value: str) -> str:
    return f"parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}"


def test_no_block_at_all_still_batches() -> None:
    assert limits("") == Limits(max_rows=8)
    assert limits("", max_batch_size=0) == Limits(max_rows=1)


def test_all_of_dynamic_batching_is_heard() -> None:
    found = limits("""dynamic_batching {
        preferred_batch_size: [8, 4, 4]
        max_queue_delay_microseconds: 1500
        preserve_ordering: true
        priority_levels: 3
        default_priority_level: 2
        allowed_batch_size: [2, 8]
        default_deadline_microseconds: 250000
        default_queue_policy {
            timeout_action: DELAY default_timeout_microseconds: 2000 allow_timeout_override: true max_queue_size: 9
        }
        priority_queue_policy { key: 3 value { max_queue_size: 1 } }
    }""")
    assert found == Limits(
        max_rows=8,
        allowed_rows=(2, 8),
        preferred_rows=(4, 8),
        max_wait_s=0.0015,
        levels=3,
        default_level=2,
        in_order=True,
        policy=QueuePolicy(max_requests=9, timeout_s=0.002, may_override=True, action=TimeoutAction.DELAY),
        level_policies={3: QueuePolicy(max_requests=1, timeout_s=math.inf, may_override=False)},
    )


def test_the_default_deadline() -> None:
    assert default_deadline_s(parse_text("dynamic_batching { default_deadline_microseconds: 250000 }")) == 0.25
    assert default_deadline_s(parse_text("")) == math.inf


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("preferred_batch_size: 9", "preferred_batch_size: 9 is not between 1 and max_batch_size, 8"),
        ("preferred_batch_size: 0", "preferred_batch_size: 0 is not between"),
        ("allowed_batch_size: [2, 16]", "allowed_batch_size: 16 is not between"),
        ("allowed_batch_size: [2, 4]", "allowed_batch_size: the largest size, 4, must be max_batch_size, 8"),
        ("priority_levels: 2", "default_priority_level: 0 is not between 1 and 2"),
        ("priority_levels: 2 default_priority_level: 3", "default_priority_level: 3 is not between 1 and 2"),
        ("default_priority_level: 1", "default_priority_level: there are no priority_levels"),
        ("priority_queue_policy { key: 1 value { } }", "priority_queue_policy: 1 is not between 1 and 0"),
    ],
)
def test_bad_batching_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        limits(f"dynamic_batching {{ {text} }}")
    assert f"dynamic_batching.{words}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {3}),
        ("version_policy { latest { } }", {3}),
        ("version_policy { latest { num_versions: 2 } }", {2, 3}),
        ("version_policy { latest { num_versions: 9 } }", {1, 2, 3}),
        ("version_policy { all { } }", {1, 2, 3}),
        ("version_policy { specific { versions: [1, 7] } }", {1, 7}),
    ],
)
def test_version_policies(text: str, expected: set[int]) -> None:
    assert chosen_versions(parse_text(text), {1, 2, 3}) == expected
    assert chosen_versions(pb.ModelConfig(), set()) == frozenset()


def test_engines_are_left_open_by_default() -> None:
    assert engine("") == EngineOptions()


def test_all_parameters_are_heard() -> None:
    text = " ".join(
        parameter(*pair)
        for pair in (
            ("intra_op_thread_count", "2"),
            ("inter_op_thread_count", "3"),
            ("execution_mode", "1"),
            ("enable_mem_arena", "0"),
            ("enable_mem_pattern", "0"),
            ("session.set_denormal_as_zero", "1"),
        )
    )
    assert engine(text) == EngineOptions(
        intra_op_threads=2,
        inter_op_threads=3,
        memory_arena=False,
        memory_pattern=False,
        session_config={"session.set_denormal_as_zero": "1"},
    )


def test_accelerators() -> None:
    assert engine(accelerated("openvino")) == EngineOptions(accelerator=Accelerator.OPENVINO)
    assert engine(accelerated()) == EngineOptions()
    for accelerator in (*Accelerator, None):
        config = parse_text(accelerated("openvino"))
        name_accelerator(config, accelerator)
        assert engine_options_of(config).accelerator is accelerator


def test_parallel_execution_takes_all_cores_unless_told() -> None:
    assert engine(parameter("execution_mode", "1")).inter_op_threads == available_cores()
    assert engine(parameter("inter_op_thread_count", "1")).inter_op_threads == 0


@pytest.mark.parametrize(
    ("level", "expected"),
    [(0, GraphLevel.ALL), (-1, GraphLevel.BASIC), (1, GraphLevel.EXTENDED), (2, GraphLevel.OFF)],
)
def test_graph_levels(level: int, expected: GraphLevel) -> None:
    assert engine(f"optimization {{ graph {{ level: {level} }} }}").graph_level is expected


@pytest.mark.parametrize(
    ("text", "instances"),
    [
        ("instance_group { count: 3 }", 3),
        ("instance_group { kind: KIND_CPU }", 0),
        ("instance_group { count: 1 kind: KIND_CPU name: 'a' } instance_group { count: 2 kind: KIND_MODEL }", 3),
    ],
)
def test_instance_groups(text: str, instances: int) -> None:
    assert engine(text).instances == instances


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instance_group { gpus: 0 }", "instance_group.gpus and gpu are about instance groups with kind: KIND_GPU"),
        ("gpu { in_flight: 2 }", "instance_group.gpus and gpu are about"),
        (
            "instance_group { kind: KIND_GPU count: 1 } instance_group { count: 1 }",
            "instance_group.kind: the instances",
        ),
        ("instance_group { kind: KIND_GPU } gpu { in_flight: 4 }", "gpu.in_flight: 4 is not between 1 and 3"),
        ("instance_group { count: -1 }", "instance_group.count: -1 is negative"),
        ("instance_group { count: 1 } instance_group { }", "instance_group.count: with several groups"),
        (accelerated("tensorrt"), "cpu_execution_accelerator.name: 'tensorrt' is not known; known is openvino"),
        (
            accelerated("openvino", options="parameters { key: 'precision_mode' value: 'INT8' }"),
            "parameters: there is precision_mode alone, FP32 or BF16",
        ),
        (
            accelerated("openvino", options="parameters { key: 'threads' value: '2' }"),
            "parameters: there is precision_mode alone, FP32 or BF16",
        ),
        (accelerated("openvino", "openvino"), "cpu_execution_accelerator: there can be one, not 2"),
        (
            accelerated("openvino") + parameter("execution_mode", "1"),
            "graph.level and execution_mode have no effect on openvino",
        ),
        (accelerated("openvino").replace("{", "{ graph { level: 1 }", 1), "have no effect on openvino"),
        (accelerated("openvino") + "instance_group { kind: KIND_GPU }", "the model runs on GPUs"),
        ("optimization { graph { level: 3 } }", "optimization.graph.level: 3 is none of 0, -1, 1, 2"),
        (
            parameter("intra_op_threads", "2"),
            "parameters: 'intra_op_threads' is not known; known are intra_op_thread_c",
        ),
        (parameter("session.no_such_thing", "2"), "parameters: 'session.no_such_thing' is not known"),
        (parameter("intra_op_thread_count", "-2"), "'intra_op_thread_count' must be a number of threads"),
        (parameter("intra_op_thread_count", ""), "'intra_op_thread_count' must be a number of threads"),
        (parameter("execution_mode", "2"), "'execution_mode' must be 0 or 1"),
        (parameter("enable_mem_arena", "yes"), "'enable_mem_arena' must be 0 or 1"),
        (parameter("inter_op_thread_count", "2"), "'inter_op_thread_count' above 1 has an effect only with"),
    ],
)
def test_bad_engine_settings_are_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        engine(text)
    assert words in str(caught.value)


def test_the_policy_meets_deadlines_unless_told_otherwise() -> None:
    assert policy_of(parse_text("")) is Policy.DEADLINE
    assert policy_of(parse_text("dynamic_batching { policy: FIFO }")) is Policy.FIFO
    assert policy_of(parse_text("dynamic_batching { preserve_ordering: true }")) is Policy.FIFO


def test_deadlines_have_defaults_and_each_can_be_set() -> None:
    assert deadline_options_of(parse_text("")) == DeadlineOptions()
    found = deadline_options_of(
        parse_text("""dynamic_batching { deadlines {
            reply_microseconds: 2000 cost_quantile: 0.99 class_floor: -1
            class_microseconds: [500000, 250000] patience_microseconds: 3000000
        } }""")
    )
    assert found == DeadlineOptions(reply_s=0.002, quantile=0.99, floor=0.0, classes_s=(0.25, 0.5), patience_s=3.0)


@pytest.mark.parametrize(
    ("text", "fault"), [("cost_quantile: 1", "cost_quantile"), ("cost_quantile: -1", "cost_quantile"),
                        ("class_floor: 2", "class_floor")],
)  # fmt: skip
def test_deadlines_that_make_no_sense_are_refused(text: str, fault: str) -> None:
    with pytest.raises(LoadFailed, match=fault):
        deadline_options_of(parse_text(f"dynamic_batching {{ deadlines {{ {text} }} }}"))


def test_gpu_options() -> None:
    text = """instance_group { kind: KIND_GPU count: 2 gpus: [0, 3] } instance_group { kind: KIND_GPU count: 1 }
              gpu { in_flight: 3 no_graphs: true urgent: true memory_bytes: 5 devices: 'MIG-1'
                    provider { key: 'gpu_mem_limit' value: '7' } }
              optimization { cuda { busy_wait_events: true graphs: true } }"""
    assert engine(text).gpu == GpuOptions(
        groups=(GpuGroup(2, ("0", "3")), GpuGroup(1, ("MIG-1",))),
        stream=StreamOptions(graphs=False, spin=True, urgent=True, in_flight=3),
        memory_bytes=5,
        provider={"gpu_mem_limit": "7"},
    )
    assert engine("platform: 'tensorrt_plan'").gpu == GpuOptions()
    assert engine("").gpu is None
