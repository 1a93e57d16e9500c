"""Whatever lies in a repository, reading it ends in a definition or in LoadFailed."""

from __future__ import annotations

import contextlib
import string
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import LoadFailed
from engines.repository.config import complete, parse_json, parse_text
from engines.repository.definition import define, read_config
from engines.repository.graph import Graph, GraphTensor
from engines.repository.layout import scan
from engines.repository.settings import chosen_versions, engine_options_of, limits_of
from engines.tensor import DType
from server.pb import model_config_pb2 as pb
from tests.support import onnx_models

GRAPH = Graph((GraphTensor("x0", DType.FP32, (-1, 4)),), (GraphTensor("y0", DType.FP32, (-1, 4)),), ())

FIELDS = sorted(
    {
        field.name
        for message in (
            pb.ModelConfig, pb.ModelInput, pb.ModelOutput, pb.ModelDynamicBatching, pb.ModelQueuePolicy,
            pb.ModelInstanceGroup, pb.ModelVersionPolicy, pb.ModelOptimizationPolicy, pb.ModelWarmup,
        )
        for field in message.DESCRIPTOR.fields
    }
    | {"key", "value", "string_value", "level", "num_versions", "versions"}
)  # fmt: skip
TOKENS = [*FIELDS, *"{}[]:,-", "'x0'", "'y0'", "'m'", "''", "0", "1", "4", "-1", "99999999999", "1.5", "true",
          "KIND_CPU", "TYPE_FP32", "TYPE_STRING", "REJECT", "#", "\n", '"', "\\"]  # fmt: skip

texts = st.one_of(st.text(), st.lists(st.sampled_from(TOKENS), max_size=30).map(" ".join))


def scalar(name: str) -> st.SearchStrategy[str]:
    return st.sampled_from(["0", "1", "-1", "8", "4000000000", "true", "'x0'", "KIND_GPU", "{ }", "{ key: 1 }"]).map(
        lambda value: f"{name}: {value}" if not value.startswith("{") else f"{name} {value}"
    )


lines = st.lists(
    st.sampled_from(FIELDS).flatmap(scalar).flatmap(
        lambda line: st.sampled_from([line, f"dynamic_batching {{ {line} }}", f"input {{ name: 'x0' {line} }}",
                                      f"instance_group {{ {line} }}", f"optimization {{ {line} }}"])
    ),
    max_size=4,
).map("\n".join)  # fmt: skip


def use(config: pb.ModelConfig) -> None:
    whole = complete(config, "m", GRAPH)
    limits = limits_of(whole)
    assert limits.max_rows == max(1, whole.max_batch_size)
    assert all(size <= limits.max_rows for size in (*limits.allowed_rows, *limits.preferred_rows))
    engine_options_of(whole)
    chosen_versions(whole, {1, 2})
    assert complete(whole, "m", GRAPH) == whole


@settings(max_examples=300, deadline=None)
@given(st.one_of(texts, lines))
def test_no_configuration_text_breaks_anything(text: str) -> None:
    with contextlib.suppress(LoadFailed):
        use(parse_text(text))


@settings(max_examples=150, deadline=None)
@given(st.one_of(texts, st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(["x0", "TYPE_FP32", ""])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3)),
).map(lambda value: str(value).replace("'", '"').replace("None", "null").lower())))  # fmt: skip
def test_no_configuration_json_breaks_anything(text: str) -> None:
    with contextlib.suppress(LoadFailed):
        use(parse_json(text))


names = st.one_of(
    st.sampled_from(["1", "2", "0", "01", ".1", "m", "config.pbtxt", "model.onnx", "labels.txt", "warmup", "..."]),
    st.text(alphabet=string.printable.replace("/", "") + "é٣\udc80", min_size=1, max_size=6).filter(
        lambda name: name not in (".", "..")
    ),
)
MODEL = onnx_models.identity().SerializeToString()
contents = st.one_of(
    st.just(MODEL), st.just(MODEL[:30]), st.binary(max_size=8), st.sampled_from([b"max_batch_size: 1", b"name: 'm'"])
)
trees = st.recursive(
    st.one_of(contents, st.sampled_from([Path(".."), Path("/"), Path("1"), Path("nowhere")])),
    lambda inner: st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


def build(at: Path, tree: object) -> None:
    """Folders for dictionaries, files for bytes, links for paths."""
    with contextlib.suppress(OSError):  # a name that this file system does not take
        if isinstance(tree, bytes):
            at.write_bytes(tree)
        elif isinstance(tree, Path):
            if tree != Path("/"):
                at.symlink_to(tree)
        elif isinstance(tree, dict):
            at.mkdir()
            for name, below in tree.items():
                build(at / name, below)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(names, trees, max_size=3))
def test_no_folder_tree_breaks_anything(tree: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        build(root, tree)
        found = scan([root, Path(folder) / "none"])
        for model in found.models.values():
            for version in model.versions.values():
                with contextlib.suppress(LoadFailed):
                    assert define(model, version, read_config(model)).spec.version == version.number
