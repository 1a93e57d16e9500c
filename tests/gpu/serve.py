"""A server process for the measurements: `python -m tests.gpu.serve REPOSITORY [--dry-run]`; prints its port."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from engines.repository.manager import RepositoryOptions
from server import app
from server.transport.listen import ListenOptions
from tests.gpu.machine import install_fakes


def tell(port: int) -> None:
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


async def main(repository: Path) -> None:
    options = app.ServerOptions(
        repository=RepositoryOptions(roots=(repository,)),
        listen=ListenOptions(port=0),
        metrics_port=None,
        exit_on_error=True,
    )
    await app.run(options, lambda addresses, _: tell(addresses.grpc_port))


if __name__ == "__main__":
    if "--dry-run" in sys.argv:
        cuda = install_fakes()
        app.find_cuda = lambda: cuda
    asyncio.run(main(Path(sys.argv[1])))
