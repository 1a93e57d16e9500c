"""`kairos` and `python -m server`."""

from __future__ import annotations

from server.cli import cli


def main() -> None:
    """Run the command line."""
    cli(prog_name="kairos")


if __name__ == "__main__":
    main()
