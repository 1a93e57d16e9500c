"""All versions of one model: brings up what an order wants, retires what it does not.

Rules: nothing here looks at a repository. `apply` runs under the model's lock, so that operations take turns.
Promise: a version is lent from the moment it is ready until it is retired; what replaces it is ready before that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from engines.errors import ModelNotFound, ModelNotReady, VersionNotFound
from engines.repository.definition import Definition, define
from engines.repository.handle import Closeable, Handle, Scratch
from engines.repository.layout import ModelFolder, VersionFolder
from engines.repository.lifecycle import Event, Life, State, VersionStatus
from server.pb import model_config_pb2 as pb

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Closeable)

Listener: TypeAlias = Callable[[str, int, State, str], None]
"""Called with name, version, state and reason after each change; must not raise and must not block."""

UNLOADED: Final = "unloaded"
GIVEN_UP: Final = "loading was given up"
NO_VERSION: Final = "no version is available"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a model should look like."""

    folder: ModelFolder
    config: pb.ModelConfig
    wanted: Mapping[int, VersionFolder]
    """Versions that should serve."""
    kept: frozenset[int] = frozenset()
    """Versions to be left as they are, because their files are changing just now."""
    missing: frozenset[int] = frozenset()
    """Versions that the configuration names and the folder does not have."""
    scratch: Scratch | None = None
    """Where the folder lies, if it came over the wire."""
    salt: str = ""
    """What the fingerprints of the files do not show: a configuration that came with the order."""


class Steering(Protocol):
    """Decides what the empty version of a model is, and which versions stay up whatever the version policy says."""

    def kept(self, name: str) -> AbstractSet[int]:
        """Versions to be served besides those that the policy chooses, as far as they are there."""
        ...

    def front(self, name: str, lent: Mapping[int, Handle[Any]]) -> AbstractContextManager[Any] | None:
        """What is lent for the empty version, of at least one version that is ready; None for nothing.

        Asked once after each change, not for each request. It holds up what it hands out, as a Handle does.
        """
        ...


class HighestFirst:
    """The empty version is the highest one."""

    def kept(self, name: str) -> AbstractSet[int]:
        """See Steering.kept."""
        del name
        return frozenset()

    def front(self, name: str, lent: Mapping[int, Handle[Any]]) -> AbstractContextManager[Any] | None:
        """See Steering.front."""
        del name
        return lent[max(lent)]


