"""Who may call, and how much any caller may send."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import rich_click as click

from engines.validation import RequestLimits
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
    declare(
        "--max-elements",
        default=1 << 28,
        type=click.IntRange(min=1),
        help="Most elements of one input.",
    ),
    declare(
        "--max-bytes-elements",
        default=1 << 18,
        type=click.IntRange(min=1),
        help="Most elements of one input of BYTES.",
    ),
    declare(
        "--max-bytes-length",
        default=64 << 20,
        type=click.IntRange(min=1),
        help="Most bytes of one element of BYTES.",
    ),
)


def request_limits(values: dict[str, Any]) -> RequestLimits:
    """What any model takes at most."""
    return RequestLimits(
        max_elements=values["max_elements"],
        max_bytes_elements=values["max_bytes_elements"],
        max_bytes_length=values["max_bytes_length"],
    )


def access_options(values: dict[str, Any]) -> AccessOptions:
    """The settings of access."""
    return AccessOptions(policy=values["access_policy"], reload_s=values["reload_secs"])
