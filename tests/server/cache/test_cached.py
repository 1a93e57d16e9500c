"""CachedInference: hits, misses, shared executions, deadlines, and everyone who leaves."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from engines.errors import DeadlineExceeded, EngineFailed, InvalidRequest, Overloaded
from engines.request import InferRequest, InferResponse, Origin
from engines.tensor import DType, Tensor
from server.cache.cached import CachedInference
from server.cache.memory import MemoryOptions, MemoryStore
from server.cache.store import CacheOptions, Store
from tests.server.cache.support import SPEC, ControlledInference, answer, data_of, request, turns
from tests.support.virtual_time import scenario


class Stack:
    """A cache over an Inference under control."""

    def __init__(self, **options: object) -> None:
        self.inner = ControlledInference(at_once=bool(options.pop("at_once", False)))
        self.memory = MemoryStore(MemoryOptions(size_bytes=100_000))
        self.store = Store(self.memory, None, rand=random.Random(1))
        self.cached = CachedInference(self.inner, SPEC, self.store, CacheOptions(**options))  # type: ignore[arg-type]

    def call(self, asked: InferRequest) -> asyncio.Task[InferResponse]:
        return asyncio.get_running_loop().create_task(self.cached.infer(asked))

    @property
    def executions(self) -> int:
        return len(self.inner.asked)


@scenario
async def test_the_second_time_it_is_remembered() -> None:
    stack = Stack(at_once=True)
    first = await stack.cached.infer(request(id="1"))
    second = await stack.cached.infer(request(id="2"))
    assert (first.origin, second.origin) == (Origin.ENGINE, Origin.CACHE)
    assert (first.id, second.id) == ("1", "2")
    assert data_of(first) == data_of(second) == b"abcabc"
    assert stack.executions == 1
    assert repr(stack.cached) == (
        "<CachedInference double:1 [hits: 1 memory, 0 redis | misses: 1 | shared: 0 | in flight: 0]>"
    )


@scenario
async def test_other_questions_get_other_answers() -> None:
    stack = Stack(at_once=True)
    for data in (b"a", b"b", b"a", b"b"):
        assert data_of(await stack.cached.infer(request(data))) == data * 2
    assert stack.executions == 2


@scenario
async def test_a_changed_model_under_the_same_version_is_asked_again() -> None:
    stack = Stack(at_once=True)
    await stack.cached.infer(request())
    reloaded = CachedInference(stack.inner, replace(SPEC, digest="00fe"), stack.store, CacheOptions())
    assert (await reloaded.infer(request())).origin is Origin.ENGINE
    assert stack.executions == 2


@scenario
async def test_answers_expire_and_not_all_together() -> None:
    stack = Stack(at_once=True, ttl_s=100.0, jitter=0.1)
    for number in range(50):
        await stack.cached.infer(request(bytes([number])))
    await asyncio.sleep(89.9)
    hits = [(await stack.cached.infer(request(bytes([number])))).origin is Origin.CACHE for number in range(50)]
    assert all(hits)
    await asyncio.sleep(5.0)
    hits = [(await stack.cached.infer(request(bytes([number])))).origin is Origin.CACHE for number in range(50)]
    assert 10 < sum(hits) < 40


@scenario
async def test_large_answers_are_not_kept() -> None:
    stack = Stack(at_once=True, max_value_bytes=10)
    for _ in range(2):
        assert (await stack.cached.infer(request(b"sixsix"))).origin is Origin.ENGINE
    assert stack.cached.statistics().too_large == 2
    await stack.cached.infer(request(b"five5"))
    assert (await stack.cached.infer(request(b"five5"))).origin is Origin.CACHE


@scenario
async def test_bypass_neither_reads_nor_writes_nor_joins() -> None:
    stack = Stack()
    leader = stack.call(request())
    bypass = stack.call(request(parameters={"kairos_cache_bypass": True}))
    await turns()
    assert stack.executions == 2
    stack.inner.finish()  # the leader's runs in a task of its own, a turn later
    assert (await bypass).origin is Origin.ENGINE
    assert not leader.done()
    stack.inner.finish()
    await leader
    assert stack.cached.statistics().bypassed == 1


@scenario
async def test_sequences_and_inputs_that_may_still_change_are_not_cached() -> None:
    stack = Stack(at_once=True)
    shared_memory = bytearray(b"abc")
    mutable = replace(request(), inputs=(Tensor("IN", DType.UINT8, (1, 3), memoryview(shared_memory)),))
    for asked in (mutable, request(parameters={"sequence_id": 1})):
        for _ in range(2):
            assert (await stack.cached.infer(asked)).origin is Origin.ENGINE
    assert stack.executions == 4
    read_only = replace(request(), inputs=(Tensor("IN", DType.UINT8, (1, 3), memoryview(b"abc")),))
    await stack.cached.infer(read_only)
    assert (await stack.cached.infer(request())).origin is Origin.CACHE


@scenario
async def test_200_identical_requests_execute_once() -> None:
    stack = Stack()
    calls = [stack.call(request(id=str(number))) for number in range(200)]
    await turns()
    assert stack.executions == 1
    stack.inner.finish()
    answers = await asyncio.gather(*calls)
    assert [response.id for response in answers] == [str(number) for number in range(200)]
    assert {data_of(response) for response in answers} == {b"abcabc"}
    assert [response.origin for response in answers] == [Origin.ENGINE] + [Origin.SHARED] * 199
    statistics = stack.cached.statistics()
    assert (statistics.misses, statistics.shared, statistics.in_flight) == (1, 199, 0)


@scenario
async def test_50_of_200_leave_the_leader_included_and_the_rest_is_answered() -> None:
    stack = Stack()
    calls = [stack.call(request(id=str(number))) for number in range(200)]
    await turns()
    for call in calls[:50]:
        call.cancel()
    await turns()
    assert not stack.inner.withdrawn
    stack.inner.finish()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[:50])
    assert {outcome.origin for outcome in outcomes[50:]} == {Origin.SHARED}  # type: ignore[union-attr]
    assert stack.executions == 1
    assert (await stack.cached.infer(request())).origin is Origin.CACHE


@scenario
async def test_when_all_have_left_the_execution_is_withdrawn() -> None:
    stack = Stack()
    calls = [stack.call(request()) for _ in range(3)]
    await turns()
    for call in calls:
        call.cancel()
    await turns()
    assert len(stack.inner.withdrawn) == 1
    assert len(stack.cached._flights) == 0
    again = stack.call(request())
    await turns()
    assert stack.executions == 2
    stack.inner.finish()
    assert (await again).origin is Origin.ENGINE


@scenario
async def test_whoever_comes_after_all_have_left_starts_anew_at_once() -> None:
    stack = Stack()
    leaver = stack.call(request())
    await turns()
    leaver.cancel()
    await asyncio.sleep(0)  # the leaver runs, the withdrawn execution does not know it yet
    late = stack.call(request())
    await turns()
    stack.inner.finish()
    assert data_of(await late) == b"abcabc"


@scenario
async def test_a_failure_is_everyones_and_not_remembered() -> None:
    stack = Stack()
    calls = [stack.call(request()) for _ in range(3)]
    await turns()
    stack.inner.fail(EngineFailed("broken", retryable=True))
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [(type(error), str(error), error.retryable) for error in errors] == [(EngineFailed, "broken", True)] * 3  # type: ignore[union-attr]
    assert len({id(error) for error in errors}) == 3
    assert stack.cached.statistics().failed == 3
    again = stack.call(request())
    await turns()
    stack.inner.finish()
    assert (await again).origin is Origin.ENGINE


@scenario
async def test_a_fault_that_is_no_infer_error_is_passed_on() -> None:
    stack = Stack()
    call = stack.call(request())
    await turns()
    stack.inner.fail(ZeroDivisionError("oops"))
    with pytest.raises(ZeroDivisionError):
        await call


@scenario
async def test_a_refusal_for_the_leaders_deadline_is_not_the_patients_answer() -> None:
    for refusal in (DeadlineExceeded("Request timeout expired"), Overloaded("cannot be met")):
        stack = Stack()
        now = asyncio.get_running_loop().time()
        calls = [stack.call(request(deadline=now + left_s)) for left_s in (1.0, 1.0, 3.0, 5.0)]
        await turns()
        stack.inner.fail(refusal)
        await turns()
        assert [call.done() for call in calls] == [True, True, False, False]
        assert [asked.deadline for asked in stack.inner.asked] == [now + 1.0, now + 5.0]
        stack.inner.finish()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(refusal)] * 2 + [InferResponse] * 2


@scenario
async def test_a_rerun_does_not_keep_those_waiting_whose_time_is_over() -> None:
    stack = Stack()
    now = asyncio.get_running_loop().time()
    calls = [stack.call(request(deadline=now + left_s)) for left_s in (1.0, 3.0, 5.0)]
    await turns()
    stack.inner.fail(DeadlineExceeded("expired"))
    with pytest.raises(DeadlineExceeded, match="Request timeout expired"):
        await calls[1]
    assert asyncio.get_running_loop().time() == pytest.approx(now + 3.0)
    assert not calls[2].done()
    stack.inner.finish()
    await asyncio.gather(*calls, return_exceptions=True)


@scenario
async def test_other_refusals_are_not_run_again() -> None:
    stack = Stack()
    now = asyncio.get_running_loop().time()
    calls = [stack.call(request(deadline=now + left_s)) for left_s in (1.0, 5.0)]
    await turns()
    stack.inner.fail(InvalidRequest("never"))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InvalidRequest] * 2
    assert stack.executions == 1


@scenario
async def test_one_in_a_hurry_gets_its_own_place_in_the_queue_when_half_its_time_is_over() -> None:
    stack = Stack()
    loop = asyncio.get_running_loop()
    now = loop.time()
    patient = stack.call(request(id="patient", deadline=now + 100.0))
    await turns()
    urgent = stack.call(request(id="urgent", deadline=now + 2.0))
    await asyncio.sleep(0.9)
    assert stack.executions == 1
    await asyncio.sleep(0.2)
    assert [asked.deadline for asked in stack.inner.asked] == [now + 100.0, now + 2.0]
    stack.inner.finish(1)
    answers = await asyncio.gather(patient, urgent)
    assert [(response.id, response.origin) for response in answers] == [
        ("patient", Origin.SHARED), ("urgent", Origin.ENGINE),
    ]  # fmt: skip
    await turns()
    assert [asked.id for asked in stack.inner.withdrawn] == ["patient"]


@scenario
async def test_one_in_a_hurry_is_content_with_an_answer_in_time() -> None:
    stack = Stack()
    now = asyncio.get_running_loop().time()
    calls = [stack.call(request(deadline=now + left_s)) for left_s in (100.0, 2.0)]
    await asyncio.sleep(0.5)
    stack.inner.finish()
    await asyncio.gather(*calls)
    assert stack.executions == 1


@scenario
async def test_one_in_a_hurry_is_told_at_its_deadline_and_the_patient_go_on() -> None:
    stack = Stack()
    loop = asyncio.get_running_loop()
    now = loop.time()
    patient = stack.call(request(deadline=now + 100.0))
    await turns()
    urgent = stack.call(request(deadline=now + 2.0))
    await asyncio.sleep(1.5)
    stack.inner.fail(Overloaded("full"), 1)  # does not count while the other one runs
    with pytest.raises(DeadlineExceeded):
        await urgent
    assert loop.time() == pytest.approx(now + 2.0)
    stack.inner.finish()
    assert (await patient).origin is Origin.ENGINE


@scenario
async def test_each_executes_for_itself_when_so_configured() -> None:
    stack = Stack(share_executions=False)
    calls = [stack.call(request()) for _ in range(3)]
    await turns()
    assert stack.executions == 3
    for _ in range(3):
        stack.inner.finish()
    assert {response.origin for response in await asyncio.gather(*calls)} == {Origin.ENGINE}
    assert (await stack.cached.infer(request())).origin is Origin.CACHE


@scenario
async def test_every_request_is_counted_once() -> None:
    stack = Stack()
    rand = random.Random(7)
    calls: list[asyncio.Task[InferResponse]] = []
    now = asyncio.get_running_loop().time()
    for _ in range(2000):
        deadline = now + rand.choice([0.5, 5.0, float("inf")])
        parameters = {"kairos_cache_bypass": True} if rand.random() < 0.05 else {}
        calls.append(stack.call(request(bytes([rand.randrange(40)]), deadline=deadline, parameters=parameters)))
        if rand.random() < 0.2:
            rand.choice(calls).cancel()
        if rand.random() < 0.3:
            await turns(2)
        while stack.inner.waiting and rand.random() < 0.3:
            index = rand.randrange(len(stack.inner.waiting))
            if rand.random() < 0.2:
                stack.inner.fail(rand.choice([EngineFailed("no"), DeadlineExceeded("late"), Overloaded("full")]), index)
            else:
                stack.inner.finish(index)
    while not all(call.done() for call in calls):
        while stack.inner.waiting:
            stack.inner.finish()
        await turns()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    never_ran = sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    statistics = stack.cached.statistics()
    counted = statistics.memory_hits + statistics.misses + statistics.shared + statistics.bypassed + statistics.failed
    assert len(calls) - never_ran <= counted <= len(calls)
    for outcome in outcomes:
        if isinstance(outcome, InferResponse):
            assert data_of(outcome) in {bytes([number, number]) for number in range(40)}
    assert statistics.in_flight == 0
    await asyncio.sleep(10.0)


@scenario
async def test_a_response_is_what_the_model_said() -> None:
    stack = Stack(at_once=True)
    expected = answer(request(b"xyz"))
    for _ in range(2):
        response = await stack.cached.infer(request(b"xyz"))
        assert [(t.name, t.dtype, t.shape, bytes(t.data)) for t in response.outputs] == [
            (t.name, t.dtype, t.shape, bytes(t.data)) for t in expected.outputs
        ]
        assert (response.model, response.version) == ("double", 1)
