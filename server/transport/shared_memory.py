"""Tensors in POSIX shared memory of this host: regions that clients register by name and then refer to.

A region stays mapped until it is unregistered and the last request that reads it has ended.
"""

from __future__ import annotations

import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines.errors import InvalidRequest
from engines.tensor import Buffer
from server.transport.regions import NamedRegions

FOLDER: Final = Path("/dev/shm")  # noqa: S108  (where Linux keeps POSIX shared memory)
_KEY: Final = re.compile(r"/?[^/\0]{1,250}")


@dataclass(frozen=True, slots=True)
class Region:
    """A registered region: `size` bytes from `offset` of the shared memory object `key`."""

    name: str
    key: str
    offset: int
    size: int
    memory: memoryview

    def view(self, offset: int, size: int) -> memoryview:
        """Part of the region. Raises InvalidRequest when it reaches beyond it."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise InvalidRequest(f"Invalid offset + byte size for shared memory region: '{self.name}'")
        return self.memory[offset : offset + size]


class SystemSharedMemory(NamedRegions[Region]):
    """The regions registered now."""

    def __init__(self, folder: Path = FOLDER) -> None:
        super().__init__()
        self._folder = folder

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Map an existing shared memory object.

        Raises AlreadyExists for a name in use, InvalidRequest for anything that cannot be mapped.
        """
        self.check_new(name, size)
        if not _KEY.fullmatch(key) or key.strip("/") in {"", ".", ".."}:
            raise InvalidRequest(f"Unable to open shared memory region: '{key}' is no shared memory key")
        self.keep(name, Region(name, key, offset, size, self._map(name, key, offset, size)))

    def _map(self, name: str, key: str, offset: int, size: int) -> memoryview:
        try:
            handle = os.open(self._folder / key.lstrip("/"), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidRequest(f"Unable to open shared memory region: '{key}': {error.strerror}") from error
        try:
            total = os.fstat(handle).st_size
            if offset < 0 or offset + size > total:
                raise InvalidRequest(
                    f"failed to register shared memory region '{name}': invalid args: "
                    f"{size} bytes at {offset} of '{key}', which has {total}"
                )
            mapped = mmap.mmap(handle, total)
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"Unable to map shared memory region: '{key}': {error}") from error
        finally:
            os.close(handle)
        return memoryview(mapped)[offset : offset + size]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one tensor of a request lives, or is to be written."""

    region: Region
    offset: int
    size: int

    def read(self) -> memoryview:
        """The bytes of an input."""
        return self.region.view(self.offset, self.size)

    def write(self, name: str, data: Buffer) -> None:
        """Put an output in place. Raises InvalidRequest when it does not fit."""
        if len(data) > self.size:
            raise InvalidRequest(
                f"shared memory size specified with the request for output '{name}' ({self.size} bytes) "
                f"should be at least {len(data)} bytes to hold the results"
            )
        self.region.view(self.offset, len(data))[:] = data
