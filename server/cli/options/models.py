"""Which models are served, and where the server keeps its files."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import rich_click as click

from engines.errors import LoadFailed
from engines.repository.manager import ControlMode, RepositoryOptions
from engines.repository.sources.opening import SourceOptions, check, is_remote
from engines.watchdog import Patience
from server.cli.settings import in_panel, settings

declare: Final = in_panel("Models")

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_SEPARATOR: Final = re.compile(r"(?<!^mlflow)(?<!:mlflow)(?<!:models):(?!//)")
"""Between repositories in the environment: a colon, but none of a URI's own."""


class Repository(click.Path):
    """A folder that is there, as a Path, or the URI of a source, as text."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401  (click's own signature)
        if not is_remote(str(value)):
            return super().convert(value, param, ctx)
        try:
            check(value)
        except LoadFailed as error:
            self.fail(str(error), param, ctx)
        return value

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return [part for part in _SEPARATOR.split(rv) if part]


def default_cache_dir() -> Path:
    """Where optimised graphs are kept unless the settings say otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kairos"


def default_state_dir() -> Path:
    """Where a server keeps what must outlive it unless the settings say otherwise."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "kairos"


declared = settings(
    declare(
        "--model-repository",
        type=Repository(),
        metavar="FOLDER|URI",
        multiple=True,
        required=True,
        help="Folder of models, as `NAME/VERSION/model.onnx`; or `s3://`, `gs://` or `az://BUCKET/FOLDER`, or "
        "`mlflow:models:/NAME@ALIAS`. May be given more than once.",
    ),
    declare(
        "--model-control-mode",
        type=click.Choice([mode.value for mode in ControlMode]),
        default="none",
        help="Who decides what is loaded: `none` all models once, `poll` whatever changes, `explicit` callers.",
    ),
    declare("--load-model", multiple=True, help="Mode explicit: a model to load at the start; `*` for all."),
    declare(
        "--repository-poll-secs",
        default=15.0,
        type=click.FloatRange(min=0.05),
        help="Mode poll: seconds between looks.",
    ),
    declare(
        "--exit-on-error/--no-exit-on-error",
        default=False,
        type=bool,
        help="Leave when a model fails to load.",
    ),
    declare(
        "--engine-timeout-secs",
        default=60.0,
        type=click.FloatRange(min=0),
        help="An execution that takes longer, and 20 times as long as expected, counts as hung. 0: none ever does.",
    ),
    declare(
        "--max-hung-engines",
        default=3,
        type=click.IntRange(min=0),
        help="With more hung engines than this the server drains and ends with status 3, to be started anew.",
    ),
    declare(
        "--cache-dir",
        type=click.Path(file_okay=False, path_type=Path),
        default=default_cache_dir,
        show_default="~/.cache/kairos",
        help="Folder for optimised graphs, so that the next start is quicker.",
    ),
    declare(
        "--source-cache-dir",
        type=click.Path(file_okay=False, path_type=Path),
        show_default="sources in --cache-dir",
        help="Folder for copies of models from `s3://` and the like. Servers may share it.",
    ),
    declare(
        "--source-cache-gb",
        default=20.0,
        type=click.FloatRange(min=0),
        help="Most that those copies take, in GiB. What a model uses stays beyond that.",
    ),
    declare(
        "--source-parallel",
        default=4,
        type=click.IntRange(1, 64),
        help="Files fetched from one source at the same time.",
    ),
    declare(
        "--model-signing-key",
        type=_FILE,
        multiple=True,
        help="Ed25519 public key as PEM. With any, versions from `s3://` and the like must be signed by one of them.",
    ),
    declare(
        "--state-dir",
        type=click.Path(file_okay=False, path_type=Path),
        default=default_state_dir,
        show_default="~/.local/state/kairos",
        help="Folder for what must outlive the server: captured requests, outcomes, rollouts.",
    ),
)


def repository_options(values: dict[str, Any]) -> RepositoryOptions:
    """The settings of the model manager."""
    return RepositoryOptions(
        roots=tuple(repository for repository in values["model_repository"] if isinstance(repository, Path)),
        mode=ControlMode(values["model_control_mode"]),
        startup_models=tuple(values["load_model"]),
        poll_interval_s=values["repository_poll_secs"],
    )


def source_options(values: dict[str, Any]) -> SourceOptions:
    """The settings of the repositories that are no folders here."""
    return SourceOptions(
        uris=tuple(repository for repository in values["model_repository"] if isinstance(repository, str)),
        cache_dir=values["source_cache_dir"] or values["cache_dir"] / "sources",
        cache_bytes=int(values["source_cache_gb"] * (1 << 30)),
        signing_keys=tuple(values["model_signing_key"]),
        parallel=values["source_parallel"],
    )


def patience(values: dict[str, Any]) -> Patience:
    """The settings of the watchdog."""
    return Patience(floor_s=values["engine_timeout_secs"] or math.inf, max_hung=values["max_hung_engines"])
