"""What an MLflow model says of itself: where its graph is, and the signature that its tensors must have.

The signature becomes the inputs and outputs of the model's config.pbtxt, where that does not name them already. From
there on it is checked like any configuration: a graph with other names, types or shapes is not served.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from google.protobuf import text_format

from engines.errors import LoadFailed
from engines.repository.graph import Graph, GraphTensor, read_graph
from engines.repository.layout import CONFIG_FILE, version_of
from engines.repository.sources.files import SourceError
from server.pb import model_config_pb2 as pb

log = logging.getLogger(__name__)

MLMODEL: Final = "MLmodel"
_DTYPES: Final[Mapping[str, str]] = {
    "bool": "TYPE_BOOL",
    **{f"uint{bits}": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"TYPE_FP{bits}" for bits in (16, 32, 64)},
    **dict.fromkeys(("object", "str", "bytes"), "TYPE_STRING"),
}


@dataclass(frozen=True, slots=True)
class Signed:
    """One tensor of a signature."""

    name: str
    """Empty where the signature names none."""
    dtype: str
    """As NumPy calls it."""
    shape: tuple[int, ...]
    """The batch included; -1 is any size."""


Signature: TypeAlias = tuple[Sequence[Signed], Sequence[Signed]]
"""Inputs and outputs."""


def read(content: bytes) -> Mapping[str, Any]:
    """An MLmodel file. Raises SourceError."""
    import yaml  # noqa: PLC0415  (an optional dependency)

    try:
        about = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SourceError(f"{MLMODEL} cannot be read: {error}") from error
    return about if isinstance(about, dict) else {}


def onnx_file(content: bytes) -> str:
    """The path of the graph in an MLflow model. Raises SourceError where the model has no ONNX flavour."""
    flavour = (read(content).get("flavors") or {}).get("onnx")
    if not isinstance(flavour, dict) or not isinstance(flavour.get("data"), str):
        raise SourceError("the model has no ONNX flavour: log it with mlflow.onnx.log_model")
    path: str = flavour["data"]
    return path


def tensors(about: Mapping[str, Any], kind: str) -> Sequence[Signed]:
    """The tensors under `inputs` or `outputs`; none for columns of a table, which name no tensors."""
    listed = (about.get("signature") or {}).get(kind)
    specs = json.loads(listed) if isinstance(listed, str) else listed or ()
    return [
        Signed(spec.get("name") or "", spec["tensor-spec"]["dtype"], tuple(spec["tensor-spec"]["shape"]))
        for spec in specs
        if spec.get("type") == "tensor"
    ]


def complete_config(model: Path) -> None:
    """Write what the signature of a model's highest version says into its config.pbtxt, if there is one."""
    numbers = [number for folder in model.iterdir() if (number := version_of(folder.name))]
    version = model / str(max(numbers, default=0))
    try:
        about = read((version / MLMODEL).read_bytes())
        signed = tensors(about, "inputs"), tensors(about, "outputs")
        graph = read_graph(version / "model.onnx")
        given = (model / CONFIG_FILE).read_text(encoding="utf-8") if (model / CONFIG_FILE).exists() else ""
        config = text_format.Parse(given, pb.ModelConfig())
    except (OSError, SourceError, LoadFailed, ValueError, KeyError, TypeError, text_format.ParseError) as error:
        log.warning("the signature of %s cannot be used: %s", version, error)  # the load says what else is wrong
        return
    added = additions(config, graph, signed, sized="max_batch_size" in given)
    text = text_format.MessageToString(added)
    if not config.HasField("version_policy") and len(numbers) > 1:
        text += "version_policy { all {} }\n"
    if text:
        _write(model / CONFIG_FILE, f"{given}\n# From the signature of version {version.name}:\n{text}")


def _write(path: Path, text: str) -> None:
    """Write the file anew, as the one that is there is shared with the cache.

    Its time follows from its contents: layouts take a new time for a change, and would load all versions again.
    """
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")
    time_ns = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())
    os.utime(path, ns=(time_ns, time_ns))


def additions(config: pb.ModelConfig, graph: Graph, signed: Signature, *, sized: bool) -> pb.ModelConfig:
    """What the signature adds to a configuration; `sized` says that this one has a max_batch_size."""
    added = pb.ModelConfig()
    batched = config.max_batch_size > 0 if sized else graph.batchable and _batched(signed)
    sides: tuple[tuple[Any, Any, Sequence[GraphTensor]], ...] = (
        (config.input, added.input, graph.inputs),
        (config.output, added.output, graph.outputs),
    )
    for (given, target, nodes), specs in zip(sides, signed, strict=True):
        listed = {tensor.name for tensor in given}
        for spec in specs:
            # What has no name can only be meant where there is one tensor to be meant.
            name = spec.name or (nodes[0].name if len(nodes) == len(specs) == 1 else "")
            if name and name not in listed and spec.dtype in _DTYPES:
                target.add(name=name, data_type=_DTYPES[spec.dtype], dims=spec.shape[1:] if batched else spec.shape)
    return added


def _batched(signed: Signature) -> bool:
    return all(spec.shape[:1] == (-1,) for side in signed for spec in side)
