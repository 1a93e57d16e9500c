"""Who may call."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import rich_click as click

from server.cli.settings import in_panel, settings
from server.transport.doors import AccessOptions

declare: Final = in_panel("Access")

declared = settings(
    declare(
        "--access-policy",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="TOML file with callers, roles and limits (docs/security.md). Without one the server is open to its host;"
        " to others, all but control and shared memory.",
    ),
    declare(
        "--reload-secs",
        default=5.0,
        type=click.FloatRange(min=0),
        help="Seconds between looks at policy, certificates and keys for changes. 0: only on SIGHUP.",
    ),
)


def access_options(values: dict[str, Any]) -> AccessOptions:
    """The settings of access."""
    return AccessOptions(policy=values["access_policy"], reload_s=values["reload_secs"])
