"""`kairos token`: credentials for callers."""

from __future__ import annotations

import sys

import rich_click as click
from rich.console import Console

from server.access.tokens import digest_of, new_token


@click.group()
def token() -> None:
    """Bearer tokens for the access policy."""


@token.command()
@click.argument("caller", default="NAME")
def new(caller: str) -> None:
    """Make a token: it goes to standard output, and what the policy needs of it to standard error.

    **Example**: `kairos token new batch-jobs > batch-jobs.token`
    """
    made = new_token()
    print(made)
    sys.stdout.flush()
    lines = f'\\[callers.{caller}]\ntoken_sha256 = ["{digest_of(made).hex()}"]\nroles = \\[]'
    Console(stderr=True, highlight=False, soft_wrap=True).print(lines)


@token.command()
def digest() -> None:
    """Print the digest of a token that is read from standard input."""
    given = sys.stdin.read().strip()
    if not given:
        raise click.UsageError("there is no token on standard input")
    print(digest_of(given).hex())
