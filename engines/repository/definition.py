"""From a version's folder to all that must be known to bring it up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines.backends.options import EngineOptions
from engines.errors import LoadFailed
from engines.repository.config import PLATFORM, complete, dtype_of, model_file_of, parse_text
from engines.repository.digest import digest_files
from engines.repository.graph import read_graph
from engines.repository.layout import CONFIG_FILE, ModelFolder, VersionFolder, check_relative, resolve_inside
from engines.repository.settings import (
    deadline_options_of,
    default_deadline_s,
    engine_options_of,
    limits_of,
    policy_of,
)
from engines.repository.warmup import Warmup, warmups_of
from engines.scheduling.policy import DeadlineOptions, Limits, Policy
from engines.spec import ModelSpec, TensorSpec
from server.pb import model_config_pb2 as pb

_MAX_CONFIG_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One version of a model, read and checked but not yet running."""

    name: str
    version: int
    folder: Path
    """The model's folder; versions, labels and warm-up data lie in it."""
    model_file: Path
    config: pb.ModelConfig
    """Completed; not to be changed."""
    spec: ModelSpec
    limits: Limits
    policy: Policy
    deadlines: DeadlineOptions
    default_deadline_s: float
    """Seconds that a call without a deadline has; infinite for none."""
    engine: EngineOptions
    warmups: tuple[Warmup, ...]
    steady: bool
    """Whether how long an execution takes follows from the shapes alone."""
    response_cache: bool
    """Whether the configuration asks for answers to be cached."""
    metric_tags: Mapping[str, str]
    files_digest: str = ""
    """Hex digest over the model's files alone; unlike the spec's, it outlives changes of the configuration."""


def read_config(folder: ModelFolder) -> pb.ModelConfig:
    """The model's config.pbtxt, or an empty configuration. Raises LoadFailed."""
    path = folder.path / CONFIG_FILE
    try:
        if not path.exists():
            return parse_text("")
        if not path.is_file() or path.stat().st_size > _MAX_CONFIG_BYTES:  # a pipe would never end
            raise LoadFailed(f"{CONFIG_FILE} is not a file of at most {_MAX_CONFIG_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LoadFailed(f"{CONFIG_FILE} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise LoadFailed(f"{CONFIG_FILE} is not UTF-8 text: {error}") from error
    return parse_text(text)


def define(folder: ModelFolder, version: VersionFolder, given: pb.ModelConfig) -> Definition:
    """Read the version's files and check them against the configuration; blocks on the disk. Raises LoadFailed."""
    model_file = _model_file(folder, version, model_file_of(given))
    graph = read_graph(model_file)
    config = complete(given, folder.name, graph)
    limits = limits_of(config)
    outputs = tuple(_output(tensor, folder.path) for tensor in config.output)
    labels = repr([tensor.labels for tensor in outputs]).encode()
    try:
        files = digest_files((model_file, *graph.external))
        digest = digest_files((), files.encode(), config.SerializeToString(deterministic=True), labels)
    except OSError as error:
        raise LoadFailed(f"the model's files cannot be read: {error.strerror or error}") from error
    spec = ModelSpec(
        name=folder.name,
        version=version.number,
        platform=PLATFORM,
        inputs=tuple(TensorSpec(t.name, dtype_of(t.data_type), tuple(t.dims), t.optional) for t in config.input),
        outputs=outputs,
        max_rows=config.max_batch_size,
        allowed_rows=tuple(limits.allowed_rows),
        digest=digest,
    )
    return Definition(
        name=folder.name,
        version=version.number,
        folder=folder.path,
        model_file=model_file,
        config=config,
        spec=spec,
        limits=limits,
        policy=policy_of(config),
        deadlines=deadline_options_of(config),
        default_deadline_s=default_deadline_s(config),
        engine=engine_options_of(config),
        warmups=warmups_of(config, spec, folder.path),
        steady=graph.steady,
        response_cache=config.response_cache.enable,
        metric_tags=dict(config.metric_tags),
        files_digest=files,
    )


def _model_file(folder: ModelFolder, version: VersionFolder, name: str) -> Path:
    """The model's file; a folder of that name holds a file `model.onnx` and the weights beside it."""
    check_relative(name, "default_model_filename")
    path = version.path / name
    if path.is_dir():
        name = f"{name}/model.onnx"
    if not (version.path / name).is_file():
        raise LoadFailed(f"default_model_filename: version {version.number} has no file '{name}'")
    relative = f"{version.path.name}/{name}"
    try:
        return resolve_inside(version.path, name, "default_model_filename")
    except LoadFailed:  # a version may share files with its siblings
        return resolve_inside(folder.path, relative, "default_model_filename")


def _output(tensor: pb.ModelOutput, folder: Path) -> TensorSpec:
    labels: tuple[str, ...] = ()
    if tensor.label_filename:
        what = f"output '{tensor.name}': label_filename"
        path = resolve_inside(folder, tensor.label_filename, what)
        if not path.is_file():  # a pipe would never end
            raise LoadFailed(f"{what}: there is no file '{tensor.label_filename}'")
        try:
            labels = tuple(path.read_text(encoding="utf-8").splitlines())
        except OSError as error:
            raise LoadFailed(f"{what}: '{tensor.label_filename}' cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise LoadFailed(f"{what}: '{tensor.label_filename}' is not UTF-8 text: {error}") from error
    return TensorSpec(tensor.name, dtype_of(tensor.data_type), tuple(tensor.dims), labels=labels)
