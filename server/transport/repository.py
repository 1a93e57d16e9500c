"""The model manager in the words of the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engines.repository.manager import ModelManager
from server.transport.model import ServedModel


@dataclass(frozen=True, slots=True)
class IndexLine:
    """One line of RepositoryIndex."""

    name: str
    version: str
    state: str
    reason: str


class Remarks(Protocol):
    """Knows more of versions than the repository does."""

    def remark(self, model: str, version: int) -> str:
        """What the index is to say beside the reason of a version's state; often nothing."""
        ...


class ServedModels:
    """What the service asks of the repository."""

    def __init__(self, manager: ModelManager[ServedModel], remarks: Remarks | None = None) -> None:
        self._manager = manager
        self._remarks = remarks
        self.borrow = manager.borrow
        self.ready = manager.ready
        self.load = manager.load
        self.unload = manager.unload

    def versions(self, name: str) -> Sequence[str]:
        """The versions that can answer, ascending; raises ModelNotFound or ModelNotReady when none can."""
        self._manager.borrow(name)
        return [str(version) for version in self._manager.versions(name)]

    def served(self) -> Sequence[ServedModel]:
        """All versions that can answer, in order of names and versions."""
        return self._manager.services()

    async def index(self, *, ready_only: bool = False) -> Sequence[IndexLine]:
        """All versions that are known; a model of which no version was looked at has an empty one."""
        rows = await self._manager.index(ready_only=ready_only)
        return [
            IndexLine(
                row.name, str(row.version or ""), row.state.value, self._reason(row.name, row.version, row.reason)
            )
            for row in rows
        ]

    def _reason(self, name: str, version: int, reason: str) -> str:
        remark = "" if self._remarks is None else self._remarks.remark(name, version)
        return "; ".join(part for part in (reason, remark) if part)
