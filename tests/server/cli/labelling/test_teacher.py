"""A teacher that is busy, goes away or refuses: every row is answered once, or the job says why not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from engines.build.data import Dataset, dataset_of
from engines.build.errors import BuildFailed
from server.cli.labelling.parts import Job, Parts
from server.cli.labelling.teacher import AskOptions, Teacher, pause_s
from server.pb import grpc_service_pb2 as pb
from tests.support.virtual import run_virtual

ROWS = 100


class Refusal(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, *trailers: tuple[str, str]) -> None:
        super().__init__()
        self.code = lambda: code
        self.details = lambda: "told so"
        self.trailing_metadata = lambda: trailers


@dataclass
class FakeStub:
    """Answers y = 2 x, unless `before` raises."""

    before: Callable[[int], None] = lambda count: None
    asked: list[str] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0
    calls: int = 0

    async def ModelInfer(self, message: pb.ModelInferRequest, **options: float) -> pb.ModelInferResponse:
        assert options == {"timeout": 10.0}
        self.calls += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(1.0 + self.calls % 3)
            self.before(self.calls)
        finally:
            self.in_flight -= 1
        self.asked.append(message.id)
        values = np.frombuffer(message.raw_input_contents[0], np.float32) * 2
        answer = pb.ModelInferResponse(model_name="m", model_version=message.model_version, id=message.id)
        answer.outputs.add(name="y", datatype="FP32", shape=message.inputs[0].shape)
        answer.raw_output_contents.append(values.tobytes())
        return answer


def data() -> Dataset:
    return dataset_of({"x": np.arange(ROWS, dtype=np.float32)[:, None]}, source="test")


JOB = Job(data="d", rows=ROWS, model="m", version="3", digest="x", outputs=("y",), part_rows=30)


async def label(stub: FakeStub, folder: Path, **options: Any) -> Teacher:
    asked = Teacher(stub, "m", AskOptions(batch=8, in_flight=4, **options))
    done: list[int] = []
    await asked.label(data(), JOB, Parts(folder / "soft.npz"), 32, done.append)
    assert sum(done) == ROWS
    return asked


def check(folder: Path) -> None:
    answers = Parts(folder / "soft.npz").assemble(JOB)
    assert np.array_equal(answers["y"][:, 0], 2 * np.arange(ROWS))


def in_threadless_time(main: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads do not live in virtual time."""

    async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", at_once)
    run_virtual(main)


def test_several_are_in_flight_and_answers_come_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        stub = FakeStub()
        assert (await label(stub, tmp_path)).paused == 0
        assert stub.most == 4
        assert len(stub.asked) == len(set(stub.asked)) == 3 * 4 + 2
        check(tmp_path)

    in_threadless_time(main, monkeypatch)


def test_a_busy_server_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        def busy(count: int) -> None:
            if count % 2:
                raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, ("retry-after-ms", "700"))

        stub, slept = FakeStub(busy), []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        asked = Teacher(stub, "m", AskOptions(batch=8, in_flight=4), sleep)
        await asked.label(data(), JOB, Parts(tmp_path / "soft.npz"), 32, lambda _: None)
        assert len(slept) == asked.paused > 5
        assert all(0.7 <= seconds <= 1.05 for seconds in slept)
        assert len(stub.asked) == len(set(stub.asked)) == 14
        check(tmp_path)

    in_threadless_time(main, monkeypatch)


def test_an_interrupted_job_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        def breaks(count: int) -> None:
            if count > 9:
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT)

        first, second = FakeStub(breaks), FakeStub()
        with pytest.raises(BuildFailed, match="INVALID_ARGUMENT: told so"):
            await label(first, tmp_path)
        missing = Parts(tmp_path / "soft.npz").begin(JOB)
        assert 0 < len(missing) < 4
        await label(second, tmp_path)
        wanted = [
            f"rows {first} to {min(first + 8, stop)}" for start, stop in missing for first in range(start, stop, 8)
        ]
        assert sorted(second.asked) == sorted(wanted)
        check(tmp_path)

    in_threadless_time(main, monkeypatch)


def test_patience_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        def away(count: int) -> None:
            raise Refusal(grpc.StatusCode.UNAVAILABLE)

        with pytest.raises(BuildFailed, match="UNAVAILABLE"):
            await label(FakeStub(away), tmp_path, patience_s=100.0)
        assert 100.0 < asyncio.get_running_loop().time() - 1000.0 < 130.0

    in_threadless_time(main, monkeypatch)


def test_pauses() -> None:
    exhausted, hint = grpc.StatusCode.RESOURCE_EXHAUSTED, [("retry-after-ms", "200")]
    assert pause_s(exhausted, hint, 5, 0.0) == 0.2
    assert pause_s(exhausted, hint, 0, 1.0) == pytest.approx(0.3)
    assert [pause_s(exhausted, (), attempt, 0.0) for attempt in (0, 1, 4, 50)] == [0.05, 0.1, 0.8, 10.0]
    assert pause_s(grpc.StatusCode.NOT_FOUND, (), 0, 0.0) is None
