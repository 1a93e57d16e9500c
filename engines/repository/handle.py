"""What is lent: one version that is up, and who holds it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from engines.errors import ModelNotReady
from engines.repository.definition import Definition
from engines.repository.layout import write_model


class Closeable(Protocol):
    """What an opener gives."""

    async def close(self) -> None:
        """Free everything; called once, when nobody holds it any more."""
        ...


T = TypeVar("T", bound=Closeable)


class Scratch:
    """A private folder for the files of a model that came over the wire; gone with its last holder."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="kairos-model-"))
        self._holders = 1

    @classmethod
    def write(cls, files: Mapping[str, bytes]) -> Scratch:
        """Held once, by the caller. Blocks on the disk. Raises LoadFailed, and then leaves nothing behind."""
        scratch = cls()
        try:
            write_model(scratch.path, files)
        except BaseException:
            shutil.rmtree(scratch.path, ignore_errors=True)
            raise
        return scratch

    def hold(self) -> None:
        """One holder more."""
        self._holders += 1

    async def release(self) -> None:
        """One holder less."""
        self._holders -= 1
        if self._holders == 0:
            await asyncio.to_thread(shutil.rmtree, self.path, ignore_errors=True)


class Handle(Generic[T]):
    """One version that is up. `with handle as service:` keeps it up for the length of the block.

    The handle is its own context manager and only counts, so that lending costs no allocation; blocks may overlap.
    """

    __slots__ = ("_empty", "_scratch", "borrowers", "closed", "definition", "fingerprint", "service")

    def __init__(self, definition: Definition, service: T, fingerprint: str, scratch: Scratch | None = None) -> None:
        self.definition = definition
        self.service = service
        self.fingerprint = fingerprint
        """Of the files and the configuration that it was made from."""
        self.borrowers = 0
        self.closed = False
        self._empty: asyncio.Event | None = None
        self._scratch = scratch
        if scratch is not None:
            scratch.hold()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.borrowers} borrowers"
        return f"<Handle {self.definition.name}:{self.definition.version} [{state}]>"

    def __enter__(self) -> T:
        if self.closed:
            raise ModelNotReady(
                f"Request for unknown model: '{self.definition.name}' version {self.definition.version} "
                "is not at ready state"
            )
        self.borrowers += 1
        return self.service

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.borrowers -= 1
        if self.borrowers == 0 and self._empty is not None:
            self._empty.set()

    async def drain(self) -> None:
        """Wait until nobody holds it, then close the service and forget its private files."""
        while self.borrowers:
            self._empty = asyncio.Event()
            await self._empty.wait()
        self.closed = True
        try:
            await self.service.close()
        finally:
            if self._scratch is not None:
                await self._scratch.release()
