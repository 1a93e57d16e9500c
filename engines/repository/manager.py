"""Keeps the models of the repositories up: loads, watches, lends, replaces and unloads their versions.

Rules: all methods belong to one event loop; work on the disk runs in threads; operations on one model take turns,
those on different models run side by side, up to `max_concurrent_loads`.
Promises: whoever has borrowed a version keeps it until the end of its block. A new version, or the new form of an old
one, serves before the old one leaves; what cannot be brought up never pushes out what serves. A caller who is
cancelled in the middle of `load` or `unload` does not leave the work half done: it goes on without them.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from engines.errors import LoadFailed, ModelNotFound, NotAllowed
from engines.repository.config import model_files_of, parse_json
from engines.repository.definition import Definition, read_config
from engines.repository.handle import Closeable, Handle, Scratch
from engines.repository.layout import ModelFolder, Scan, Seen, look, scan, settle
from engines.repository.lifecycle import State, VersionStatus
from engines.repository.model import NO_VERSION, HighestFirst, Listener, ManagedModel, Order, Steering, Tools
from engines.repository.settings import chosen_versions

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Closeable)
R = TypeVar("R")

ALL: Final = "*"
_NOT_POLLED: Final = "failed to poll from model repository"


class ControlMode(enum.Enum):
    """Who decides what is loaded."""

    NONE = "none"  # all models, once, at the start
    POLL = "poll"  # all models, and whatever changes in the folders later
    EXPLICIT = "explicit"  # those named at the start, and whatever `load` and `unload` say


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryOptions:
    """What the manager obeys."""

    roots: Sequence[Path]
    """Model repositories. A model that two of them have is served from neither."""
    mode: ControlMode = ControlMode.NONE
    startup_models: Sequence[str] = ()
    """Mode explicit: models to load at the start; `*` for all."""
    poll_interval_s: float = 15.0
    """Mode poll: seconds between two looks; a change is acted upon once two looks have seen it. 0: no looks at all."""
    max_concurrent_loads: int = 4
    """Versions brought up at the same time. More need more memory at once and disturb each other's measurements."""


@dataclass(frozen=True, slots=True)
class VersionStatistics:
    """One version, as it is."""

    name: str
    version: int
    state: State
    borrowers: int
    load_s: float
    """How long the last successful load took; 0 when there was none."""


@dataclass(frozen=True, slots=True)
class RepositoryStatistics:
    """A snapshot."""

    versions: tuple[VersionStatistics, ...]
    draining: int
    """Replaced or unloaded versions that are not closed yet."""


