"""The manager: modes, lending, replacing, failing, unloading."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from engines.errors import LoadFailed, ModelNotFound, ModelNotReady, NotAllowed
from engines.repository.definition import Definition
from engines.repository.lifecycle import State
from engines.repository.manager import ControlMode, ModelManager, RepositoryOptions
from tests.support import onnx_models


class Service:
    """What the fake opener gives."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.closed = asyncio.Event()
        self.close_error: Exception | None = None

    async def close(self) -> None:
        assert not self.closed.is_set(), "closed twice"
        self.closed.set()
        if self.close_error is not None:
            raise self.close_error


class Opener:
    """Opens at once, unless a version is told to wait or to fail."""

    def __init__(self) -> None:
        self.opened: list[Service] = []
        self.fails: dict[int, Exception] = {}
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Semaphore(0)
        self.inside = 0
        self.most_inside = 0

    async def __call__(self, definition: Definition) -> Service:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.entered.release()
        try:
            if self.gate is not None:
                await self.gate.wait()
            if definition.version in self.fails:
                raise self.fails[definition.version]
            self.opened.append(Service(definition))
            return self.opened[-1]
        finally:
            self.inside -= 1


Manager = ModelManager[Service]
Test = Callable[[Manager, Opener], Awaitable[None]]


def run(
    root: Path, test: Test, mode: ControlMode = ControlMode.EXPLICIT, startup: Sequence[str] = ("*",), loads: int = 4
) -> None:
    async def main() -> None:
        opener = Opener()
        options = RepositoryOptions(
            roots=[root], mode=mode, startup_models=startup, poll_interval_s=0, max_concurrent_loads=loads
        )
        manager: Manager = ModelManager(options, opener, clock=iter(range(1000)).__next__)
        async with asyncio.timeout(20):
            await test(manager, opener)
            await manager.close()
        assert all(service.closed.is_set() for service in opener.opened), "something was left open"

    asyncio.run(main())


async def rows(manager: Manager) -> list[tuple[str, int, str, str]]:
    return [(row.name, row.version, row.state.value, row.reason) for row in await manager.index()]


async def until(condition: Callable[[], bool]) -> None:
    """Let the others run until it is so; the test's own timeout bounds it."""
    while not condition():  # noqa: ASYNC110  (what is waited for announces nothing)
        await asyncio.sleep(0)


def change(folder: Path, version: int = 1) -> None:
    """The same model, touched."""
    path = folder / str(version) / "model.onnx"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


# Lending


