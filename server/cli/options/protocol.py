"""What the server says of itself and of errors."""

from __future__ import annotations

from typing import Any, Final

import rich_click as click

from server.cli.settings import in_panel, settings
from server.transport.service import ServiceOptions
from server.transport.status import StatusCodes

declare: Final = in_panel("Protocol")

declared = settings(
    declare(
        "--status-codes",
        type=click.Choice([codes.value for codes in StatusCodes]),
        default="kairos",
        help="Which status codes errors get: our own, which do not invite retry storms, or Triton's.",
    ),
    declare(
        "--tenant-key",
        default="",
        help="Metadata key that names the tenant of a call; in overload tenants get equal shares. Empty: all are one.",
    ),
    declare("--server-name", default="kairos", help="Name in ServerMetadata; some clients insist on `triton`."),
)


def service_options(values: dict[str, Any], version: str) -> ServiceOptions:
    """The settings of the service; `version` is the server's own."""
    return ServiceOptions(
        name=values["server_name"],
        version=version,
        status_codes=StatusCodes(values["status_codes"]),
        tenant_key=values["tenant_key"],
        callers_are_tenants=values["access_policy"] is not None,
    )
