"""All rollouts of a server, over a repository that only plays one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from engines.errors import AlreadyExists, InvalidRequest, LoadFailed, ModelNotReady, NotFound
from engines.inference import Inference
from engines.spec import TensorSpec
from engines.tensor import DType
from server.rollout.rollout import Stage
from server.rollout.rollouts import Rollouts, RolloutStatistics
from server.rollout.router import RoutedInference
from server.rollout.store import FILE, RolloutStore
from server.telemetry.rollout import rollout_metrics
from tests.server.rollout.support import FakeVersion, request
from tests.support.virtual import run_virtual


@dataclass
class Dressed:
    """What a rollout makes of the stable version."""

    version: FakeVersion
    inference: Inference
    key: str


@dataclass
class FakeRepository:
    """Lends like a ManagedModel."""

    rollouts: Rollouts
    lent: dict[int, FakeVersion] = field(default_factory=dict)
    brought: list[str] = field(default_factory=list)
    loadable: dict[int, FakeVersion] = field(default_factory=dict)
    default: Any = None

    def versions(self, name: str) -> Sequence[int]:
        return sorted(self.lent)

    def steer(self, name: str) -> None:
        self.default = self.rollouts.front(name, self.lent) if self.lent else None  # type: ignore[arg-type]

    async def bring(self, name: str) -> None:
        self.brought.append(name)
        for number in [number for number in self.loadable if number in self.rollouts.kept(name)]:
            self.load(self.loadable.pop(number))

    def load(self, *versions: FakeVersion) -> None:
        for version in versions:
            self.lent[version.number] = version
            self.steer("m")
            self.rollouts.version_changed("m", version.number, "READY", "")

    def unload(self, number: int) -> None:
        del self.lent[number]
        self.steer("m")
        self.rollouts.version_changed("m", number, "UNLOADING", "")

    def answers(self) -> Any:
        """Which version answers who names none; the two, where callers are split."""
        if self.default is None:
            return None
        with self.default as service:
            return (1, 2) if isinstance(service, Dressed) else service.number


def make(folder: Path | None = None, *versions: FakeVersion) -> tuple[Rollouts, FakeRepository]:
    rollouts = Rollouts(RolloutStore(folder), Dressed)
    repository = FakeRepository(rollouts)
    rollouts.open(repository)
    repository.load(*versions)
    return rollouts, repository


SETTINGS: dict[str, Any] = {"steps": (0.5, 1.0), "step_s": 0.0, "samples": 5}


def test_a_candidate_that_comes_after_its_rollout_never_answers_before_its_time(tmp_path: Path) -> None:
    async def main() -> None:
        rollouts, repository = make(tmp_path, FakeVersion(1))
        rollout = await rollouts.start("m", 2, **SETTINGS)
        assert (rollout.stage, rollout.plan.stable, repository.brought) == (Stage.WAITING, 1, ["m"])
        assert repository.answers() == 1
        repository.load(FakeVersion(2))
        assert (rollout.stage, repository.answers()) == (Stage.RUNNING, (1, 2))
        repository.load(FakeVersion(3))
        assert repository.answers() == (1, 2)
        repository.unload(2)
        assert (rollout.stage, repository.answers()) == (Stage.WAITING, 1)
        repository.load(FakeVersion(2))
        rollouts.promote("m")
        assert repository.answers() == 2
        repository.load(FakeVersion(4))
        assert (repository.answers(), rollouts.kept("m")) == (2, {2})
        repository.unload(2)
        assert repository.answers() is None  # neither 3 nor 4 has proven anything
        rollouts.abort("m", forget=True)
        assert repository.answers() == 4
        await rollouts.close()

    run_virtual(main)


def test_a_restart_lets_nothing_loose_in_whatever_order_versions_come_up(tmp_path: Path) -> None:
    async def main() -> None:
        rollouts, _ = make(tmp_path, FakeVersion(1), FakeVersion(2))
        await rollouts.start("m", 2, **SETTINGS)
        await rollouts.close()
        again, repository = make(tmp_path)
        assert again.kept("m") == {1, 2}
        repository.load(FakeVersion(2))
        assert repository.answers() is None
        repository.load(FakeVersion(1))
        assert repository.answers() == (1, 2)
        (found,) = again.status()
        assert found.rollout.stage is Stage.RUNNING
        again.abort("m")
        await again.close()
        third, repository = make(tmp_path, FakeVersion(2), FakeVersion(1))
        assert repository.answers() == 1
        assert third.remark("m", 1).startswith("rollout: aborted; the default version until")
        assert third.remark("other", 1) == ""
        await third.close()

    run_virtual(main)


def test_time_alone_moves_a_rollout_on() -> None:
    async def main() -> None:
        rollouts, repository = make(None, FakeVersion(1), FakeVersion(2))
        rollout = await rollouts.start("m", 2, **{**SETTINGS, "step_s": 30.0})
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(2000):
            if repository.answers() != (1, 2):
                break
            with repository.default as dressed:
                await dressed.inference.infer(request(str(number)))
            await asyncio.sleep(0.25)
        assert rollout.stage is Stage.PROMOTED
        assert 60.0 <= loop.time() - began < 64.0
        await rollouts.close()

    run_virtual(main)


def test_who_is_stable_by_default() -> None:
    async def main() -> None:
        rollouts, repository = make(None, FakeVersion(1), FakeVersion(3), FakeVersion(2))
        assert (await rollouts.start("m", 3)).plan.stable == 2
        with pytest.raises(AlreadyExists, match="is under way"):
            await rollouts.start("m", 2)
        rollouts.abort("m")
        assert (await rollouts.start("m", 1)).plan.stable == 2
        rollouts.promote("m")
        assert (await rollouts.start("m", 4)).plan.stable == 1
        assert repository.answers() == 1
        rollouts.abort("m")
        assert (await rollouts.start("m", 2, stable=3)).plan.stable == 3
        await rollouts.close()

    run_virtual(main)


def test_what_operators_are_told() -> None:
    async def main() -> None:
        rollouts, _ = make(None)
        with pytest.raises(ModelNotReady, match="no version that is ready"):
            await rollouts.start("m", 2)
        rollouts, _ = make(None, FakeVersion(1))
        for action in (rollouts.promote, rollouts.abort):
            with pytest.raises(NotFound, match="has no rollout"):
                action("m")
        with pytest.raises(InvalidRequest, match="each step must be greater"):
            await rollouts.start("m", 2, steps=(0.5, 0.1))
        await rollouts.start("m", 2)
        with pytest.raises(InvalidRequest, match="is waiting: it cannot be promote"):
            rollouts.promote("m")
        rollouts.abort("m")
        with pytest.raises(InvalidRequest, match="is aborted"):
            rollouts.abort("m")
        await rollouts.close()

    run_virtual(main)


def test_a_candidate_that_does_not_fit_is_rolled_back_at_once() -> None:
    async def main() -> None:
        rollouts, repository = make(None, FakeVersion(1))
        rollout = await rollouts.start("m", 2)
        other = FakeVersion(2)
        other.spec = replace(other.spec, inputs=(TensorSpec("z", DType.FP32, (2,)),))
        repository.load(other)
        assert (rollout.stage, repository.answers()) == (Stage.ROLLED_BACK, 1)
        assert rollout.reason.startswith("the candidate has other inputs")
        await rollouts.close()

    run_virtual(main)


def test_a_file_that_cannot_be_read_or_written_stops_what_depends_on_it(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / FILE).write_text("{}")
        with pytest.raises(LoadFailed, match="cannot be read"):
            make(tmp_path)
        (tmp_path / FILE).unlink()
        rollouts, repository = make(tmp_path / "folder", FakeVersion(1), FakeVersion(2))
        (tmp_path / "folder").write_text("a file in the way")
        with pytest.raises(LoadFailed, match="cannot be written to"):
            await rollouts.start("m", 2)
        assert rollouts.status() == []
        assert repository.answers() == 2
        await rollouts.close()

    run_virtual(main)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_the_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    async def main() -> None:
        rollouts, _ = make(tmp_path, FakeVersion(1), FakeVersion(2))
        await rollouts.start("m", 2)
        assert names(tmp_path) == [FILE]
        rollouts.abort("m", forget=True)
        assert RolloutStore(tmp_path).read(lambda _: None) == []
        await rollouts.close()

    run_virtual(main)


@dataclass(frozen=True)
class Alarm:
    value: float = 1.0
    alarm: bool = True


class FakeSignals:
    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken

    def readings(self, model: str, version: int) -> dict[str, Alarm]:
        if self.broken:
            raise RuntimeError("no readings")
        return {"drift": Alarm()} if version == 2 else {}


@pytest.mark.parametrize(("broken", "stage"), [(False, Stage.ROLLED_BACK), (True, Stage.RUNNING)])
def test_the_watch_may_end_a_rollout_and_its_own_faults_may_not(
    broken: bool, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        rollouts, _ = make(None, FakeVersion(1), FakeVersion(2))
        rollouts.signals = FakeSignals(broken=broken)
        rollout = await rollouts.start("m", 2)
        await asyncio.sleep(1.5)
        assert rollout.stage is stage
        assert ("no readings" in caplog.text) is broken
        await rollouts.close()

    run_virtual(main)


def test_metrics_say_where_it_stands() -> None:
    async def main() -> None:
        rollouts, repository = make(None, FakeVersion(1), FakeVersion(2))
        rollout = await rollouts.start("m", 2, **SETTINGS)
        with repository.default as dressed:
            assert isinstance(dressed.inference, RoutedInference)
            for number in range(40):
                await dressed.inference.infer(request(str(number)))
        found: Sequence[RolloutStatistics] = rollouts.status()
        series = {
            (sample.name, sample.labels.get("stage") or sample.labels.get("arm") or ""): sample.value
            for metric in rollout_metrics(found)
            for sample in metric.samples
        }
        assert series["kairos_rollout_stage", "running"] == 1.0
        assert series["kairos_rollout_stage", "rolled_back"] == 0.0
        assert series["kairos_rollout_share_ratio", ""] == 0.5
        asked = [series["kairos_rollout_step_requests", arm] for arm in ("stable", "candidate")]
        assert sum(asked) == 40
        assert asked == [rollout.evidence.stable.requests, rollout.evidence.candidate.requests]
        await rollouts.close()

    run_virtual(main)


def test_a_stable_version_that_is_not_ready_would_leave_nobody_to_answer() -> None:
    async def main() -> None:
        rollouts, repository = make(None, FakeVersion(1), FakeVersion(2))
        for model in ("m", "unknown"):
            with pytest.raises(ModelNotReady, match=f"version 7 of model '{model}' is not ready"):
                await rollouts.start(model, 2, stable=7)
        assert rollouts.status() == []
        assert repository.answers() == 2
        await rollouts.close()

    run_virtual(main)
