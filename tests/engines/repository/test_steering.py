"""A steering decides what the empty version is, and which versions stay up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from engines.errors import ModelNotReady
from engines.repository.definition import Definition
from engines.repository.manager import ControlMode, ModelManager, RepositoryOptions
from tests.support import onnx_models


class Service:
    def __init__(self, definition: Definition) -> None:
        self.version = definition.version

    async def close(self) -> None: ...


class Steered:
    """What a test says of model `m`."""

    def __init__(self) -> None:
        self.versions: frozenset[int] = frozenset()
        self.default = 0
        self.seen: list[list[int]] = []

    def kept(self, name: str) -> frozenset[int]:
        assert name == "m"
        return self.versions

    def front(self, name: str, lent: Mapping[int, Any]) -> Any:
        self.seen.append(sorted(lent))
        return lent.get(self.default)


Manager = ModelManager[Service]


def run(root: Path, mode: ControlMode, test: Callable[[Manager, Steered], Awaitable[None]]) -> None:
    async def main() -> None:
        steering = Steered()

        async def opener(definition: Definition) -> Service:
            return Service(definition)

        options = RepositoryOptions(roots=[root], mode=mode, startup_models=("*",), poll_interval_s=0)
        manager: Manager = ModelManager(options, opener, steering=steering)
        async with asyncio.timeout(20):
            steering.default = 1
            await manager.start()
            await test(manager, steering)
            await manager.close()

    asyncio.run(main())


def default(manager: Manager) -> int:
    with manager.borrow("m") as service:
        return service.version


def test_the_empty_version_is_the_steerings_and_may_be_none(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m", versions=(1, 2), config="version_policy { all {} }")

    async def test(manager: Manager, steering: Steered) -> None:
        assert (default(manager), manager.ready("m"), manager.versions("m")) == (1, True, [1, 2])
        steering.default = 2
        assert default(manager) == 1  # asked once for each change, not for each request
        manager.steer("m")
        assert default(manager) == 2
        steering.default = 3
        manager.steer("m")
        with pytest.raises(ModelNotReady, match="'m' is not at ready state"):
            manager.borrow("m")
        assert not manager.ready("m")
        assert [service.version for service in manager.services()] == [1, 2]
        with manager.borrow("m", "2") as service:
            assert service.version == 2
        manager.steer("unknown")

    run(tmp_path, ControlMode.EXPLICIT, test)


@pytest.mark.parametrize("mode", [ControlMode.EXPLICIT, ControlMode.POLL])
def test_kept_versions_stay_up_whatever_the_policy_says(tmp_path: Path, mode: ControlMode) -> None:
    onnx_models.write(tmp_path, "m", versions=(1,))  # the policy is the latest alone

    async def test(manager: Manager, steering: Steered) -> None:
        async def look() -> None:
            if mode is ControlMode.POLL:
                for _ in range(2):  # a change is acted upon once two looks have seen it
                    await manager.poll()

        steering.versions = frozenset((1, 2, 9))
        onnx_models.write(tmp_path, "m", versions=(2, 3))
        await manager.bring("m")
        await look()
        assert (manager.versions("m"), default(manager)) == ([1, 2, 3], 1)
        steering.versions = frozenset((2,))
        steering.default = 2
        await manager.bring("m")
        await look()
        assert (manager.versions("m"), default(manager)) == ([2, 3], 2)

    run(tmp_path, mode, test)


def test_where_nothing_can_be_loaded_bringing_waits_for_the_next_start(tmp_path: Path) -> None:
    onnx_models.write(tmp_path, "m", versions=(1,))

    async def test(manager: Manager, steering: Steered) -> None:
        steering.versions = frozenset((1, 2))
        onnx_models.write(tmp_path, "m", versions=(2,))
        await manager.bring("m")
        assert manager.versions("m") == [1]

    run(tmp_path, ControlMode.NONE, test)
