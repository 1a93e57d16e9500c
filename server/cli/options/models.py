"""Which models are served, and where the server keeps its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import rich_click as click

from engines.repository.manager import ControlMode, RepositoryOptions
from server.cli.settings import in_panel, settings

declare: Final = in_panel("Models")

_FOLDER: Final = click.Path(exists=True, file_okay=False, path_type=Path)


def default_cache_dir() -> Path:
    """Where optimised graphs are kept unless the settings say otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kairos"


def default_state_dir() -> Path:
    """Where a server keeps what must outlive it unless the settings say otherwise."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "kairos"


declared = settings(
    declare(
        "--model-repository",
        type=_FOLDER,
        multiple=True,
        required=True,
        help="Folder of models, as `NAME/VERSION/model.onnx`. May be given more than once.",
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
        "--cache-dir",
        type=click.Path(file_okay=False, path_type=Path),
        default=default_cache_dir,
        show_default="~/.cache/kairos",
        help="Folder for optimised graphs, so that the next start is quicker.",
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
        roots=tuple(values["model_repository"]),
        mode=ControlMode(values["model_control_mode"]),
        startup_models=tuple(values["load_model"]),
        poll_interval_s=values["repository_poll_secs"],
    )