class ModelManager(Generic[T]):
    """See the module. `opener` brings a version up, warmed and ready to serve, or raises; `close` undoes it.

    `refresh` is called, in a thread, before each look at the folders: it brings those that are copies up to date.
    """

    def __init__(
        self,
        options: RepositoryOptions,
        opener: Callable[[Definition], Awaitable[T]],
        clock: Callable[[], float] = time.perf_counter,
        refresh: Callable[[], None] | None = None,
        steering: Steering | None = None,
    ) -> None:
        """Without a `steering`, an empty version means the highest one."""
        self._options = options
        self._refresh_copies = refresh
        self._polls = options.mode is ControlMode.POLL
        self._steering = steering or HighestFirst()
        permits = asyncio.Semaphore(options.max_concurrent_loads)
        self._tools = Tools(opener, self._announce, permits, clock, self._steering)
        self._models: dict[str, ManagedModel[T]] = {}
        self._lent: dict[str, dict[str, contextlib.AbstractContextManager[T]]] = {}
        self._listeners: list[Listener] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last_scan = Scan()
        self._applied: dict[str, Seen] = {}
        """What the last poll that acted upon a model had seen of it."""
        self._closed = False

    def __repr__(self) -> str:
        states = [version.state for version in self.statistics().versions]
        return (
            f"<ModelManager {self._options.mode.value} [versions: {states.count(State.READY)} ready, "
            f"{states.count(State.LOADING)} loading, {states.count(State.UNAVAILABLE)} unavailable | "
            f"draining: {self.statistics().draining}]>"
        )

    # Lending

    def borrow(self, name: str, version: str = "") -> contextlib.AbstractContextManager[T]:
        """The version, to be held in a `with` block; for an empty version what the steering says, the highest one.

        Raises ModelNotFound or ModelNotReady.
        """
        try:
            return self._lent[name][version]
        except KeyError:
            model = self._models.get(name)
        if model is None:
            raise ModelNotFound(f"Request for unknown model: '{name}' is not found")
        raise model.why_not(version)

    resolve = borrow

    def ready(self, name: str, version: str = "") -> bool:
        """Whether `borrow` would succeed."""
        return version in self._lent.get(name, ())

    def versions(self, name: str) -> Sequence[int]:
        """The versions that are ready, ascending."""
        model = self._models.get(name)
        return model.serving() if model is not None else ()

    def services(self) -> Sequence[T]:
        """What the opener gave for each version that is ready, in order of names and versions."""
        handles = [
            model.versions[number].handle for _, model in sorted(self._models.items()) for number in model.serving()
        ]
        return [handle.service for handle in handles if handle is not None]

    def steer(self, name: str) -> None:
        """The steering has something new to say of what an empty version means."""
        if name in self._models:
            self._models[name].lend()

    async def bring(self, name: str) -> None:
        """The steering keeps other versions than before: bring them up now, or with the next poll, as the mode allows.

        Raises LoadFailed.
        """
        self._applied.pop(name, None)
        if self._options.mode is ControlMode.EXPLICIT:
            await self.load(name)

    # Watching

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each change of a version's state or reason; the result ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _announce(self, name: str, version: int, state: State, reason: str) -> None:
        for listener in tuple(self._listeners):
            listener(name, version, state, reason)

    async def index(self, *, ready_only: bool = False) -> Sequence[VersionStatus]:
        """All versions that are known, and all models in the repositories, in order of names and versions."""
        found = Scan() if ready_only else await asyncio.to_thread(scan, self._options.roots)
        rows: list[VersionStatus] = []
        for name in sorted({*found.models, *found.problems, *(n for n, model in self._models.items() if model.known)}):
            model = self._models.get(name)
            if model is not None and model.known:
                rows.extend(model.status())
            else:
                problem = found.problems.get(name, "")
                rows.append(VersionStatus(name, 0, State.UNAVAILABLE if problem else State.UNKNOWN, problem))
        return [row for row in rows if row.state is State.READY or not ready_only]

    def statistics(self) -> RepositoryStatistics:
        """How everything stands; linear in the number of versions."""
        rows = tuple(
            VersionStatistics(name, number, version.life.state, _borrowers(version.handle), version.load_s)
            for name, model in sorted(self._models.items())
            for number, version in sorted(model.versions.items())
        )
        return RepositoryStatistics(rows, sum(len(model.drains) for model in self._models.values()))

    # Start, changes, end

    async def start(self) -> Sequence[VersionStatus]:
        """Load what the mode says, and start watching in mode poll; returns what could not be brought up.

        Raises LoadFailed when a repository cannot be read, or a model that was named is in none of them.
        """
        found = await asyncio.to_thread(self._look)
        for root, reason in found.unreadable.items():
            raise LoadFailed(f"failed to load models: the model repository '{root}' cannot be read: {reason}")
        self._last_scan = found
        names = self._startup_names(found)
        await asyncio.gather(*(self._operate(self._refresh(name, found, None)) for name in names))
        if self._polls and self._options.poll_interval_s > 0:
            self._spawn(self._watch())
        rows = [row for name in names for row in self._models[name].status()]
        return [row for row in rows if row.state is not State.READY]

    def _startup_names(self, found: Scan) -> Sequence[str]:
        everything = sorted({*found.models, *found.problems})
        named = sorted(set(self._options.startup_models))
        if self._options.mode is not ControlMode.EXPLICIT or ALL in named:
            return everything
        for name in named:
            if name not in everything:
                raise LoadFailed(f"failed to load '{name}', {_NOT_POLLED}: there is no such model")
        return named

    async def poll(self) -> None:
        """Look at the repositories, and bring what serves in line with what two looks in a row have seen."""
        found = await asyncio.to_thread(self._look)
        if found.unreadable:
            log.warning("model repositories cannot be read, their models stay as they are: %s", found.unreadable)
            return
        before, self._last_scan = self._last_scan, found
        names = sorted({*self._models, *found.models, *found.problems})
        await asyncio.gather(*(self._operate(self._refresh(name, found, before)) for name in names))

    async def load(self, name: str, config_json: str | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """Bring the model in line with its folder, or with the given configuration and files in place of it.

        Returns when all versions that should serve do. Raises NotAllowed; or LoadFailed, and then whatever served
        before still does.
        """
        self._require_explicit()
        await self._operate(self._load(name, config_json, files or {}))

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        """Stop serving the model; returns when the last borrower has left and all its versions are closed.

        `dependents` would unload the parts of an ensemble; no model has any. Raises NotAllowed or ModelNotFound.
        """
        del dependents
        self._require_explicit()
        model = self._models.get(name)
        if model is None or not model.known:
            raise ModelNotFound(f"Request for unknown model: '{name}' is not found")
        await self._operate(self._unload(model))
        if model.drains:
            await asyncio.wait(model.drains)

    async def close(self) -> None:
        """Stop watching, give up what is being loaded, retire everything; returns when all borrowers have left."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for model in self._models.values():
            model.retire_all(on_disk=True)
        while drains := [task for model in self._models.values() for task in model.drains]:
            await asyncio.wait(drains)

    def _require_explicit(self) -> None:
        if self._polls:
            raise NotAllowed("explicit model load / unload is not allowed if polling is enabled")
        if self._options.mode is ControlMode.NONE:
            raise NotAllowed("explicit model load / unload is not allowed in model control mode 'none'")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._options.poll_interval_s)
            try:
                await self.poll()
            except Exception:  # whatever it was, the next look may well succeed
                log.exception("polling the model repositories failed")

    # Operations: each holds its model's lock, and runs in a task of its own

    async def _operate(self, operation: Coroutine[Any, Any, R]) -> R:
        """Run it to the end, whether or not the caller stays."""
        if self._closed:
            operation.close()
            raise NotAllowed("the model repository is closed")
        return await asyncio.shield(self._spawn(operation))

    def _spawn(self, operation: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        task = asyncio.get_running_loop().create_task(operation)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _model(self, name: str) -> ManagedModel[T]:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = ManagedModel(name, self._tools)
            self._lent[name] = model.lent
        return model

    async def _refresh(self, name: str, found: Scan, before: Scan | None) -> None:
        """Bring the model in line with what was found; what `before` saw differently is not acted upon yet."""
        model = self._model(name)
        async with model.lock:
            seen = settle(name, found, before, model.serving())
            if seen == self._applied.get(name):
                return
            self._applied[name] = seen
            folder = found.models.get(name)
            if seen.problem:
                model.blame(seen.problem)
            elif folder is not None:
                with contextlib.suppress(LoadFailed):  # the index tells
                    await self._bring_in_line(model, folder, seen)
            elif not seen.kept:
                model.blame("")
                model.retire_all(on_disk=False)

    async def _load(self, name: str, config_json: str | None, files: Mapping[str, bytes]) -> None:
        scratch: Scratch | None = None
        try:
            _check_name(name)
            if files:
                scratch = await asyncio.to_thread(Scratch.write, files)
            path = await asyncio.to_thread(self._find, name) if scratch is None else scratch.path
            model = self._model(name)
            async with model.lock:
                folder = await asyncio.to_thread(look, name, path)
                seen = Seen(folder.versions)
                failed = await self._bring_in_line(model, folder, seen, config_json, scratch)
        except (LoadFailed, OSError) as error:
            raise LoadFailed(f"failed to load '{name}', {error}") from error
        finally:
            if scratch is not None:
                await scratch.release()
        if failed:
            reasons = "; ".join(f"version {number} is at UNAVAILABLE state: {why}" for number, why in failed.items())
            raise LoadFailed(f"failed to load '{name}', {reasons}")

    async def _unload(self, model: ManagedModel[T]) -> None:
        async with model.lock:
            model.blame("")
            model.retire_all(on_disk=True)

    async def _bring_in_line(
        self,
        model: ManagedModel[T],
        folder: ModelFolder,
        seen: Seen,
        config_json: str | None = None,
        scratch: Scratch | None = None,
    ) -> Mapping[int, str]:
        """Returns why versions failed. Raises LoadFailed when there is no version, or no configuration, to try."""
        try:
            if config_json is None:
                config = await asyncio.to_thread(read_config, folder)
            else:
                config = parse_json(config_json)
        except LoadFailed as error:
            model.blame(str(error))
            raise
        whole = {number: v for number, v in seen.versions.items() if any(map(v.holds, model_files_of(config)))}
        unsettled = folder.versions.keys() - seen.versions.keys()
        available = {*whole, *seen.kept}
        chosen = chosen_versions(config, available) | (self._steering.kept(model.name) & available)
        if not chosen and (folder.versions or not self._polls):
            model.blame(NO_VERSION)
            raise LoadFailed(NO_VERSION)
        order = Order(
            folder=folder,
            config=config,
            wanted={number: whole[number] for number in chosen if number in whole},
            kept=seen.kept,
            missing=frozenset(chosen - whole.keys() - seen.kept - unsettled),
            scratch=scratch,
            salt="" if config_json is None else hashlib.blake2b(config_json.encode(), digest_size=16).hexdigest(),
        )
        return await model.apply(order)

    def _look(self) -> Scan:
        if self._refresh_copies is not None:
            self._refresh_copies()
        return scan(self._options.roots)

    def _find(self, name: str) -> Path:
        found = self._look()
        if name in found.models:
            return found.models[name].path
        raise LoadFailed(f"{_NOT_POLLED}: {found.problems.get(name, 'there is no such model')}")


def _check_name(name: str) -> None:
    """Names are folder names, and others make file names of them."""
    if not name or name.startswith(".") or not name.isprintable() or "/" in name or "\\" in name:
        raise LoadFailed(f"{name!r} cannot be the name of a model")


def _borrowers(handle: Handle[Any] | None) -> int:
    return 0 if handle is None else handle.borrowers
