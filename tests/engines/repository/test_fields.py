"""No field of a ModelConfig is ignored in silence, and all of them are in the users' page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from engines.errors import LoadFailed
from engines.repository.config import parse_text
from engines.repository.fields import HONOURED, INERT, REFUSED
from engines.repository.settings import PARAMETERS, SESSION_PARAMETERS
from server.pb import model_config_pb2 as pb

PAGE = Path(__file__).parents[3] / "docs" / "model-repository.md"


def leaves(message: Descriptor, prefix: str = "") -> Iterator[str]:
    """Paths of all fields, down to what is refused as a whole."""
    for field in message.fields:
        path = f"{prefix}{field.name}"
        yield path
        nested = value_type(field)
        if nested is not None and path not in REFUSED:
            yield from leaves(nested, f"{path}.")


def value_type(field: FieldDescriptor) -> Descriptor | None:
    nested = field.message_type
    if nested is not None and nested.GetOptions().map_entry:
        nested = nested.fields_by_name["value"].message_type
    return nested


PATHS = list(leaves(pb.ModelConfig.DESCRIPTOR))


def test_every_field_is_in_exactly_one_table() -> None:
    tables = [set(HONOURED), set(INERT), set(REFUSED)]
    assert sorted(path for path in PATHS if sum(path in table for table in tables) != 1) == []
    assert set().union(*tables) - set(PATHS) == set()


def test_the_page_tells_of_every_field() -> None:
    words = PAGE.read_text()
    holders = {path.rpartition(".")[0] for path in PATHS}
    assert [path for path in PATHS if path not in holders and f"`{path}`" not in words] == []


def test_the_page_tells_of_every_parameter() -> None:
    words = PAGE.read_text()
    assert [key for key in PARAMETERS + SESSION_PARAMETERS if f"`{key}`" not in words] == []


REFUSALS = {
    "runtime": "runtime: 'x'",
    "input.reshape": "input { reshape { shape: 1 } }",
    "input.is_shape_tensor": "input { is_shape_tensor: true }",
    "input.allow_ragged_batch": "input { allow_ragged_batch: true }",
    "input.is_non_linear_format_io": "input { is_non_linear_format_io: true }",
    "output.reshape": "output { reshape { } }",
    "output.is_shape_tensor": "output { is_shape_tensor: true }",
    "output.is_non_linear_format_io": "output { is_non_linear_format_io: true }",
    "batch_input": "batch_input { }",
    "batch_output": "batch_output { }",
    "optimization.priority": "optimization { priority: PRIORITY_MAX }",
    "optimization.cuda.graph_spec": "optimization { cuda { graph_spec { } } }",
    "optimization.execution_accelerators.gpu_execution_accelerator": (
        "optimization { execution_accelerators { gpu_execution_accelerator { name: 'tensorrt' } } }"
    ),
    "optimization.gather_kernel_buffer_threshold": "optimization { gather_kernel_buffer_threshold: 1 }",
    "optimization.eager_batching": "optimization { eager_batching: true }",
    "sequence_batching": "sequence_batching { }",
    "ensemble_scheduling": "ensemble_scheduling { }",
    "instance_group.rate_limiter": "instance_group { rate_limiter { } }",
    "instance_group.secondary_devices": "instance_group { secondary_devices { } }",
    "instance_group.profile": "instance_group { profile: '0' }",
    "instance_group.passive": "instance_group { passive: true }",
    "instance_group.host_policy": "instance_group { host_policy: 'x' }",
    "cc_model_filenames": "cc_model_filenames { key: '7.5' value: 'm' }",
    "model_operations.op_library_filename": "model_operations { op_library_filename: 'x.so' }",
    "model_transaction_policy.decoupled": "model_transaction_policy { decoupled: true }",
    "model_repository_agents.agents": "model_repository_agents { agents { name: 'checksum' } }",
    "model_metrics.metric_control": "model_metrics { metric_control { } }",
}


def test_every_refusal_is_tried() -> None:
    assert set(REFUSALS) == set(REFUSED)


@pytest.mark.parametrize(("path", "text"), REFUSALS.items(), ids=REFUSALS.keys())
def test_refused_fields_are_refused_by_name(path: str, text: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        parse_text(text)
    assert str(caught.value) == f"{path} is not supported: {REFUSED[path]}"


@pytest.mark.parametrize(
    "text",
    [
        "optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: false } }",
        "optimization { cuda { } execution_accelerators { } priority: PRIORITY_DEFAULT }",
        "model_operations { } model_repository_agents { } model_metrics { }",
        "model_transaction_policy { decoupled: false } response_cache { enable: false }",
    ],
)
def test_what_asks_for_nothing_is_accepted(text: str) -> None:
    parse_text(text)
