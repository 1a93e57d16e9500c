"""Regions of shared memory by name, whatever kind of memory it is."""

from __future__ import annotations

from typing import Generic, TypeVar

from engines.errors import AlreadyExists, InvalidRequest, NotFound

Region = TypeVar("Region")


class NamedRegions(Generic[Region]):
    """Those that are registered now."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}

    def check_new(self, name: str, size: int) -> None:
        """Raises AlreadyExists for a name in use, InvalidRequest for a region of nothing."""
        if name in self._regions:
            raise AlreadyExists(f"shared memory region '{name}' already in manager")
        if size <= 0:
            raise InvalidRequest(f"shared memory region '{name}' must have a byte size > 0")

    def keep(self, name: str, region: Region) -> None:
        """Register it."""
        self._regions[name] = region

    def unregister(self, name: str) -> None:
        """Forget one region. Unknown names are no error, as in Triton."""
        self._regions.pop(name, None)

    def unregister_all(self) -> None:
        """Forget all regions."""
        self._regions.clear()

    def get(self, name: str) -> Region:
        """A region by name; raises NotFound."""
        region = self._regions.get(name)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{name}'")
        return region

    def status(self, name: str = "") -> list[Region]:
        """The region of that name, or all; raises NotFound."""
        return [self.get(name)] if name else list(self._regions.values())