@dataclass(frozen=True, slots=True)
class Tools(Generic[T]):
    """What all models of a manager share."""

    opener: Callable[[Definition], Awaitable[T]]
    announce: Listener
    permits: asyncio.Semaphore
    """Bounds how many versions are brought up at once."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    steering: Steering = field(default_factory=HighestFirst)


@dataclass(slots=True)
class Version(Generic[T]):
    """One version, from the first attempt to load it."""

    life: Life = field(default_factory=Life)
    handle: Handle[T] | None = None
    """What is lent; present exactly while the state is READY."""
    leaving: Handle[T] | None = None
    """What the state UNLOADING waits for."""
    on_disk: bool = True
    load_s: float = 0.0
    """Seconds that the last successful load took, the wait for its turn left out."""


class ManagedModel(Generic[T]):
    """See the module."""

    def __init__(self, name: str, tools: Tools[T]) -> None:
        self.name = name
        self.lock = asyncio.Lock()
        self.versions: dict[int, Version[T]] = {}
        self.reason = ""
        """Why the folder as a whole cannot be used; empty when it can."""
        self.lent: dict[str, AbstractContextManager[T]] = {}
        """Ready versions as callers write them; the empty version is the steering's. Always the same dictionary."""
        self.drains: set[asyncio.Task[None]] = set()
        self._tools = tools

    @property
    def known(self) -> bool:
        """Whether there is anything to say about it."""
        return bool(self.versions or self.reason)

    def serving(self) -> list[int]:
        """The versions that are ready, ascending."""
        return sorted(number for number, version in self.versions.items() if version.handle is not None)

    def status(self) -> list[VersionStatus]:
        """One row for each version; one for the model when there is none."""
        if not self.versions:
            return [VersionStatus(self.name, 0, State.UNAVAILABLE if self.reason else State.UNKNOWN, self.reason)]
        return [
            VersionStatus(self.name, number, version.life.state, version.life.reason or self.reason)
            for number, version in sorted(self.versions.items())
        ]

    def why_not(self, version: str) -> ModelNotFound | ModelNotReady:
        """The error for a version that is not lent."""
        if not self.known:
            return ModelNotFound(f"Request for unknown model: '{self.name}' is not found")
        if not version:
            return ModelNotReady(f"Request for unknown model: '{self.name}' is not at ready state")
        if version not in map(str, self.versions):
            return VersionNotFound(f"Request for unknown model: '{self.name}' version {version} is not found")
        return ModelNotReady(f"Request for unknown model: '{self.name}' version {version} is not at ready state")

    def blame(self, reason: str) -> None:
        """The folder as a whole cannot be used; what serves goes on serving. An empty reason takes that back."""
        if reason == self.reason:
            return
        self.reason = reason
        for row in self.status():
            self._tools.announce(row.name, row.version, row.state, row.reason)

    async def apply(self, order: Order) -> Mapping[int, str]:
        """Bring up what is wanted, newest first, then retire the rest; returns the reasons of what failed.

        As long as anything that is wanted has failed, nothing is retired.
        """
        failed: dict[int, str] = {}
        for number, folder in sorted(order.wanted.items(), reverse=True):
            if reason := await self._bring_up(order, folder):
                failed[number] = reason
        for number in sorted(order.missing):
            failed[number] = f"{NO_VERSION}: the version policy names it, but it is not in the repository"
            self._fail(number, failed[number])
        self.blame("" if order.wanted or order.kept or failed else NO_VERSION)
        for number, version in list(self.versions.items()):
            version.on_disk = number in order.folder.versions
            if number in order.wanted or number in order.kept or number in failed:
                continue
            if version.handle is None:
                self._forget_if_gone(number)
            elif not failed:
                self.retire(number)
        return failed

    def retire(self, number: int) -> None:
        """Lend the version to nobody any more, and close it once its last borrower has left."""
        version = self.versions[number]
        handle, version.handle = version.handle, None
        if handle is None:
            return
        version.leaving = handle
        self.lend()
        self._happened(number, Event.RETIRED)
        self._drain(number, handle)

    def retire_all(self, *, on_disk: bool) -> None:
        """Retire everything; with `on_disk` False nothing is remembered of it afterwards."""
        for number, version in list(self.versions.items()):
            version.on_disk = on_disk
            if version.handle is not None:
                self.retire(number)
            else:
                self._forget_if_gone(number)

    async def _bring_up(self, order: Order, folder: VersionFolder) -> str:
        """Make the version what the folder says, unless it is that already; returns why that failed, or nothing."""
        number = folder.number
        version = self.versions.setdefault(number, Version())
        fingerprint = f"{folder.fingerprint}{order.salt}"
        if version.handle is not None and version.handle.fingerprint == fingerprint:
            if version.life.reason:  # a change that did not work has been taken back
                self._happened(number, Event.OPENED)
            return ""
        self._happened(number, Event.LOAD)
        try:
            async with self._tools.permits:
                started = self._tools.clock()
                definition = await asyncio.to_thread(define, order.folder, folder, order.config)
                service = await self._tools.opener(definition)
        except asyncio.CancelledError:
            self._happened(number, Event.FAILED, GIVEN_UP)
            raise
        except Exception as error:  # noqa: BLE001  (whatever an opener raises, it is this version's fault alone)
            reason = str(error) or type(error).__name__
            log.warning("model '%s' version %d cannot be loaded: %s", self.name, number, reason)
            self._happened(number, Event.FAILED, reason)
            return reason
        old, version.handle = version.handle, Handle(definition, service, fingerprint, order.scratch)
        version.load_s = self._tools.clock() - started
        self.lend()
        self._happened(number, Event.OPENED)
        if old is not None:
            self._drain(number, old)
        return ""

    def _fail(self, number: int, reason: str) -> None:
        if self.versions.setdefault(number, Version()).life.reason != reason:
            self._happened(number, Event.LOAD)
            self._happened(number, Event.FAILED, reason)

    def lend(self) -> None:
        """Bring what is lent in line with what is ready, and with the steering."""
        ready = {number: handle for number in self.serving() if (handle := self.versions[number].handle)}
        front = self._tools.steering.front(self.name, ready) if ready else None
        self.lent.clear()
        self.lent.update({str(number): handle for number, handle in ready.items()})
        if front is not None:
            self.lent[""] = front

    def _happened(self, number: int, event: Event, reason: str = "") -> None:
        life = self.versions[number].life
        life.take(event, reason)
        self._tools.announce(self.name, number, life.state, life.reason)

    def _drain(self, number: int, handle: Handle[T]) -> None:
        task = asyncio.get_running_loop().create_task(self._drained(number, handle))
        self.drains.add(task)
        task.add_done_callback(self.drains.discard)

    async def _drained(self, number: int, handle: Handle[T]) -> None:
        try:
            await handle.drain()
        except Exception:  # it is gone for its callers either way
            log.exception("model '%s' version %d did not close cleanly", self.name, number)
        version = self.versions.get(number)
        if version is None or version.leaving is not handle:
            return
        version.leaving = None
        if version.life.state is State.UNLOADING:
            self._happened(number, Event.EMPTIED, UNLOADED)
            self._forget_if_gone(number)

    def _forget_if_gone(self, number: int) -> None:
        version = self.versions[number]
        if not version.on_disk and version.life.state is State.UNAVAILABLE:
            del self.versions[number]