def test_the_highest_ready_version_is_lent_unless_one_is_named(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m", (1, 2, 10), config="version_policy { all { } }")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        with manager.borrow("m") as service:
            assert service.definition.version == 10
        with manager.borrow("m", "2") as service:
            assert service.definition.version == 2
        assert manager.versions("m") == [1, 2, 10]
        assert manager.ready("m")
        assert manager.ready("m", "1")
        assert not manager.ready("m", "3")
        assert not manager.ready("x")
        assert manager.versions("x") == ()
        assert manager.resolve("m", "1").definition.spec.version == 1
        assert [service.definition.version for service in manager.services()] == [1, 2, 10]

    run(tmp_path, test)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m")
    onnx_models.write(tmp_path, "idle")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        with pytest.raises(ModelNotFound, match=r"^Request for unknown model: 'x' is not found$"):
            manager.borrow("x")
        with pytest.raises(ModelNotFound, match=r"^Request for unknown model: 'idle' is not found$"):
            manager.borrow("idle")
        for version in ("9", "01", "latest"):
            with pytest.raises(
                ModelNotFound, match=rf"^Request for unknown model: 'm' version {version} is not found$"
            ):
                manager.borrow("m", version)
        await manager.unload("m")
        with pytest.raises(ModelNotReady, match=r"^Request for unknown model: 'm' version 1 is not at ready state$"):
            manager.borrow("m", "1")
        with pytest.raises(ModelNotReady, match=r"^Request for unknown model: 'm' is not at ready state$"):
            manager.borrow("m")

    run(tmp_path, test, startup=["m"])


def test_unloading_waits_for_the_last_borrower(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        handle = manager.borrow("m")
        with handle as service:
            with manager.borrow("m"):
                unloading = asyncio.create_task(manager.unload("m"))
                await until(lambda: not manager.ready("m"))
                assert await rows(manager) == [("m", 1, "UNLOADING", "")]
                assert manager.statistics().draining == 1
            assert not service.closed.is_set()
            assert not unloading.done()
        await unloading
        assert service.closed.is_set()
        assert await rows(manager) == [("m", 1, "UNAVAILABLE", "unloaded")]
        with pytest.raises(ModelNotReady), handle:
            pass

    run(tmp_path, test)


def test_a_cancelled_unload_goes_on(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        with manager.borrow("m") as service:
            unloading = asyncio.create_task(manager.unload("m"))
            await until(lambda: not manager.ready("m"))
            unloading.cancel()
            await asyncio.wait([unloading])
            assert unloading.cancelled()
        await service.closed.wait()

    run(tmp_path, test)


def test_a_version_can_be_loaded_again_while_its_old_form_drains(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        with manager.borrow("m") as old:
            unloading = asyncio.create_task(manager.unload("m"))
            await until(lambda: not manager.ready("m"))
            await manager.load("m")
            with manager.borrow("m") as new:
                assert new is not old
            assert await rows(manager) == [("m", 1, "READY", "")]
        await unloading
        assert await rows(manager) == [("m", 1, "READY", "")]
        assert not new.closed.is_set()

    run(tmp_path, test)


def test_each_form_of_a_version_drains_on_its_own(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        first = manager.borrow("m")
        with first:
            unloading = [asyncio.create_task(manager.unload("m"))]
            await until(lambda: not manager.ready("m"))
            await manager.load("m")
            second = manager.borrow("m")
            second.__enter__()
            unloading.append(asyncio.create_task(manager.unload("m")))
            await until(lambda: not manager.ready("m"))
        await opener.opened[0].closed.wait()
        await until(lambda: manager.statistics().draining == 1)
        assert await rows(manager) == [("m", 1, "UNLOADING", "")], "the second form is still held"
        second.__exit__(None, None, None)
        await asyncio.gather(*unloading)
        assert await rows(manager) == [("m", 1, "UNAVAILABLE", "unloaded")]

    run(tmp_path, test)


# Explicit loading


def test_a_reload_opens_the_new_before_closing_the_old(tmp_path: Path) -> None:
    folder = onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        with manager.borrow("m") as old:
            change(folder)
            await manager.load("m")
            with manager.borrow("m") as new:
                assert new is opener.opened[1]
            assert not old.closed.is_set()
            assert await rows(manager) == [("m", 1, "READY", "")]
        await old.closed.wait()
        await manager.load("m")
        assert len(opener.opened) == 2, "nothing has changed"

    run(tmp_path, test)


def test_a_failed_reload_leaves_the_old_one_serving_and_says_why(tmp_path: Path) -> None:
    folder = onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        (folder / "1" / "model.onnx").rename(folder / ".aside")
        (folder / "1" / "model.onnx").write_bytes(b"broken")
        with pytest.raises(LoadFailed, match=r"^failed to load 'm', version 1 is at UNAVAILABLE state: the model file"):
            await manager.load("m")
        ((_, _, state, reason),) = await rows(manager)
        assert state == "READY"
        assert "'model.onnx' is not a complete ONNX model" in reason
        assert manager.ready("m")
        (folder / ".aside").replace(folder / "1" / "model.onnx")
        await manager.load("m")
        assert await rows(manager) == [("m", 1, "READY", "")]
        assert len(opener.opened) == 1, "what serves is what is there"

    run(tmp_path, test)


def test_a_broken_configuration_leaves_the_old_one_serving(tmp_path: Path) -> None:
    folder = onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        (folder / "config.pbtxt").write_text("sequence_batching { }")
        with pytest.raises(LoadFailed, match="failed to load 'm', sequence_batching is not supported"):
            await manager.load("m")
        ((_, _, state, reason),) = await rows(manager)
        assert (state, reason[:17]) == ("READY", "sequence_batching")
        (folder / "config.pbtxt").unlink()
        await manager.load("m")
        assert await rows(manager) == [("m", 1, "READY", "")]

    run(tmp_path, test)


def test_an_opener_that_fails_is_told_apart(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        opener.fails[1] = RuntimeError()
        with pytest.raises(LoadFailed, match=r"^failed to load 'm', version 1 is at UNAVAILABLE state: RuntimeError$"):
            await manager.load("m")
        assert await rows(manager) == [("m", 1, "UNAVAILABLE", "RuntimeError")]
        opener.fails.clear()
        await manager.load("m")
        assert manager.ready("m")

    run(tmp_path, test, startup=[])


def test_the_unknown_cannot_be_loaded_or_unloaded(tmp_path: Path) -> None:
    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        with pytest.raises(LoadFailed, match="failed to load 'x', failed to poll from model repository"):
            await manager.load("x")
        with pytest.raises(ModelNotFound, match="'x' is not found"):
            await manager.unload("x")
        for name in ("", "../x", ".hidden", "a/b", "a\\b", "a\nb"):
            with pytest.raises(LoadFailed, match="cannot be the name of a model"):
                await manager.load(name, files={"1/model.onnx": b""})
        assert await manager.index() == []

    run(tmp_path, test)


def test_a_model_without_versions_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "1").mkdir(parents=True)

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        for name in ("empty", "half"):
            with pytest.raises(LoadFailed, match=f"failed to load '{name}', no version is available"):
                await manager.load(name)
        assert [row[1:] for row in await rows(manager)] == [(0, "UNAVAILABLE", "no version is available")] * 2

    run(tmp_path, test)


def test_a_named_version_that_is_not_there_is_shown(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m", (1,), config="version_policy { specific { versions: [1, 4] } }")

    async def test(manager: Manager, opener: Opener) -> None:
        (missing,) = await manager.start()
        assert (missing.version, missing.state) == (4, State.UNAVAILABLE)
        assert "the version policy names it" in missing.reason
        assert manager.ready("m", "1")

    run(tmp_path, test)


def test_overrides_stand_in_for_the_folder(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        await manager.load("m", '{"max_batch_size": 3}')
        assert manager.resolve("m").definition.spec.max_rows == 3
        files = {"7/model.onnx": onnx_models.scale().SerializeToString(), "labels.txt": b"a\nb"}
        config = '{"output": [{"name": "y", "label_filename": "labels.txt"}]}'
        await manager.load("m", config, files)
        definition = manager.resolve("m").definition
        assert (definition.version, definition.spec.outputs[0].labels) == (7, ("a", "b"))
        assert definition.folder.stat().st_mode & 0o777 == 0o700
        assert manager.versions("m") == [7]
        await manager.load("m")
        assert manager.versions("m") == [1]
        await asyncio.gather(*(service.closed.wait() for service in opener.opened[:-1]))
        await until(lambda: not manager.statistics().draining)
        assert not definition.folder.exists()
        await manager.load("fresh", files={"1/model.onnx": onnx_models.scale().SerializeToString()})
        scratch = manager.resolve("fresh").definition.folder
        await manager.unload("fresh")
        assert not scratch.exists()

    run(tmp_path, test)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "1/../../evil", "", "1/..", "a\0b"])
def test_overrides_cannot_leave_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "root").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        with pytest.raises(LoadFailed, match=r"failed to load 'm', file override: .* is not a relative path"):
            await manager.load("m", files={"1/model.onnx": b"", name: b"evil"})

    run(tmp_path / "root", test)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["root", "scratch"]


def test_a_failed_override_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    onnx_models.write(tmp_path / "root", "m")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        for files in ({"2/model.onnx": b"broken"}, {"2": b"a file", "2/model.onnx": b"below it"}):
            with pytest.raises(LoadFailed):
                await manager.load("m", files=files)
        assert manager.versions("m") == [1], "the old version serves on"

    run(tmp_path / "root", test)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (ControlMode.POLL, "explicit model load / unload is not allowed if polling is enabled"),
        (ControlMode.NONE, "explicit model load / unload is not allowed in model control mode 'none'"),
    ],
)
def test_other_modes_refuse(tmp_path: Path, mode: ControlMode, text: str) -> None:
    onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        assert manager.ready("m")
        for call in (manager.load("m"), manager.unload("m")):
            with pytest.raises(NotAllowed, match=f"^{re.escape(text)}$"):
                await call

    run(tmp_path, test, mode, startup=[])


# Starting


def test_only_what_is_named_is_loaded_at_the_start(tmp_path: Path) -> None:
    for name in "abc":
        onnx_models.write(tmp_path, name)

    async def test(manager: Manager, opener: Opener) -> None:
        assert await manager.start() == []
        assert [row[:3] for row in await rows(manager)] == [
            ("a", 0, "UNKNOWN"), ("b", 1, "READY"), ("c", 0, "UNKNOWN"),
        ]  # fmt: skip
        assert [row.name for row in await manager.index(ready_only=True)] == ["b"]
        assert repr(manager) == "<ModelManager explicit [versions: 1 ready, 0 loading, 0 unavailable | draining: 0]>"

    run(tmp_path, test, startup=["b"])


def test_a_start_that_cannot_succeed_says_so(tmp_path: Path) -> None:
    async def named(manager: Manager, opener: Opener) -> None:
        with pytest.raises(LoadFailed, match="failed to load 'x', failed to poll from model repository"):
            await manager.start()

    async def unreadable(manager: Manager, opener: Opener) -> None:
        with pytest.raises(LoadFailed, match=r"the model repository '.*gone' cannot be read: No such file"):
            await manager.start()

    run(tmp_path, named, startup=["x"])
    run(tmp_path / "gone", unreadable)


def test_one_broken_model_does_not_keep_the_others_down(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "good")
    onnx_models.write(tmp_path, "bad", config="nonsense")

    async def test(manager: Manager, opener: Opener) -> None:
        (broken,) = await manager.start()
        assert (broken.name, broken.version, broken.state) == ("bad", 0, State.UNAVAILABLE)
        assert "the configuration cannot be read" in broken.reason
        assert manager.ready("good")
        with pytest.raises(ModelNotReady):
            manager.borrow("bad")

    run(tmp_path, test, ControlMode.NONE)


def test_loads_run_side_by_side_within_the_bound(tmp_path: Path) -> None:
    for name in "abcde":
        onnx_models.write(tmp_path, name)

    async def test(manager: Manager, opener: Opener) -> None:
        opener.gate = asyncio.Event()
        starting = asyncio.create_task(manager.start())
        for _ in range(3):
            await opener.entered.acquire()
        assert {row[2] for row in await rows(manager)} == {"LOADING"}
        opener.gate.set()
        await starting
        assert opener.most_inside == 3
        assert len(opener.opened) == 5

    run(tmp_path, test, loads=3)


def test_operations_on_one_model_take_turns(tmp_path: Path) -> None:
    folder = onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        opener.gate = asyncio.Event()
        change(folder)
        await opener.entered.acquire()
        first = asyncio.create_task(manager.load("m"))
        await opener.entered.acquire()
        others = [asyncio.create_task(manager.load("m", f'{{"max_batch_size": {rows}}}')) for rows in (2, 3)]
        last = asyncio.create_task(manager.unload("m"))
        opener.gate.set()
        await asyncio.gather(first, *others, last)
        assert opener.most_inside == 1

    run(tmp_path, test)


def test_a_cancelled_load_goes_on(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        opener.gate = asyncio.Event()
        loading = asyncio.create_task(manager.load("m"))
        await opener.entered.acquire()
        loading.cancel()
        await asyncio.wait([loading])
        ready = asyncio.Event()
        manager.subscribe(lambda *row: ready.set() if row[2] is State.READY else None)
        opener.gate.set()
        await ready.wait()
        assert manager.ready("m")

    run(tmp_path, test, startup=[])


def test_closing_gives_up_what_is_loading_and_takes_nothing_more(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        opener.gate = asyncio.Event()
        loading = asyncio.create_task(manager.load("m"))
        await opener.entered.acquire()
        await manager.close()
        await asyncio.wait([loading])
        assert loading.cancelled()
        assert await rows(manager) == [("m", 1, "UNAVAILABLE", "loading was given up")]
        with pytest.raises(NotAllowed, match="closed"):
            await manager.load("m")

    run(tmp_path, test, startup=[])


def test_a_service_that_does_not_close_cleanly_is_gone_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        opener.opened[0].close_error = RuntimeError("stuck")
        await manager.unload("m")
        assert await rows(manager) == [("m", 1, "UNAVAILABLE", "unloaded")]

    run(tmp_path, test)
    assert "did not close cleanly" in caplog.text


# Watching


def test_listeners_hear_every_change(tmp_path: Path) -> None:
    folder = onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        heard: list[tuple[str, int, State, str]] = []
        end = manager.subscribe(lambda *row: heard.append(row))
        await manager.start()
        opener.fails[1] = RuntimeError("no memory")
        change(folder)
        with pytest.raises(LoadFailed):
            await manager.load("m")
        await manager.unload("m")
        end()
        opener.fails.clear()
        await manager.load("m")
        assert heard == [
            ("m", 1, State.LOADING, ""),
            ("m", 1, State.READY, ""),
            ("m", 1, State.READY, ""),
            ("m", 1, State.READY, "no memory"),
            ("m", 1, State.UNLOADING, ""),
            ("m", 1, State.UNAVAILABLE, "unloaded"),
        ]

    run(tmp_path, test)


def test_statistics(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        with manager.borrow("m"), manager.borrow("m"):
            (version,) = manager.statistics().versions
        assert (version.name, version.version, version.state) == ("m", 1, State.READY)
        assert (version.borrowers, version.load_s) == (2, 1)

    run(tmp_path, test)


def test_a_new_version_is_swapped_in_without_a_gap_once_it_is_whole(tmp_path: Path) -> None:
    folder = onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        (folder / "2").mkdir()
        await manager.poll()
        await manager.poll()
        assert await rows(manager) == [("m", 1, "READY", "")], "there is no model file yet"
        whole = (folder / "1" / "model.onnx").read_bytes()
        (folder / "2" / "model.onnx").write_bytes(whole[:20])
        await manager.poll()
        (folder / "2" / "model.onnx").write_bytes(whole)
        await manager.poll()
        assert await rows(manager) == [("m", 1, "READY", "")], "it is still changing"
        gaps: list[State] = []
        manager.subscribe(lambda *_: None if manager.ready("m") else gaps.append(State.UNAVAILABLE))
        with manager.borrow("m") as old:
            await manager.poll()
            assert manager.resolve("m").definition.version == 2
            assert [row[:3] for row in await rows(manager)] == [("m", 1, "UNLOADING"), ("m", 2, "READY")]
            assert not old.closed.is_set()
        await old.closed.wait()
        assert gaps == []

    run(tmp_path, test, ControlMode.POLL)


def test_a_broken_new_version_leaves_the_old_one_serving(tmp_path: Path) -> None:
    folder = onnx_models.write(tmp_path, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        onnx_models.write(tmp_path, "m", (2,))
        opener.fails[2] = RuntimeError("warm-up failed")
        await manager.poll()
        await manager.poll()
        expected = [("m", 1, "READY", ""), ("m", 2, "UNAVAILABLE", "warm-up failed")]
        assert await rows(manager) == expected
        attempts = opener.entered._value
        await manager.poll()
        assert opener.entered._value == attempts, "nothing has changed, so nothing is tried"
        assert await rows(manager) == expected
        opener.fails.clear()
        change(folder, 2)
        await manager.poll()
        await manager.poll()
        assert manager.versions("m") == [2]

    run(tmp_path, test, ControlMode.POLL)


def test_polling_follows_models_that_come_change_and_go(tmp_path: Path) -> None:
    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        folder = onnx_models.write(tmp_path, "m")
        await manager.poll()
        assert not manager.ready("m")
        await manager.poll()
        assert manager.ready("m")
        (folder / "config.pbtxt").write_text("max_batch_size: 2")
        await manager.poll()
        assert manager.resolve("m").definition.spec.max_rows == 32
        await manager.poll()
        assert manager.resolve("m").definition.spec.max_rows == 2
        folder.rename(tmp_path / ".gone")
        await manager.poll()
        assert manager.ready("m"), "it may come back, as in a replacement by hand"
        await manager.poll()
        assert not manager.ready("m")
        await opener.opened[-1].closed.wait()
        await until(lambda: not manager.statistics().draining)
        assert await rows(manager) == []
        with pytest.raises(ModelNotFound):
            manager.borrow("m")

    run(tmp_path, test, ControlMode.POLL)


def test_versions_that_are_taken_away_are_retired(tmp_path: Path) -> None:
    folder = onnx_models.write(tmp_path, "m", (1, 2), config="version_policy { all { } }")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        (folder / "2").rename(folder / ".2")
        await manager.poll()
        await manager.poll()
        assert manager.versions("m") == [1]
        (folder / "1").rename(folder / ".1")
        await manager.poll()
        await manager.poll()
        assert manager.versions("m") == []

    run(tmp_path, test, ControlMode.POLL)


def test_a_repository_that_cannot_be_read_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "root"
    onnx_models.write(root, "m")

    async def test(manager: Manager, opener: Opener) -> None:
        await manager.start()
        root.rename(tmp_path / "away")
        for _ in range(3):
            await manager.poll()
        assert manager.ready("m")

    run(root, test, ControlMode.POLL)
    assert "cannot be read" in caplog.text


def test_a_name_that_turns_up_twice_serves_on_and_is_reported(tmp_path: Path) -> None:
    onnx_models.write(tmp_path / "a", "m")
    (tmp_path / "b").mkdir()

    async def main() -> None:
        options = RepositoryOptions(roots=[tmp_path / "a", tmp_path / "b"], mode=ControlMode.POLL, poll_interval_s=0)
        manager: Manager = ModelManager(options, Opener())
        await manager.start()
        second = onnx_models.write(tmp_path / "b", "m")
        await manager.poll()
        assert await rows(manager) == [("m", 1, "READY", "model appears in two or more repositories")]
        second.rename(tmp_path / "b" / ".m")
        await manager.poll()
        await manager.poll()
        assert await rows(manager) == [("m", 1, "READY", "")]
        await manager.close()

    asyncio.run(main())


def test_the_watch_goes_on_whatever_happens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        options = RepositoryOptions(roots=[tmp_path], mode=ControlMode.POLL, poll_interval_s=0.001)
        manager: Manager = ModelManager(options, Opener())
        looks = iter([RuntimeError("the disk is on fire")])
        poll, ready = manager.poll, asyncio.Event()

        async def fails_once() -> None:
            for error in looks:
                raise error
            await poll()

        manager.poll = fails_once  # type: ignore[method-assign]  # the first look goes wrong
        manager.subscribe(lambda *row: ready.set() if row[2] is State.READY else None)
        await manager.start()
        onnx_models.write(tmp_path, "m")
        async with asyncio.timeout(20):
            await ready.wait()
            await manager.close()

    asyncio.run(main())
    assert "the disk is on fire" in caplog.text
