"""A repository as somebody else filled it: folders, files, links, models, configurations, weights beside them.

An input is a RepositoryModelLoadRequest whose parameters are the tree: `file:PATH` holds bytes, `link:PATH` the text
of a symbolic link. Whatever it says, no link in a model's or version's folder leads out of it.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from engines.errors import LoadFailed
from engines.repository import layout
from engines.repository.definition import Definition, define, read_config
from engines.repository.layout import scan
from server.pb import grpc_service_pb2 as pb
from tests.fuzz.mutate import mutate_message
from tests.fuzz.target import Target
from tests.support import onnx_models

setattr(layout, "MAX_ENTRIES", 200)  # noqa: B010 - a constant; with this one a link to / costs little
_MODEL: Final = onnx_models.scale().SerializeToString()
_PATHS: Final = ("m/1/model.onnx", "m/config.pbtxt", "m/labels.txt", "m/1/weights.bin", "m/2", "m/1", "m/warmup/x", "n")
_WORDS: Final = (
    *(f"{kind}:{path}" for kind in ("file", "link") for path in _PATHS),
    *("../../outside", "../outside/model.onnx", "/", "..", ".", "1", "m", "max_batch_size: 4", "name: 'm'"),
    *("output { name: 'y' label_filename: 'labels.txt' }", "default_model_filename: 'other.onnx'"),
)


def run(data: bytes) -> None:
    """As the manager looks at a repository and loads all it finds."""
    request = pb.RepositoryModelLoadRequest()
    try:
        request.ParseFromString(data)
    except DecodeError:
        return
    with tempfile.TemporaryDirectory(prefix="kairos-fuzz-") as folder:
        base = Path(folder)
        outside = base / "outside"
        outside.mkdir()
        for name in ("model.onnx", "weights.bin", "labels.txt"):
            (outside / name).write_bytes(_MODEL)
        root = base / "root"
        root.mkdir()
        for name, parameter in sorted(request.parameters.items()):
            kind, _, path = name.partition(":")
            _plant(root, path, parameter.bytes_param or parameter.string_param.encode(), link=kind == "link")
        _load_all(root)


def _plant(root: Path, path: str, content: bytes, *, link: bool) -> None:
    """Put a file or link at the path, if it can be; links to outside are for the links in it, not for its name."""
    at = root / path
    if ".." in at.parts or not at.is_relative_to(root):
        return
    with contextlib.suppress(OSError, ValueError):
        at.parent.mkdir(parents=True, exist_ok=True)
        if not at.parent.resolve().is_relative_to(root.resolve()):
            return
        if link:
            at.symlink_to(content.decode("utf-8", "surrogateescape"))
        elif not at.is_symlink():
            at.write_bytes(content)


def _load_all(root: Path) -> None:
    found = scan([root])
    for model in found.models.values():
        for version in model.versions.values():
            with contextlib.suppress(LoadFailed):
                _check(define(model, version, read_config(model)))


def _check(definition: Definition) -> None:
    """What it is made of lies in the model's folder or its version's, each of which may be a link."""
    homes = (definition.folder, definition.folder / str(definition.version))
    assert any(definition.model_file.resolve().is_relative_to(home.resolve()) for home in homes)


def seeds() -> list[bytes]:
    """A good model; one with weights beside it, which a link may replace."""
    good = pb.RepositoryModelLoadRequest()
    good.parameters["file:m/1/model.onnx"].bytes_param = _MODEL
    good.parameters["file:m/config.pbtxt"].bytes_param = b"max_batch_size: 4"
    with tempfile.TemporaryDirectory() as folder:
        path = onnx_models.with_external_weights(Path(folder))
        apart = pb.RepositoryModelLoadRequest()
        apart.parameters["file:m/1/model.onnx"].bytes_param = path.read_bytes()
        apart.parameters["file:m/1/weights.bin"].bytes_param = path.with_name("weights.bin").read_bytes()
    linked = pb.RepositoryModelLoadRequest()
    linked.parameters["link:m/1/model.onnx"].string_param = "../../../outside/model.onnx"
    linked.parameters["link:n"].string_param = "m"
    return [message.SerializeToString() for message in (good, apart, linked)]


TARGET: Final = Target(
    name="repository", run=run, mutate=mutate_message(pb.RepositoryModelLoadRequest, _WORDS), seeds=seeds
)
