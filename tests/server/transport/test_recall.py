"""Requests that repeat byte for byte: recalled while, and only while, the long way would say the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engines.backends.fake import FakeEngine, fake_spec
from engines.request import Origin
from server.cache.cached import CachedInference
from server.cache.memory import MemoryOptions
from server.cache.replies import ENTRY_BYTES, MOST_BYTES, Replies
from server.cache.store import CacheOptions, Store, StoreOptions, open_store
from server.lifecycle import Lifecycle, Phase
from server.pb import grpc_service_pb2 as pb
from server.telemetry.logs import LogOptions, Logs
from server.telemetry.meter import Outcome
from server.transport.model import ServedModel
from server.transport.recall import Recall
from server.transport.service import Answer, InferenceService, ServiceOptions
from server.transport.shared_memory import SystemSharedMemory
from tests.support.fakes import FakeModels, quiet_telemetry, serve_model

SPEC = replace(fake_spec(), digest="00ff")


class Spy(InferenceService):
    """Counts who takes the long way."""

    taken = 0

    async def answer(self, request: pb.ModelInferRequest, context: Any) -> Answer:
        self.taken += 1
        return await super().answer(request, context)


class Context:
    """A call."""

    def __init__(self, left_s: float | None = None) -> None:
        self.left_s = left_s

    def time_remaining(self) -> float | None:
        return self.left_s

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return []

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        raise RuntimeError(f"{code}: {details}")


class Bench:
    """The service with a cached model, whose executions are counted."""

    def __init__(self) -> None:
        self.executions = 0
        self.models = FakeModels()
        self.telemetry = quiet_telemetry()
        self.tracer = self.telemetry.tracer
        self.lifecycle = Lifecycle()
        self.lifecycle.advance(Phase.SERVING)
        logs = Logs(LogOptions())
        self.service = Spy(
            self.models, self.lifecycle, SystemSharedMemory(), self.telemetry, logs, ServiceOptions(version="test")
        )
        self.recall = Recall(self.service, self.models, self.tracer, 100_000)
        self.store: Store = open_store(StoreOptions(memory=MemoryOptions(size_bytes=1_000_000)), "test")

    async def load(self, *, recalls: bool = True, digest: str = "00ff", factor: float = 2.0) -> ServedModel:
        """Serve a model that multiplies, in place of what was served before."""
        spec = replace(SPEC, digest=digest)

        def count(_: object) -> None:
            self.executions += 1

        def answer(inputs: Any) -> Any:
            return {"y": inputs["x"] * np.float32(factor)}

        served = await serve_model(spec, lambda: FakeEngine(spec, before=count, answer=answer))
        cache = CachedInference(served.engines, spec, self.store, CacheOptions(jitter=0.0))  # type: ignore[arg-type]
        model = replace(
            served,
            inference=self.telemetry.around(cache, served.meter),
            cache=cache,
            recalls=cache if recalls else None,
        )
        self.models.models["fake", "1"] = model
        return model

    async def ask(self, value: float = 1.0, *, left_s: float | None = None, **rest: Any) -> pb.ModelInferResponse:
        """One request as it comes over the wire, and its answer as it goes."""
        asked = pb.ModelInferRequest(model_name="fake", **rest)
        asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        asked.raw_input_contents.append(np.full(4, value, np.float32).tobytes())
        handler = self.recall.handler()
        message = await handler.unary_unary(
            handler.request_deserializer(asked.SerializeToString(deterministic=True)), Context(left_s)
        )
        return pb.ModelInferResponse.FromString(handler.response_serializer(message))


def value_of(response: pb.ModelInferResponse) -> float:
    return float(np.frombuffer(response.raw_output_contents[0], np.float32)[0])


def bench(main: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        made = Bench()
        first = await made.load()
        try:
            await main(made)
        finally:
            for model in {id(first): first, **{id(each): each for each in made.models.models.values()}}.values():
                await model.close()
            await made.telemetry.stop()

    asyncio.run(whole())


def test_the_third_time_it_is_recalled_and_counted_like_the_second() -> None:
    async def main(made: Bench) -> None:
        answers = [await made.ask(3.0, id="a", left_s=30.0) for _ in range(5)]
        assert {answer.SerializeToString(deterministic=True) for answer in answers} == {
            answers[0].SerializeToString(deterministic=True)
        }
        assert value_of(answers[-1]) == 6.0
        assert answers[-1].id == "a"
        assert (made.executions, made.service.taken) == (1, 2)
        meter = made.models.models["fake", "1"].meter
        assert (meter.origins[Origin.ENGINE], meter.origins[Origin.CACHE]) == (1, 4)
        assert meter.outcomes[Outcome.IN_DEADLINE] == meter.request.count == meter.slack_at_reply.count == 5
        cache = made.models.models["fake", "1"].cache
        assert cache is not None
        assert cache.statistics().memory_hits == 4

    bench(main)


def test_whoever_is_too_late_is_counted_so() -> None:
    async def main(made: Bench) -> None:
        for left_s in (None, None, -1.0):
            await made.ask(left_s=left_s)
        assert made.service.taken == 2
        assert made.models.models["fake", "1"].meter.outcomes[Outcome.LATE] == 1

    bench(main)


@pytest.mark.parametrize("other", [{"id": "b"}, {"value": 2.0}, {"model_version": "1"}], ids=["id", "input", "version"])
def test_another_request_takes_the_long_way(other: dict[str, Any]) -> None:
    async def main(made: Bench) -> None:
        for _ in range(3):
            await made.ask(value=1.0, id="a")
        taken = made.service.taken
        answer = await made.ask(**{"value": 1.0, "id": "a", **other})
        assert made.service.taken == taken + 1
        assert answer.id == other.get("id", "a")
        assert value_of(answer) == 2.0 * other.get("value", 1.0)

    bench(main)


def test_a_reloaded_model_answers_itself() -> None:
    async def main(made: Bench) -> None:
        old = made.models.models["fake", "1"]
        for _ in range(3):
            assert value_of(await made.ask(1.0)) == 2.0
        await made.load(digest="0bad", factor=5.0)
        for _ in range(3):
            assert value_of(await made.ask(1.0)) == 5.0
        await old.close()
        del made.models.models["fake", "1"]
        with pytest.raises(RuntimeError, match="NOT_FOUND"):
            await made.ask(1.0)

    bench(main)


def test_a_flush_is_obeyed() -> None:
    async def main(made: Bench) -> None:
        for _ in range(3):
            await made.ask()
        await made.store.flush(None)
        await made.ask()
        assert made.executions == 2

    bench(main)


def test_what_has_expired_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(made: Bench) -> None:
        for _ in range(3):
            await made.ask()
        loop = asyncio.get_running_loop()
        now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now + 3601.0)
        await made.ask()
        assert made.executions == 2

    bench(main)


def test_a_traced_request_is_seen_by_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(made: Bench) -> None:
        for _ in range(3):
            await made.ask()
        made.tracer.sampling = True
        await made.ask()
        assert made.service.taken == 3

    bench(main)


def test_nothing_is_recalled_where_somebody_wants_to_see_each_request() -> None:
    async def main(made: Bench) -> None:
        shown = made.models.models["fake", "1"]
        await made.load(recalls=False)
        for _ in range(4):
            await made.ask()
        assert (made.service.taken, made.executions) == (4, 1)
        await shown.close()

    bench(main)


def test_a_draining_server_recalls_nothing() -> None:
    async def main(made: Bench) -> None:
        for _ in range(3):
            await made.ask()
        made.lifecycle.advance(Phase.DRAINING)
        before = made.service.taken
        await made.ask()
        assert made.service.taken == before + 1

    bench(main)


def test_replies_keep_within_their_bound_and_the_oldest_leave() -> None:
    replies: Replies[None] = Replies(4 * (ENTRY_BYTES + 20))
    for number in range(4):
        replies.put(bytes([number]) * 10, b"0123456789", None)
    assert replies.get(bytes([0]) * 10) is not None
    replies.put(b"new" + bytes(7), b"0123456789", None)
    assert replies.get(bytes([1]) * 10) is None
    assert replies.get(bytes([0]) * 10) is not None
    assert repr(replies) == f"<Replies [4 | bytes: {4 * (ENTRY_BYTES + 20)} of {4 * (ENTRY_BYTES + 20)}]>"
    replies.put(bytes(10), b"shorter", None)
    assert len(replies) == 4


def test_large_ones_are_not_kept() -> None:
    replies: Replies[None] = Replies(1 << 20)
    replies.put(bytes(MOST_BYTES + 1), b"", None)
    replies.put(b"", bytes(MOST_BYTES + 1), None)
    assert len(replies) == 0
